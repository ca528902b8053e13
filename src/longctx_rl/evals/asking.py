"""A checkpoint asked: every suite's missing items answered, each answer kept as it comes."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from longctx_rl.config.eval import EvaluateConfig, SuiteConfig
from longctx_rl.data.source import prompt_ids
from longctx_rl.evals import records
from longctx_rl.evals.evaluation import answer
from longctx_rl.evals.grading import Grading, grader_of, runs_code
from longctx_rl.evals.items import Item
from longctx_rl.evals.records import ItemRecord, prompt_hash
from longctx_rl.evals.suites import READ, Plan, items_of
from longctx_rl.policy.attention import dispatch
from longctx_rl.policy.loading import context_length, end_tokens
from longctx_rl.rewards.execution import CodeGrader
from longctx_rl.rewards.judge import GraderUnavailable
from longctx_rl.rollout.hf import HFSampler

BATCH = 128
"""Items that are answered before they are written, at most."""
BATCHES = 4
"""Of the sampler: no more are answered before they are written."""

Told = Callable[[str, int], None]
"""Called with a suite's name and how many more of its items have an answer."""


@dataclass(frozen=True, slots=True)
class Share:
    """Which of the processes that share an evaluation this one is."""

    number: int = 0
    of: int = 1

    def file(self, out: Path, suite: str) -> Path:
        """Where its answers are kept: alone in the suite's own file."""
        return out / "evals" / (f"{suite}.jsonl" if self.of == 1 else f"{suite}.{self.number}.jsonl")


def plan_of(config: EvaluateConfig, name: str) -> Plan:
    """All items of a suite."""
    return Plan(config.eval.suites[name], config.eval.items, config.eval.first)


def ask(
    config: EvaluateConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, share: Share, told: Told
) -> dict[str, list[ItemRecord]]:
    """The records of a share of every suite, the missing ones answered and written.

    Raises:
        ValueError: answers to other prompts, or code that cannot be run.
    """
    dispatch.install(model)
    nn.Module.to(model, device_of(config, share), getattr(torch, config.dtype))
    with ExitStack() as stack:
        code = None
        if runs_code(config.eval.suites):
            code = stack.enter_context(closing(CodeGrader(config.sandbox, ranks=share.of)))
        try:
            return {
                name: _ask_suite(config, name, suite, (model, tokenizer, grader_of(name, suite, code)), share, told)
                for name, suite in config.eval.suites.items()
            }
        except GraderUnavailable as error:
            raise ValueError(f"{error}. Answers so far are kept: the same command goes on from there") from error


def _ask_suite(
    config: EvaluateConfig,
    name: str,
    suite: SuiteConfig,
    parts: tuple[PreTrainedModel, PreTrainedTokenizerBase, Grading],
    share: Share,
    told: Told,
) -> list[ItemRecord]:
    model, tokenizer, grader = parts
    told(name, 0)
    items = items_of(name, plan_of(config, name).share(share.number, share.of), tokenizer)
    if name in READ:
        _check_fit(config, name, items, model, tokenizer)
    kept = _kept(Path(config.out) / "evals" / f"{name}.jsonl", items, tokenizer)
    told(name, len(kept))
    sampler = HFSampler(
        tokenizer,
        temperature=suite.temperature,
        max_new_tokens=suite.max_new_tokens,
        batch_tokens=config.rollout.batch_tokens,
        eos_ids=end_tokens(model, tokenizer),
    )
    missing = [item for item in items if item.example.id not in kept]
    for batch in batches(missing, BATCHES * config.rollout.batch_tokens):
        answered = answer(
            model, sampler, tokenizer, batch, grader, step=0, slack=suite.answer_slack, samples=suite.samples
        )
        records.append(share.file(Path(config.out), name), answered)
        kept |= {record.id: record for record in answered}
        told(name, len(answered))
    return [kept[item.example.id] for item in items]


def _check_fit(
    config: EvaluateConfig,
    name: str,
    items: Sequence[Item],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Refuse what is read if one of its prompts leaves no room for the answer."""
    context = context_length(model)
    longest = max(items, key=lambda item: len(prompt_ids(tokenizer, item.example)), default=None)
    if longest is None:
        return
    need = len(prompt_ids(tokenizer, longest.example)) + config.eval.suites[name].max_new_tokens
    if need > context:
        raise ValueError(
            f"{longest.example.id} of eval.suites.{name} needs {need} tokens with the answer, but the context of "
            f"{config.checkpoint} is {context}: leave that length out of eval.suites.{name}.lengths, lower its "
            "max_new_tokens, or stretch the model with yarn='{factor: ..., original_context: ...}'"
        )


def _kept(path: Path, items: Sequence[Item], tokenizer: PreTrainedTokenizerBase) -> dict[str, ItemRecord]:
    """The items' answers in a suite's file. Raises ValueError if one is to another prompt."""
    asked = {item.example.id: item.example for item in items}
    found = [record for record in records.read(path) if record.id in asked] if path.exists() else []
    for record in found:
        if record.prompt_hash != prompt_hash(prompt_ids(tokenizer, asked[record.id])):
            raise ValueError(f"{path} answers other prompts ({record.id}): choose another out=FOLDER")
    return {record.id: record for record in found}


def batches(items: Sequence[Item], tokens: int) -> list[list[Item]]:
    """Items of similar length together, those that share a document next to each other; about so many tokens each."""
    ordered = sorted(items, key=lambda item: (item.example.length, item.example.document))
    found: list[list[Item]] = []
    for _, alike in groupby(ordered, key=lambda item: item.example.length):
        of_length = list(alike)
        size = min(BATCH, max(1, tokens // max(1, of_length[0].example.length)))
        found += [of_length[start : start + size] for start in range(0, len(of_length), size)]
    return found


def device_of(config: EvaluateConfig, share: Share) -> torch.device:
    """The processes go round the GPUs."""
    count = torch.cuda.device_count() if config.device != "cpu" else 0
    if not count:
        return torch.device(config.device.replace("auto", "cpu"))
    return torch.device("cuda", share.number % count)
