"""A teacher behind a vLLM server: its signals are the log-probabilities that vLLM gives to the tokens of a prompt.

Each completion is one request: the tokens that the teacher reads, then the completion's own, as a prompt of which one
token is generated. vLLM computes all of it for each request and returns the log-probabilities of the whole prompt.
"""

import asyncio
import hashlib
import json
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from longctx_rl.config.schema import Config
from longctx_rl.engine import distributed
from longctx_rl.files import mismatch
from longctx_rl.objective.spec import Estimator
from longctx_rl.policy.loading import PROBES
from longctx_rl.rollout import RolloutFailed
from longctx_rl.rollout.server import Server, gathered, http_client
from longctx_rl.rollout.vllm import UNDEFINED
from longctx_rl.types import PackedGroups, SampledSignal, TeacherSignal, TopKSignal

COMPLETIONS = "/v1/completions"
ROUNDING = 1e-3
"""Nats above 0 that a log-probability may have."""


@dataclass(frozen=True, slots=True)
class ListedToken:
    """A token of a position in vLLM's reply."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass(frozen=True, slots=True)
class Scored:
    """A completion to score."""

    prompt: list[int]
    """What the teacher reads before it."""
    tokens: list[int]
    offsets: list[int]
    """Places of its loss tokens, at least one."""


Columns = tuple[NDArray[np.int32], NDArray[np.float32]]
"""For each of a completion's C tokens, ids and log-probabilities of the teacher's K most likely tokens, both [C, K];
or no ids, [C, 0], and the log-probability of the token itself, [C, 1]."""


class SignalStore:
    """Signals by completion in an SQLite file. An entry is committed when it arrives, or does not exist."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._entries = sqlite3.connect(path, timeout=60.0)
            self._entries.execute("CREATE TABLE IF NOT EXISTS signals (key TEXT PRIMARY KEY, columns BLOB NOT NULL)")
        except (OSError, sqlite3.Error) as error:
            raise self._failed(error) from error

    def get(self, key: str) -> bytes | None:
        """Return the value of a key, or None."""
        try:
            row = self._entries.execute("SELECT columns FROM signals WHERE key = ?", (key,)).fetchone()
        except sqlite3.Error as error:
            raise self._failed(error) from error
        return row and bytes(row[0])

    def put(self, key: str, value: bytes) -> None:
        """Store the value of a key."""
        try:
            with self._entries:
                self._entries.execute("INSERT OR REPLACE INTO signals VALUES (?, ?)", (key, value))
        except sqlite3.Error as error:
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> RolloutFailed:
        return RolloutFailed(f"{self._path} cannot hold the teacher's signals ({error}): free space, or remove it")


class ServedScorer(nn.Module):
    """Takes the place of a frozen teacher: a vLLM server scores the completions. See ``FrozenScorer``.

    Args:
        rows: rows of the student's head.

    Raises:
        RolloutFailed: on every rank, if the server cannot be used, or its tokenizer is not the student's.
    """

    def __init__(self, config: Config, tokenizer: PreTrainedTokenizerBase, rows: int) -> None:
        super().__init__()
        assert config.teacher_server is not None
        kd = config.algo.kd
        self._rollout, self._rows = config.rollout, rows
        self._k = min(kd.top_k, rows) if kd.estimator == "topk" else 0
        self._server = Server(
            config.teacher_server, config.rollout.timeout, f"--max-logprobs {max(self._k, 1)} or more"
        )
        self._store = distributed.together(lambda: SignalStore(Path(config.run_dir, "teacher.sqlite")), RolloutFailed)
        problem = distributed.together(lambda: asyncio.run(self._connect(tokenizer)), RolloutFailed)
        note = f"the teacher is {self._server.model} at {self._server.url}, whose FLOPs are not counted"
        if config.viewed and config.algo.source == "policy":
            note += " and whose answers after the view are not scored (view/score_gap)"
        self.notes = (note, problem) if problem else (note,)
        """Lines for the log."""

    @property
    def context(self) -> int:
        """Longest prompt and completion in tokens; vLLM needs room for one more."""
        return self._server.context - 1

    def forward(
        self, packed: PackedGroups, *, estimator: Estimator, temperature: float, top_k: int, head: Tensor | None
    ) -> TeacherSignal:
        """Return the signal for a row. All ranks call this.

        Raises:
            RolloutFailed: on every rank, if the server fails.
        """
        assert temperature == 1.0 and estimator != "exact"
        del top_k, head  # known since the server was connected
        scored = list(scored_completions(packed))
        columns = distributed.together(lambda: asyncio.run(self._all(scored)), RolloutFailed)
        ids, logprobs = [np.zeros((0, self._k), np.int32)], [np.zeros((0, max(self._k, 1)), np.float32)]
        for each, (own_ids, own_logprobs) in zip(scored, columns, strict=True):
            ids.append(own_ids[each.offsets])
            logprobs.append(own_logprobs[each.offsets])
        values = torch.from_numpy(np.concatenate(logprobs)).to(packed.input_ids.device)
        if estimator == "topk":
            return TopKSignal(torch.from_numpy(np.concatenate(ids)).to(values.device).long(), values)
        return SampledSignal(values[:, 0])

    async def _connect(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """Learn what is served, and compare the tokenizers; returns why they cannot be compared, or nothing."""
        server, unknown = self._server, ""
        async with http_client(self._rollout) as client:
            await server.describe(client)
            for probe in PROBES:
                ids = list(tokenizer(probe, add_special_tokens=False)["input_ids"])
                body = {"model": server.model, "prompt": probe, "add_special_tokens": False}
                try:
                    reply = await server.post(client, "/tokenize", {"tokens": list[int]}, json=body)
                except RolloutFailed as error:
                    unknown = f"the teacher's tokenizer cannot be compared with the student's: {error}"
                    break
                if reply["tokens"] != ids:
                    raise RolloutFailed(
                        f"{server.url} splits {probe!r} into other tokens than the student's tokenizer, so their "
                        "probabilities cannot be compared: serve a teacher of the student's family"
                    )
            await self._requested(client, Scored(ids[:1], ids[1:], [0]), max(self._k, 1))
        return unknown

    async def _all(self, scored: Sequence[Scored]) -> list[Columns]:
        """The columns of each completion; equal ones are requested once."""
        keys = [self._key(each) for each in scored]
        async with http_client(self._rollout) as client:
            wanted = dict(zip(keys, scored, strict=True))
            values = await gathered([self._one(client, key, each) for key, each in wanted.items()])
        known = dict(zip(wanted, values, strict=True))
        return [known[key] for key in keys]

    def _key(self, each: Scored) -> str:
        """A hash of the teacher, the tokens and K. The address is left out: the teacher may be served elsewhere."""
        content = [self._server.model, self._server.root, self._k, each.prompt, each.tokens]
        return hashlib.blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()

    async def _one(self, client: httpx2.AsyncClient, key: str, each: Scored) -> Columns:
        stored = self._store.get(key)
        if stored is None:
            ids, logprobs = await self._requested(client, each, self._k)
            self._store.put(key, ids.tobytes() + logprobs.tobytes())
            return ids, logprobs
        count, size = len(each.tokens), 4 * len(each.tokens) * self._k
        ids = np.frombuffer(stored[:size], np.int32).reshape(count, self._k)
        return ids, np.frombuffer(stored[size:], np.float32).reshape(count, max(self._k, 1))

    async def _requested(self, client: httpx2.AsyncClient, each: Scored, k: int) -> Columns:
        """The columns from the server."""
        body = {
            "model": self._server.model,
            "prompt": each.prompt + each.tokens,
            "max_tokens": 1,
            "temperature": 0.0,
            "prompt_logprobs": k,
        }
        kind = {"choices": [{"prompt_logprobs": list[Any]}]}
        reply = await self._server.post(client, COMPLETIONS, kind, json=body)
        listed = reply["choices"][0]["prompt_logprobs"]
        rows = listed[len(each.prompt) :]
        if len(listed) != len(each.prompt) + len(each.tokens) or mismatch(rows, list[dict[str, ListedToken]]):
            raise self._unusable("no log-probabilities of some tokens")
        pairs = [self._row(row, token, k) for row, token in zip(rows, each.tokens, strict=True)]
        ids = np.array([[token for token, _ in row] for row in pairs], np.int32)
        logprobs = np.array([[logprob for _, logprob in row] for row in pairs], np.float32)
        return ids[:, :k], logprobs

    def _row(self, row: dict[str, dict[str, float]], token: int, k: int) -> list[tuple[int, float]]:
        """The K most likely tokens, most likely first, or the token itself, with log-probabilities."""
        values = {int(name): entry["logprob"] for name, entry in row.items() if name.isdecimal()}
        own = values.get(token)
        if own is None or len(values) not in (k, k + 1):
            raise self._unusable(f"{len(row)} tokens where {k} or {k + 1} were requested")
        if not all(UNDEFINED < value < ROUNDING for value in values.values()):
            raise self._unusable("values that are no log-probabilities")
        if k and len(values) > k:
            del values[token]  # it is listed although it is not one of the K
        if max(values) >= self._rows:
            raise RolloutFailed(
                f"the teacher at {self._server.url} lists token {max(values)}, but the student's vocabulary has "
                f"{self._rows}: serve a teacher of the student's family, or set algo.kd.estimator=k3"
            )
        return sorted(values.items(), key=lambda item: -item[1])

    def _unusable(self, problem: str) -> RolloutFailed:
        return RolloutFailed(f"{self._server.url} returned {problem}: use vLLM 0.32 with its default --logprobs-mode")


def scored_completions(packed: PackedGroups) -> Iterator[Scored]:
    """Yield the completions of a row that have loss tokens, in the row's order."""
    ids, sources, counts = packed.input_ids.tolist(), packed.source_index.tolist(), iter(packed.sequence_lens.tolist())
    done = 0
    for span in packed.spans:
        first = span.completions_start
        for length in span.completion_lens:
            count = next(counts)
            # A completion's first token is predicted at the prompt's end.
            offsets = [max(source - first + 1, 0) for source in sources[done : done + count]]
            if offsets:
                yield Scored(ids[span.start : span.completions_start], ids[first : first + length], offsets)
            first, done = first + length, done + count
