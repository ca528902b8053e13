"""The suites of a run, evaluated on the engine's policy and kept in ``evals/<suite>.jsonl``."""

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from longctx_rl.config.eval import EvalConfig, SuiteConfig
from longctx_rl.data.prompts import encode_prompt, encode_target
from longctx_rl.engine import Engine, distributed
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
    model: PreTrainedModel,
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

    Items that share a document follow one prefix, which the sampler computes once.

    Args:
        sampler: greedy (temperature 0) for one sample, so that accuracy does not move with the draw.
        grade: scores of answers to examples, all together.
        step: optimizer steps the model has taken.
        slack: tokens that an answer may take beyond the item's own; None: the sampler's limit alone.
        samples: answers to each item.

    Returns:
        One record per item, in the order of the items.
    """
    requests = []
    for item in items:
        document, question = encode_prompt(tokenizer, item.example)
        limit = None if slack is None else len(encode_target(tokenizer, item.example)) + slack
        seeds = tuple(records.seed_of(item.example.id, number) for number in range(samples))
        requests.append(SampleRequest(document + question, seeds, len(document), limit))
    completions = sampler.sample(model, requests)
    answers = [(one.text, item.example) for item, group in zip(items, completions, strict=True) for one in group]
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
        truncated=any(one.finish_reason == "length" for one in completions),
        tokens=sum(len(one.token_ids) for one in completions),
        prompt_hash=records.prompt_hash(prompt),
        depth=item.depth,
        floor=item.floor,
        question=item.example.question[-records.EXCERPT :],
        expected=item.example.answer[: records.EXCERPT],
        right=sum(reward.score == 1.0 for reward in rewards) if others else None,
        more=tuple(one.text for one in others),
    )


class RunSuite:
    """One suite of a run.

    Args:
        name: of the suite; also its file's.
        config: which items.
        first: number of its first family.
        sampler: greedy, with the suite's token limit.
        folder: where its records are kept.
        code: runs answers that are code; None: no item's are.
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
        """The items of an evaluation of ``items`` (see ``Plan``)."""
        return Plan(self.config, items, self.first)

    def size(self, items: int) -> int:
        """Number of items in such an evaluation. What is read may have fewer than are asked for."""
        if self.name in READ:
            return len(self._items(items))
        return self.plan(items).size

    def evaluate(self, engine: Engine, step: int, items: int) -> dict[str, float]:
        """Answer the items, keep the records, return the ``eval/`` metrics.

        Called by all ranks, which share the items and return the same metrics. The answer alone counts, without credit
        for evidence. Records of this and later steps are replaced.

        Raises:
            GraderUnavailable: on every rank, if code cannot be run on one of them.
        """
        asked = self._items(items)
        mine = asked[distributed.rank() :: distributed.world_size()]
        with engine.full_weights() as policy:
            model = policy.model
            assert isinstance(model, PreTrainedModel)
            slack = self.config.answer_slack
            answered = distributed.together(
                lambda: answer(model, self.sampler, self.tokenizer, mine, self.grader, step=step, slack=slack),
                GraderUnavailable,
            )
        found = {record.id: record for record in distributed.gather(answered)}
        ordered = [found[item.example.id] for item in asked]
        if distributed.is_main():
            records.drop_after(self.path, step - 1)
            records.append(self.path, ordered)
        return summary.metrics(ordered, self.name)

    def drop_after(self, step: int) -> None:
        """Remove the answers of later steps: of weights that are lost. Called by all ranks."""
        distributed.on_main(lambda: records.drop_after(self.path, step))

    def kept(self, step: int, items: int) -> dict[str, float] | None:
        """The metrics of an evaluation of this size if all its records were kept for this step. Called by all ranks."""
        answered = self._kept(step) if distributed.is_main() else []
        complete = len(answered) == self.size(items) > 0
        return distributed.broadcast(summary.metrics(answered, self.name) if complete else None)

    def before_after(self, step: int) -> str:
        """The table of step 0 against ``step``, of the items that both have; of ``step`` alone if step 0 has none."""
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
        sampler: makes a greedy sampler with a token limit.
        run_dir: the run's directory.
        code: runs answers that are code; None: no item's are.
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

    def evaluate(self, engine: Engine, step: int, items: int) -> dict[str, float]:
        """The metrics of every suite. See ``Suite.evaluate``."""
        return {key: value for suite in self.suites for key, value in suite.evaluate(engine, step, items).items()}

    def drop_after(self, step: int) -> None:
        """Remove the answers of later steps. Called by all ranks."""
        for suite in self.suites:
            suite.drop_after(step)

    def kept(self, step: int, items: int) -> dict[str, float] | None:
        """The metrics of an evaluation that was kept whole for this step. Called by all ranks."""
        found = [suite.kept(step, items) for suite in self.suites]
        if not found or any(metrics is None for metrics in found):
            return None
        return {key: value for metrics in found for key, value in (metrics or {}).items()}

    def before_after(self, step: int) -> str:
        """The tables of step 0 against ``step``, under their suites' names where there are several."""
        tables = {suite.name: suite.before_after(step) for suite in self.suites}
        several = len(tables) > 1
        return "\n\n".join(f"{name}\n{table}" if several else table for name, table in tables.items() if table)
