"""Held-out accuracy: every item answered once and graded."""

from collections.abc import Callable, Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from longctx_rl.data.prompts import encode_prompt
from longctx_rl.evals.records import ItemRecord
from longctx_rl.rollout import SampleRequest, Sampler
from longctx_rl.types import Example, Reward


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

    Items that share a document follow one prefix, which the sampler computes once. With several ranks each takes
    ``items[rank::world_size]``, and the caller gathers the records.

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
    records = []
    for item, request, (completion,) in zip(items, requests, sampler.sample(model, requests), strict=True):
        reward = grade(completion.text, item)
        records.append(
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
    return records
