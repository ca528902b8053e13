"""Held-out accuracy: every item answered once and graded."""

from collections.abc import Callable, Sequence
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from longctx_rl.config import Config
from longctx_rl.data.prompts import encode_prompt
from longctx_rl.data.source import heldout_items
from longctx_rl.engine import Engine, distributed
from longctx_rl.evals import records, summary
from longctx_rl.evals.records import ItemRecord
from longctx_rl.rewards import grade
from longctx_rl.rollout import Sampler, SampleRequest
from longctx_rl.types import Example, Reward

SUITE = "heldout"


def evaluate(
    model: PreTrainedModel,
    sampler: Sampler,
    tokenizer: PreTrainedTokenizerBase,
    items: Sequence[Example],
    grade: Callable[[str, Example], Reward],
    *,
    step: int,
) -> list[ItemRecord]:
    """Answer and grade each item.

    Items that share a document follow one prefix, which the sampler computes once.

    Args:
        sampler: greedy (temperature 0), so that accuracy does not move with the draw.
        step: optimizer steps the model has taken.

    Returns:
        One record per item, in the order of the items.
    """
    requests = []
    for item in items:
        document, question = encode_prompt(tokenizer, item)
        requests.append(SampleRequest(prompt_ids=document + question, seeds=(0,), prefix_len=len(document)))
    results = []
    for item, request, (completion,) in zip(items, requests, sampler.sample(model, requests), strict=True):
        reward = grade(completion.text, item)
        results.append(
            ItemRecord(
                step=step,
                id=item.id,
                family_id=item.family_id,
                task=item.task,
                length=item.length,
                prompt_tokens=len(request.prompt_ids),
                output=completion.text,
                score=reward.score,
                parts=dict(reward.parts),
                truncated=completion.finish_reason == "length",
            )
        )
    return results


class HeldOut:
    """The held-out items of a run, evaluated on the engine's policy and kept in ``evals/heldout.jsonl``.

    Args:
        sampler: greedy.
        run_dir: the run's directory.
    """

    def __init__(self, config: Config, tokenizer: PreTrainedTokenizerBase, sampler: Sampler, run_dir: Path) -> None:
        self.tasks = config.eval.tasks
        self.lengths = config.eval.lengths
        self.first = config.eval.first
        self.tokenizer = tokenizer
        self.sampler = sampler
        self.path = run_dir / "evals" / f"{SUITE}.jsonl"
        self.rendered: dict[int, list[Example]] = {}

    def size(self, items: int) -> int:
        """Number of items in an evaluation with ``items`` per task and length."""
        return items * len(self.tasks) * len(self.lengths)

    def evaluate(self, engine: Engine, step: int, items: int) -> dict[str, float]:
        """Answer ``items`` items per task and length, keep the records, return the ``eval/`` metrics.

        Called by all ranks, which share the items and return the same metrics. The answer alone counts, without credit
        for evidence. Records of this and later steps are replaced.
        """
        examples = self._examples(items)
        mine = examples[distributed.rank() :: distributed.world_size()]
        with engine.full_weights() as policy:
            model = policy.model
            assert isinstance(model, PreTrainedModel)
            answered = evaluate(model, self.sampler, self.tokenizer, mine, grade, step=step)
        found = {record.id: record for record in distributed.gather(answered)}
        ordered = [found[example.id] for example in examples]
        if distributed.is_main():
            records.drop_after(self.path, step - 1)
            records.append(self.path, ordered)
        return summary.metrics(ordered, SUITE)

    def drop_after(self, step: int) -> None:
        """Remove the answers of later steps: of weights that are lost. Called by all ranks."""
        distributed.on_main(lambda: records.drop_after(self.path, step))

    def kept(self, step: int, items: int) -> dict[str, float] | None:
        """The metrics of an evaluation of this size if all its records were kept for this step. Called by all ranks."""
        answered = self._kept(step) if distributed.is_main() else []
        complete = len(answered) == self.size(items) > 0
        return distributed.broadcast(summary.metrics(answered, SUITE) if complete else None)

    def before_after(self, step: int) -> str:
        """The table of step 0 against ``step``, of the items that both have; empty if there are none."""
        if step == 0:
            return ""
        before = {record.id: record for record in self._kept(0)}
        after = [record for record in self._kept(step) if record.id in before]
        return summary.comparison([before[record.id] for record in after], after) if after else ""

    def _examples(self, items: int) -> list[Example]:
        if items not in self.rendered:
            self.rendered[items] = heldout_items(
                self.tokenizer, tasks=self.tasks, lengths=self.lengths, items=items, first=self.first
            )
        return self.rendered[items]

    def _kept(self, step: int) -> list[ItemRecord]:
        return [record for record in records.read(self.path) if record.step == step] if self.path.exists() else []
