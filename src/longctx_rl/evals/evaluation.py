"""Evaluation during training: the run's suites on the engine's policy, with records in ``evals/<suite>.jsonl``."""

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

from transformers import PreTrainedTokenizerBase

from longctx_rl.config.eval import EvalConfig, SuiteConfig
from longctx_rl.data.prompts import encode_prompt, encode_target
from longctx_rl.engine import distributed
from longctx_rl.evals import records, summary
from longctx_rl.evals.grading import Grading, grader_of
from longctx_rl.evals.items import Item
from longctx_rl.evals.records import ItemRecord
from longctx_rl.evals.suites import READ, Plan, items_of
from longctx_rl.rewards.execution import CodeGrader
from longctx_rl.rewards.judge import GraderUnavailable
from longctx_rl.rollout import Sampler, SampleRequest
from longctx_rl.types import Completion, Reward


def answer(
    sampler: Sampler,
    tokenizer: PreTrainedTokenizerBase,
    items: Sequence[Item],
    grade: Grading,
    *,
    step: int,
    slack: int | None = None,
    samples: int = 1,
) -> list[ItemRecord]:
    """Answer and grade each item.

    Items that share a document share a prefix, which the sampler prefills once.

    Args:
        sampler: greedy (temperature 0) for a single sample, so that sampling adds no noise to the accuracy.
        grade: see ``grading.Grading``.
        step: optimizer steps that the model has taken.
        slack: tokens that an answer may exceed the reference answer by; None: only the sampler's limit applies.
        samples: answers per item.

    Returns:
        One record per item, in the order of the items.
    """
    requests = requests_of(tokenizer, items, slack, samples)
    return graded(items, requests, sampler.sample(requests), grade, step)


def requests_of(
    tokenizer: PreTrainedTokenizerBase, items: Sequence[Item], slack: int | None, samples: int
) -> list[SampleRequest]:
    """The request for each item's answers. See ``answer``."""
    requests = []
    for item in items:
        document, question = encode_prompt(tokenizer, item.example)
        limit = None if slack is None else len(encode_target(tokenizer, item.example)) + slack
        seeds = tuple(records.seed_of(item.example.id, number) for number in range(samples))
        requests.append(SampleRequest(document + question, seeds, len(document), limit))
    return requests


def graded(
    items: Sequence[Item],
    requests: Sequence[SampleRequest],
    completions: Sequence[Sequence[Completion]],
    grade: Grading,
    step: int,
) -> list[ItemRecord]:
    """The record of each item with its graded completions. See ``answer``."""
    answers = [
        (completion.text, item.example) for item, group in zip(items, completions, strict=True) for completion in group
    ]
    rewards = iter(grade(answers))
    return [
        _record(item, request.prompt_ids, group, [next(rewards) for _ in group], step)
        for item, request, group in zip(items, requests, completions, strict=True)
    ]


def _record(
    item: Item, prompt: Sequence[int], completions: Sequence[Completion], rewards: Sequence[Reward], step: int
) -> ItemRecord:
    first, *others = completions
    parts = {name: fmean(reward.parts[name] for reward in rewards) for name in rewards[0].parts}
    return ItemRecord(
        step=step,
        id=item.example.id,
        family_id=item.example.family_id,
        task=item.label,
        length=item.example.length if item.has_length else 0,
        prompt_tokens=len(prompt),
        output=first.text,
        score=fmean(reward.score for reward in rewards),
        parts=parts,
        truncated=any(completion.finish_reason == "length" for completion in completions),
        tokens=sum(len(completion.token_ids) for completion in completions),
        prompt_hash=records.prompt_hash(prompt),
        depth=item.depth,
        floor=item.floor,
        question=item.example.question[-records.EXCERPT :],
        expected=item.example.answer[: records.EXCERPT],
        right=sum(reward.score == 1.0 for reward in rewards) if others else None,
        more=tuple(completion.text for completion in others),
    )


class RunSuite:
    """One suite of a run.

    Args:
        name: the suite's name, also of its file.
        config: the suite's items.
        first: number of the first family.
        sampler: greedy, with the suite's token limit.
        folder: the folder of its records.
        code: runs answers that are code; None for suites without code.
    """

    def __init__(
        self,
        name: str,
        config: SuiteConfig,
        first: int,
        tokenizer: PreTrainedTokenizerBase,
        sampler: Sampler,
        folder: Path,
        code: CodeGrader | None = None,
    ) -> None:
        self.name, self.config, self.first = name, config, first
        self.tokenizer, self.sampler, self.grader = tokenizer, sampler, grader_of(name, config, code)
        self.path = folder / f"{name}.jsonl"
        self.rendered: dict[int, list[Item]] = {}

    def plan(self, items: int) -> Plan:
        """The plan of an evaluation of ``items`` (see ``Plan.items``)."""
        return Plan(self.config, items, self.first)

    def size(self, items: int) -> int:
        """Number of items in an evaluation of ``items`` (see ``Plan.items``), as far as the suite has them."""
        if self.name in READ:
            return len(self._items(items))
        return self.plan(items).size

    def evaluate(self, step: int, items: int) -> dict[str, float]:
        """Answer the items, write the records and return the ``eval/`` metrics.

        Called by all ranks, which divide the items and return the same metrics. The score is that of the answer alone,
        without credit for evidence. Records of this and later steps are replaced.

        Raises:
            GraderUnavailable: on every rank, if code cannot be run on one of them.
        """
        requested = self._items(items)
        share = requested[distributed.rank() :: distributed.world_size()]
        slack = self.config.answer_slack
        answered = distributed.together(
            lambda: answer(self.sampler, self.tokenizer, share, self.grader, step=step, slack=slack),
            GraderUnavailable,
        )
        by_id = {record.id: record for record in distributed.gather(answered)}
        ordered = [by_id[item.example.id] for item in requested]
        if distributed.is_main():
            records.drop_after(self.path, step - 1)
            records.append(self.path, ordered)
        return summary.metrics(ordered, self.name)

    def drop_after(self, step: int) -> None:
        """Remove the records of later steps, whose weights are lost. Called by all ranks."""
        distributed.on_main(lambda: records.drop_after(self.path, step))

    def kept(self, step: int, items: int) -> dict[str, float] | None:
        """The metrics of this step if the records of a complete evaluation of ``items`` exist, else None.

        Called by all ranks.
        """
        answered = self._kept(step) if distributed.is_main() else []
        complete = len(answered) == self.size(items) > 0
        return distributed.broadcast(summary.metrics(answered, self.name) if complete else None)

    def before_after(self, step: int) -> str:
        """The table that compares step 0 with ``step`` on their common items; of ``step`` alone if step 0 has none."""
        before = {record.id: record for record in self._kept(0)} if step else {}
        after = self._kept(step) if step else []
        if after and not before:
            return summary.table(after)
        after = [record for record in after if record.id in before]
        return summary.comparison([before[record.id] for record in after], after) if after else ""

    def _items(self, items: int) -> list[Item]:
        if items not in self.rendered:
            self.rendered[items] = items_of(self.name, self.plan(items), self.tokenizer)
        return self.rendered[items]

    def _kept(self, step: int) -> list[ItemRecord]:
        return [record for record in records.read(self.path) if record.step == step] if self.path.exists() else []


class Evaluation:
    """All suites of a run, one after the other.

    Args:
        sampler: makes a greedy sampler with the given token limit.
        run_dir: the run's directory.
        code: runs answers that are code; None for suites without code.
    """

    def __init__(
        self,
        config: EvalConfig,
        tokenizer: PreTrainedTokenizerBase,
        sampler: Callable[[int], Sampler],
        run_dir: Path,
        code: CodeGrader | None = None,
    ) -> None:
        self.suites = [
            RunSuite(name, suite, config.first, tokenizer, sampler(suite.max_new_tokens), run_dir / "evals", code)
            for name, suite in config.suites.items()
        ]

    def size(self, items: int) -> int:
        """Number of items of all suites (see ``Plan.items``)."""
        return sum(suite.size(items) for suite in self.suites)

    def evaluate(self, step: int, items: int) -> dict[str, float]:
        """The metrics of all suites. See ``RunSuite.evaluate``."""
        return {key: value for suite in self.suites for key, value in suite.evaluate(step, items).items()}

    def drop_after(self, step: int) -> None:
        """Remove the records of later steps. Called by all ranks."""
        for suite in self.suites:
            suite.drop_after(step)

    def kept(self, step: int, items: int) -> dict[str, float] | None:
        """The metrics of this step if the records of a complete evaluation exist, else None. Called by all ranks."""
        by_suite = [suite.kept(step, items) for suite in self.suites]
        if not by_suite or any(metrics is None for metrics in by_suite):
            return None
        return {key: value for metrics in by_suite for key, value in (metrics or {}).items()}

    def before_after(self, step: int) -> str:
        """The tables that compare step 0 with ``step``; several suites are headed by their names."""
        tables = {suite.name: suite.before_after(step) for suite in self.suites}
        several = len(tables) > 1
        return "\n\n".join(f"{name}\n{table}" if several else table for name, table in tables.items() if table)
