"""A checkpoint's answers to the suites of an evaluation: missing items are answered, and every answer is kept."""

from collections.abc import Generator, Sequence
from contextlib import ExitStack, closing, nullcontext
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from longctx_rl.config.eval import EvaluateConfig, SuiteConfig
from longctx_rl.data.source import prompt_ids
from longctx_rl.evals import folder, records
from longctx_rl.evals.evaluation import answer, graded, requests_of
from longctx_rl.evals.grading import Grading, grader_of, runs_code
from longctx_rl.evals.items import Item
from longctx_rl.evals.records import ItemRecord, prompt_hash
from longctx_rl.evals.served import CheckpointServers
from longctx_rl.evals.suites import READ, ProgressCallback, Share, items_of, plan_of
from longctx_rl.policy.attention import dispatch
from longctx_rl.policy.loading import context_length, end_tokens
from longctx_rl.rewards.execution import CodeGrader
from longctx_rl.rewards.judge import GraderUnavailable
from longctx_rl.rollout import RolloutFailed
from longctx_rl.rollout.hf import HFSampler, ModelSampler
from longctx_rl.rollout.vllm import VllmSampler
from longctx_rl.sandbox import probe

BATCH = 128
"""Maximum number of items that are answered before their records are written."""
BATCHES = 4
"""Maximum number of the sampler's batches that are answered before the records are written."""
Parts = tuple[PreTrainedModel, PreTrainedTokenizerBase, Grading, CheckpointServers | None]
"""What a suite is answered with. With servers, the model has no weights."""


def answer_suites(
    config: EvaluateConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    share: Share,
    progress: ProgressCallback,
    servers: CheckpointServers | None = None,
) -> dict[str, list[ItemRecord]]:
    """The records of a share of every suite. Missing items are answered, and their records are written.

    Args:
        servers: answer instead of the model, whose weights are not used then.

    Raises:
        ValueError: kept answers belong to other prompts, code cannot be run, or a server fails.
    """
    if servers is None:
        dispatch.install(model)
        nn.Module.to(model, device_of(config, share), getattr(torch, config.dtype))
    with ExitStack() as stack:
        code = None
        if runs_code(config.eval.suites):
            code = stack.enter_context(closing(CodeGrader(probe.choose(config.sandbox), ranks=share.count)))
        try:
            return {
                name: _answer_suite(
                    config, name, (model, tokenizer, grader_of(name, suite, code), servers), share, progress
                )
                for name, suite in config.eval.suites.items()
            }
        except (GraderUnavailable, RolloutFailed) as error:
            raise ValueError(f"{error}. Answers so far are kept: the same command continues from there") from error


def _answer_suite(
    config: EvaluateConfig,
    name: str,
    parts: Parts,
    share: Share,
    progress: ProgressCallback,
) -> list[ItemRecord]:
    model, tokenizer, *_ = parts
    out = Path(config.out)
    progress(name, 0)
    items = items_of(name, plan_of(config.eval, name).share(share.index, share.count), tokenizer)
    if name in READ:
        _check_fit(config, name, items, model, tokenizer)
    kept = _kept(out / "evals" / f"{name}.jsonl", items, tokenizer)
    progress(name, len(kept))
    missing = [item for item in items if item.example.id not in kept]
    ordered = batches(missing, BATCHES * config.rollout.batch_tokens)
    with closing(_answers(config, config.eval.suites[name], ordered, parts)) as answers:
        for answered in answers:
            if share.count == 1:
                folder.note_sampler(out, name, config.rollout.name)
            records.append(share.file(out, name), answered)
            kept |= {record.id: record for record in answered}
            progress(name, len(answered))
    return [kept[item.example.id] for item in items]


def _answers(
    config: EvaluateConfig, suite: SuiteConfig, ordered: Sequence[Sequence[Item]], parts: Parts
) -> Generator[list[ItemRecord]]:
    """Yield the records of batches of items: by transformers batch by batch, by servers as the answers arrive."""
    model, tokenizer, grader, servers = parts
    limits: dict[str, Any] = {
        "temperature": suite.temperature,
        "max_new_tokens": suite.max_new_tokens,
        "eos_ids": end_tokens(model, tokenizer),
    }
    slack, samples = suite.answer_slack, suite.samples
    if servers is None:
        drawn = HFSampler(tokenizer, batch_tokens=config.rollout.batch_tokens, **limits)
        sampler = ModelSampler(drawn, lambda: nullcontext(model))
        for batch in ordered:
            yield answer(sampler, tokenizer, batch, grader, step=0, slack=slack, samples=samples)
    elif items := [item for batch in ordered for item in batch]:
        requests = requests_of(tokenizer, items, slack, samples)
        remote = VllmSampler(servers, tokenizer, rows=model.config.vocab_size, **limits)
        with closing(remote.stream(requests, config.rollout.concurrency)) as arriving:
            for arrived in arriving:
                chosen, sent = [items[number] for number in arrived], [requests[number] for number in arrived]
                yield graded(chosen, sent, list(arrived.values()), grader, step=0)


def _check_fit(
    config: EvaluateConfig,
    name: str,
    items: Sequence[Item],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Raise ValueError for a suite that is read if its longest prompt leaves no room for the answer."""
    context = context_length(model)
    longest = max(items, key=lambda item: len(prompt_ids(tokenizer, item.example)), default=None)
    if longest is None:
        return
    need = len(prompt_ids(tokenizer, longest.example)) + config.eval.suites[name].max_new_tokens
    if need > context:
        raise ValueError(
            f"{longest.example.id} of eval.suites.{name} needs {need} tokens with the answer, but the context of "
            f"{config.checkpoint} is {context}: drop that length from eval.suites.{name}.lengths, lower its "
            "max_new_tokens, or stretch the model with yarn='{factor: ..., original_context: ...}'"
        )


def _kept(path: Path, items: Sequence[Item], tokenizer: PreTrainedTokenizerBase) -> dict[str, ItemRecord]:
    """The items' records in a suite's file, by id. Raises ValueError if one belongs to another prompt."""
    examples = {item.example.id: item.example for item in items}
    kept = [record for record in records.read(path) if record.id in examples] if path.exists() else []
    for record in kept:
        if record.prompt_hash != prompt_hash(prompt_ids(tokenizer, examples[record.id])):
            raise ValueError(f"{path} contains answers to other prompts ({record.id}): choose another out=FOLDER")
    return {record.id: record for record in kept}


def batches(items: Sequence[Item], tokens: int) -> list[list[Item]]:
    """Batches of items of one nominal length with about ``tokens`` tokens; items that share a document are adjacent."""
    ordered = sorted(items, key=lambda item: (item.example.length, item.example.document))
    result: list[list[Item]] = []
    for _, alike in groupby(ordered, key=lambda item: item.example.length):
        of_length = list(alike)
        size = min(BATCH, max(1, tokens // max(1, of_length[0].example.length)))
        result += [of_length[start : start + size] for start in range(0, len(of_length), size)]
    return result


def device_of(config: EvaluateConfig, share: Share) -> torch.device:
    """The device of a share: the GPUs are assigned round robin."""
    count = torch.cuda.device_count() if config.device != "cpu" else 0
    if not count:
        return torch.device(config.device.replace("auto", "cpu"))
    return torch.device("cuda", share.index % count)
