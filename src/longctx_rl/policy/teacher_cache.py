"""A teacher's signals for recorded completions, kept on disk: computed once, read by every later run.

A cache is a folder whose name is a hash of its identity: teacher, tokenizer, estimator, temperature, dtype. It holds
the identity (``identity.json``), the teacher's output weights for the exact divergence (``head.safetensors``), the
concatenated signals (``signals.bin``, memory-mapped), and their offsets and checksums (``index.jsonl``, a line per
group). A group's key is a hash of its tokens, so another prompt, template or completion is another entry. An entry
exists once its line is written; bytes that a killed build wrote after the last complete entry are truncated. A damaged
entry is never used, and the next build computes it again. A cache of the version before checksums is used without them,
and the next build adds them.
"""

import hashlib
import json
import zlib
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor, nn

from longctx_rl.files import InUse, built, json_lines, lock, mismatch, read_object, replacing, write_text
from longctx_rl.objective.spec import Estimator
from longctx_rl.policy.shape import ModelShape
from longctx_rl.types import GroupSpan, HiddenSignal, PackedGroups, SampledSignal, TeacherSignal, TopKSignal

ALIGNMENT = 64
"""Entries start at multiples of this many bytes."""
REPAIR = "repeat the command that built the cache, which keeps all intact signals"


@dataclass(frozen=True, slots=True)
class Identity:
    """Everything but the tokens that a signal depends on."""

    teacher: str | None
    """``weights_hash`` of the teacher; None if its weights are not on this disk, and its name is compared instead."""
    name: str
    """The teacher's name in the configuration."""
    tokenizer: str
    estimator: str
    top_k: int
    """0 for the exact divergence."""
    temperature: float
    dtype: str
    vocabulary: int | None
    yarn: str | None = None
    """The extension of the teacher's context in the run's configuration."""
    config: str | None = None
    """``config_hash`` of the teacher: the same weights compute other signals with other positions, norms or heads."""

    @property
    def key(self) -> str:
        """A hash of all of it, which names the folder."""
        return hashlib.blake2b(json.dumps(asdict(self)).encode(), digest_size=8).hexdigest()


def group_key(packed: PackedGroups, span: GroupSpan) -> tuple[str, slice]:
    """Return a group's key in a cache, and the slice of the row's loss tokens that are the group's."""
    sources = packed.source_index
    inside = ((sources >= span.start) & (sources < span.end)).nonzero().flatten()
    tokens = slice(int(inside[0]), int(inside[-1]) + 1) if len(inside) else slice(0, 0)
    digest = hashlib.blake2b(digest_size=16)
    for part in (
        packed.input_ids[span.start : span.end],
        torch.tensor([span.prompt_len, *span.completion_lens]),
        sources[tokens] - span.start,
    ):
        digest.update(part.cpu().contiguous().numpy().tobytes())
        digest.update(b"|")
    return digest.hexdigest(), tokens


class TeacherCache:
    """Signals by group. ``create`` opens a cache for writing, ``open`` for reading.

    Attributes:
        shape: the teacher's, for counting its FLOPs.
        context: the teacher's context length in tokens.
        width: hidden size of the teacher.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        facts = _facts(folder)
        self.identity = built(Identity, facts["identity"])
        self.shape = built(ModelShape, facts["shape"])
        self.context: int = facts["context"]
        self.width: int = facts["width"]
        self._head_crc32: int | None = facts.get("head_crc32")
        self._entries: dict[str, tuple[int, int, int | None]] = {}
        """Key to position, number of tokens and checksum; None in a cache of the version before checksums."""
        index, data = folder / "index.jsonl", folder / "signals.bin"
        size = data.stat().st_size if data.exists() else 0
        for line in json_lines(index) if index.exists() else ():
            if mismatch(line.value, tuple[str, int, int, int] | tuple[str, int, int]):
                continue  # damaged, or the last line of a killed build
            key, start, tokens, checksum = (*line.value, None)[:4]
            if 0 <= start <= size - self._entry_bytes(tokens):  # else its line reached the disk before its signals did
                self._entries[key] = (start, tokens, checksum)
        self._bytes: Tensor | None = None
        self._writing: tuple[BinaryIO, TextIO, TextIO] | None = None

    @classmethod
    def create(
        cls, root: Path, identity: Identity, head: Tensor | None, shape: ModelShape, context: int, width: int
    ) -> "TeacherCache":
        """Open a cache for writing; create it if it does not exist.

        Raises:
            ValueError: another build is writing to it.
        """
        folder = root.expanduser() / f"teacher-{identity.key}"
        folder.mkdir(parents=True, exist_ok=True)
        try:
            held = lock(folder / ".lock")
        except InUse as error:
            raise ValueError(f"{folder} is being written by another build ({error.owner}): wait for it") from None
        facts = {"identity": asdict(identity), "shape": asdict(shape), "context": context, "width": width}
        if head is not None:
            with replacing(folder / "head.safetensors") as temporary:
                save_file({"head": head.contiguous().cpu()}, temporary)
            facts["head_crc32"] = zlib.crc32((folder / "head.safetensors").read_bytes())
        write_text(folder / "identity.json", json.dumps(facts, indent=2) + "\n")
        cache = cls(folder)
        cache._entries = {
            key: (start, tokens, zlib.crc32(content.numpy().data))
            for key, (start, tokens, _) in cache._entries.items()
            if (content := cache._content(key)) is not None
        }
        cache._bytes = None
        end = max((start + cache._entry_bytes(tokens) for start, tokens, _ in cache._entries.values()), default=0)
        lines = [json.dumps([key, *entry]) + "\n" for key, entry in cache._entries.items()]
        write_text(folder / "index.jsonl", "".join(lines))
        data = (folder / "signals.bin").open("ab")
        data.truncate(end)
        data.seek(0, 2)
        cache._writing = data, (folder / "index.jsonl").open("a", encoding="utf-8"), held
        return cache

    @classmethod
    def open(cls, root: Path, identity: Identity, command: str) -> "TeacherCache":
        """Open a cache for reading.

        The teacher's name is ignored, unless its weights are not on this disk and could not be compared.

        Args:
            command: builds the cache; named in the error.

        Raises:
            ValueError: no cache has this identity; says how the existing ones differ.
        """
        expected, others = asdict(identity), []
        for file in sorted(root.expanduser().glob("teacher-*/identity.json")):
            try:
                stored = _facts(file.parent)["identity"]
            except ValueError as error:
                others.append(str(error))
                continue
            ignored = "teacher" if identity.teacher is None else "name"
            different = [name for name, value in expected.items() if name != ignored and stored.get(name) != value]
            if not different:
                return cls(file.parent)
            older = stored.keys() < expected.keys()
            others.append(
                f"{file.parent.name} was built by an older version"
                if older
                else f"{file.parent.name} differs in {', '.join(different)}"
            )
        raise ValueError(
            f"model.teacher_cache={root} has no signals of this teacher with these settings"
            f"{' (' + '; '.join(others) + ')' if others else ''}: build it with {command}"
        )

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, key: str, signal: TeacherSignal) -> None:
        """Write a group's signal. Raises OSError if the disk is full; earlier entries stay."""
        assert self._writing is not None
        data, index, _ = self._writing
        assert not isinstance(signal, SampledSignal)  # its tokens are sampled anew in each run
        columns = [signal.hidden] if isinstance(signal, HiddenSignal) else [signal.ids.to(torch.int32), signal.logprobs]
        content = b"".join(column.cpu().contiguous().view(torch.uint8).numpy().tobytes() for column in columns)
        start, tokens = data.tell(), len(columns[0])
        assert [column.shape[1] for column in columns] == [width for _, width in self._columns()]
        content = content.ljust(self._entry_bytes(tokens), b"\0")
        entry = (start, tokens, zlib.crc32(content))
        data.write(content)
        data.flush()
        index.write(json.dumps([key, *entry]) + "\n")
        index.flush()
        self._entries[key] = entry

    def read(self, key: str) -> tuple[Tensor, ...]:
        """Return [T, H] hidden states, or [T, K] ids and log-probabilities. Raises ValueError if they are damaged."""
        content, (_, tokens, _) = self._content(key), self._entries[key]
        if content is None:
            raise ValueError(f"{self.folder / 'signals.bin'} is damaged: {REPAIR}")
        columns, start = [], 0
        for dtype, width in self._columns():
            size = tokens * width * dtype.itemsize
            columns.append(content[start : start + size].view(dtype).view(tokens, width))
            start += size
        return tuple(columns)

    def _content(self, key: str) -> Tensor | None:
        """Return the bytes of an entry; None if they are damaged."""
        if self._bytes is None:
            path = self.folder / "signals.bin"
            self._bytes = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)
        start, tokens, checksum = self._entries[key]
        content = self._bytes[start : start + self._entry_bytes(tokens)]
        return content if checksum in (None, zlib.crc32(content.numpy().data)) else None

    def head(self) -> Tensor | None:
        """Return the teacher's output weights, [V, H], if the estimator is exact. Raises ValueError if damaged."""
        if self.identity.estimator != "exact":
            return None
        file = self.folder / "head.safetensors"
        content = file.read_bytes() if file.is_file() else b""
        if self._head_crc32 in (None, zlib.crc32(content)):
            with suppress(SafetensorError):
                return load(content)["head"]
        raise ValueError(f"{file} is damaged: {REPAIR}")

    def close(self) -> None:
        """Close the files and release the lock."""
        if self._writing is not None:
            data, index, held = self._writing
            data.close()
            index.close()
            held.close()

    def _columns(self) -> list[tuple[torch.dtype, int]]:
        if self.identity.estimator == "exact":
            return [(getattr(torch, self.identity.dtype), self.width)]
        return [(torch.int32, self.identity.top_k), (torch.float32, self.identity.top_k)]

    def _entry_bytes(self, tokens: int) -> int:
        size = sum(tokens * width * dtype.itemsize for dtype, width in self._columns())
        return -(-size // ALIGNMENT) * ALIGNMENT


def _facts(folder: Path) -> dict[str, Any]:
    """Return the content of identity.json. Raises ValueError if it cannot be used."""
    kinds = {"identity": Identity, "shape": ModelShape, "context": int, "width": int, "head_crc32": int | None}
    return read_object(folder / "identity.json", REPAIR, **kinds)


class CachedScorer(nn.Module):
    """Takes the place of a frozen teacher: its signals come from a cache."""

    def __init__(self, cache: TeacherCache, command: str) -> None:
        super().__init__()
        self._cache, self._command = cache, command

    def forward(
        self, packed: PackedGroups, *, estimator: Estimator, temperature: float, top_k: int, head: Tensor | None
    ) -> TeacherSignal:
        """Return the signal for a row's groups. See ``FrozenScorer``.

        Raises:
            ValueError: the cache does not hold a group.
        """
        del temperature, top_k  # part of the cache's identity
        entries = []
        for span in packed.spans:
            key, tokens = group_key(packed, span)
            if tokens.start == tokens.stop:
                continue
            if key not in self._cache:
                raise ValueError(
                    f"{self._cache.folder} ({len(self._cache)} prompts) lacks a prompt of this run: the data, template "
                    f"or answers differ; build it with {self._command}"
                )
            entries.append(self._cache.read(key))
        device = packed.input_ids.device
        if not entries:
            entries.append(tuple(torch.empty(0, width, dtype=dtype) for dtype, width in self._cache._columns()))
        columns = [torch.cat(column).to(device) for column in zip(*entries, strict=True)]
        if estimator == "exact":
            assert head is not None
            return HiddenSignal(columns[0], head)
        return TopKSignal(columns[0].long(), columns[1])
