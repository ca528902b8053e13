"""The groups of one step, sampled from the policy and graded or read from the data set, and their packed rows."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from longctx_rl.config.schema import Config
from longctx_rl.data.packing import empty_row, pack, plan_rows, viewed
from longctx_rl.data.prompts import encode_text
from longctx_rl.data.source import TrainingSource, prompt_ids, recorded_group
from longctx_rl.data.views import KINDS, Views
from longctx_rl.engine import distributed
from longctx_rl.objective.advantages import STD_FLOOR, group_advantages
from longctx_rl.policy.scoring import num_pieces
from longctx_rl.rewards.composed import Answered, Rewarder
from longctx_rl.rewards.judge import GraderUnavailable
from longctx_rl.rollout import SampleRequest, sample_seed
from longctx_rl.training.parts import Parts
from longctx_rl.training.state import Stopwatch
from longctx_rl.types import Example, PackedGroups, Reward, RolloutGroup


def recorded_groups(
    source: TrainingSource, tokenizer: PreTrainedTokenizerBase, indices: Sequence[int], views: Views | None = None
) -> list[RolloutGroup]:
    """Return rows of the data set as groups of recorded completions, which need no grading."""
    documents = [(index, source.document(index)) for index in indices]
    return [with_views(views, recorded_group(tokenizer, examples), examples, index) for index, examples in documents]


GAPS = ("logprob_gap_evidence", "logprob_gap_other")
"""log p(teacher) - log p(student), in nats, of the tokens that occur in the evidence and not in the question, and of
the others; of groups whose completions answer one question."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """The groups that a step trains on, and what drawing them took."""

    groups: list[RolloutGroup]
    """This rank's, with rewards, advantages and views."""
    dropped: list[RolloutGroup]
    """This rank's groups with equal rewards that others replaced."""
    prompts: int
    """Documents drawn from the source, over all ranks."""


def sampled_groups(parts: Parts, first: int, step: int, watch: Stopwatch) -> Drawn:
    """Sample the completions of a step from the current policy. All ranks call this.

    Groups with equal rewards have no policy gradient. With ``algo.draws`` above 1, the next documents of the source
    take their places (dynamic sampling, DAPO, arXiv 2503.14476), at most that many for each place; the last one stays.
    Which documents are drawn depends on the rewards of all ranks, not on how prompts are dealt to them.

    Args:
        first: number of documents drawn so far.
        step: number of steps taken so far.
    """
    config, count = parts.config, parts.config.batch.prompts_per_step
    indices = {place: first + place for place in range(count)}
    groups: dict[int, RolloutGroup] = {}
    dropped: list[RolloutGroup] = []
    wanted, end = list(range(count)), first + count
    for draw in range(config.algo.draws):
        own = [place for place in wanted if place % distributed.world_size() == distributed.rank()]
        dropped += [groups[place] for place in own if draw]
        groups |= zip(own, rewarded(parts, [indices[place] for place in own], step, watch), strict=True)
        equal = [place for place in own if has_equal_rewards(groups[place])]
        wanted = sorted(distributed.gather(equal)) if draw + 1 < config.algo.draws else []
        if not wanted:
            break
        indices |= {place: end + offset for offset, place in enumerate(wanted)}
        end += len(wanted)
    kept = [groups[place] for place in sorted(groups)]
    if config.algo.weights.pg:
        kept = with_advantages(config, kept)
    with watch("teacher"):
        kept = [
            with_views(parts.views, group, [group.example], indices[place])
            for place, group in zip(sorted(groups), kept, strict=True)
        ]
    return Drawn(kept, dropped, end - first)


def has_equal_rewards(group: RolloutGroup) -> bool:
    """Whether a group has no policy gradient."""
    scores = [reward.score for reward in group.rewards]
    return min(scores) == max(scores)


def rewarded(parts: Parts, indices: Sequence[int], step: int, watch: Stopwatch) -> list[RolloutGroup]:
    """Sample completions of some documents and grade them. All ranks call this.

    Args:
        indices: global numbers of this rank's prompts. They seed the sampler, so that a resumed run, or a run on
            another number of ranks, samples the same completions.
    """
    examples = [parts.source.document(index)[0] for index in indices]
    requests = requests_of(parts, examples, indices, step)
    with watch("rollout"):
        if parts.ahead is None:
            drawn = parts.sampler.sample(requests)
            drawn = [tuple(replace(completion, policy_version=step) for completion in group) for group in drawn]
        else:
            later = [index + parts.config.batch.prompts_per_step for index in indices]
            then = requests_of(parts, [parts.source.document(index)[0] for index in later], later, step + 1)
            drawn = parts.ahead.sample(requests, None if step + 1 == parts.config.budget.steps else then, step)
    groups = [
        RolloutGroup(example, request.prompt_ids, group)
        for example, request, group in zip(examples, requests, drawn, strict=True)
    ]
    with watch("reward"):
        return graded(parts.rewarder, groups)


def requests_of(parts: Parts, examples: Sequence[Example], indices: Sequence[int], step: int) -> list[SampleRequest]:
    """Return the requests of some documents' first questions in a step."""
    config = parts.config
    return [
        SampleRequest(
            prompt_ids(parts.tokenizer, example),
            tuple(sample_seed(config.seed, step, index, i) for i in range(config.algo.group_size)),
        )
        for index, example in zip(indices, examples, strict=True)
    ]


def graded(rewarder: Rewarder, groups: Sequence[RolloutGroup]) -> list[RolloutGroup]:
    """Return the groups with rewards. All ranks call this.

    Raises:
        GraderUnavailable: a rank cannot get a score; raised on every rank.
    """
    answered = [
        Answered(completion.text, len(completion.token_ids), group.example)
        for group in groups
        for completion in group.completions
    ]
    rewards: list[Reward] = distributed.together(lambda: rewarder(answered), GraderUnavailable)
    remaining = iter(rewards)
    return [replace(group, rewards=tuple(next(remaining) for _ in group.completions)) for group in groups]


def with_advantages(config: Config, groups: Sequence[RolloutGroup]) -> list[RolloutGroup]:
    """Return the groups with advantages computed from their rewards. All ranks call this."""
    per_task = config.reward.normalize_per_task
    spread = task_spread(groups) if per_task else {}
    result = []
    for group in groups:
        advantages = group_advantages(
            [reward.score for reward in group.rewards],
            baseline=config.algo.baseline,
            normalize_std=config.algo.normalize_std and not per_task,
        )
        scale = spread[group.example.task] + STD_FLOOR if per_task else 1.0
        result.append(replace(group, advantages=tuple(value / scale for value in advantages)))
    return result


def task_spread(groups: Sequence[RolloutGroup]) -> dict[str, float]:
    """Return the unbiased standard deviation of each task's scores over all ranks."""
    local_scores: dict[str, list[float]] = {}
    for group in groups:
        local_scores.setdefault(group.example.task, []).extend(reward.score for reward in group.rewards)
    scores: dict[str, list[float]] = {}
    for task, values in distributed.gather(list(local_scores.items())):
        scores.setdefault(task, []).extend(values)
    return {task: statistics.stdev(values) for task, values in scores.items()}


def with_views(views: Views | None, group: RolloutGroup, examples: Sequence[Example], index: int) -> RolloutGroup:
    """Return the group with the prompts that the teacher reads, if it reads its own.

    Args:
        examples: the questions of the group; one, if all completions answer the same.
        index: the group's document in the source.
    """
    if views is None:
        return group
    prompts = [views.prompt(example, index) for example in examples]
    kinds = tuple(prompt.kind for prompt in prompts)
    return replace(group, views=tuple(prompt.ids for prompt in prompts), view_kinds=kinds)


def packed_in_step(
    groups: Sequence[RolloutGroup], row_tokens: int, chunk: int, device: torch.device
) -> list[tuple[PackedGroups, PackedGroups | None]]:
    """Pack this rank's groups into rows such that all ranks run the same modules in the same order.

    All ranks return the same number of rows, padded with empty ones. Each row is scored in as many pieces as the rank
    with the most loss tokens needs.

    Returns:
        Pairs of a row, and the same loss tokens in the same order after the teacher's prompts; None where the teacher
        reads the student's, or nothing.
    """
    plan = [[groups[index] for index in row] for row in plan_rows(groups, row_tokens)]
    rows = [pack(row, device) for row in plan]
    longest = int(distributed.all_reduce_max({"rows": len(rows)})["rows"])
    rows += [empty_row(device) for _ in range(longest - len(rows))]
    needed = {str(index): num_pieces(row.num_loss_tokens, chunk) for index, row in enumerate(rows)}
    agreed = distributed.all_reduce_max(needed)
    rows = [replace(row, score_pieces=int(agreed[str(index)])) for index, row in enumerate(rows)]
    read: list[PackedGroups | None] = [
        replace(pack(viewed(row), device), score_pieces=packed.score_pieces) if row[0].views else None
        for row, packed in zip(plan, rows, strict=False)
    ]
    return list(zip(rows, [*read, *[None] * (longest - len(read))], strict=True))


def with_teacher_gaps(groups: Sequence[RolloutGroup], gaps: Tensor, first: int) -> list[RolloutGroup]:
    """Return the ``first`` groups with each token's gap to the teacher.

    Args:
        groups: all sampled groups of this rank and step.
        gaps: log p(student) - log p(teacher) of all their tokens in order, [T].
    """
    assert len(gaps) == sum(len(completion.token_ids) for group in groups for completion in group.completions)
    known = iter(
        gaps[: sum(len(completion.token_ids) for group in groups[:first] for completion in group.completions)].tolist()
    )
    return [
        replace(
            group,
            completions=tuple(
                replace(completion, teacher_gap=tuple(next(known) for _ in completion.token_ids))
                for completion in group.completions
            ),
        )
        for group in groups[:first]
    ]


def view_sums(groups: Sequence[RolloutGroup], gaps: Tensor, tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
    """Return sums over this rank's views. Added over ranks, they are the input of ``view_metrics``.

    Args:
        gaps: those of ``update``, log p(student) - log p(teacher) of the groups' loss tokens in order.
    """
    names = ("views", "tokens", *GAPS, *(f"{name}_count" for name in GAPS), *(f"kind_{kind}" for kind in KINDS))
    sums = dict.fromkeys(names, 0.0)
    remaining = iter(gaps.tolist())
    for group in groups:
        told = evidence_ids(group.example, tokenizer)
        for completion in group.completions:
            mask = completion.loss_mask or (True,) * len(completion.token_ids)
            for token in (token for token, counts in zip(completion.token_ids, mask, strict=True) if counts):
                gap = next(remaining)
                if len(group.views) == 1:
                    name = GAPS[0] if token in told else GAPS[1]
                    sums[name] -= gap
                    sums[f"{name}_count"] += 1
        sums["views"] += len(group.views)
        sums["tokens"] += sum(map(len, group.views))
        for kind in group.view_kinds:
            sums[f"kind_{kind}"] += 1
    return sums


def view_metrics(sums: dict[str, float]) -> dict[str, float]:
    """Return the ``view/`` metrics from sums over all ranks: mean prompt length, and the share of each kind of view."""
    kinds = {f"view/{kind}_frac": sums[f"kind_{kind}"] / sums["views"] for kind in KINDS if sums[f"kind_{kind}"]}
    gaps = {f"teacher/{name}": sums[name] / sums[f"{name}_count"] for name in GAPS if sums[f"{name}_count"]}
    return {"view/prompt_tokens": sums["tokens"] / sums["views"], **kinds, **gaps}


def evidence_ids(example: Example, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the tokens that occur in the evidence's statements and not in the question, function words included."""
    told = {token for item in example.evidence for token in encode_text(tokenizer, f" {item.statement}")}
    return frozenset(told.difference(encode_text(tokenizer, f" {example.question}")))


def rollout_sums(groups: Sequence[RolloutGroup]) -> dict[str, float]:
    """Return sums over this rank's sampled groups. Added over ranks, they are the input of ``rollout_metrics``."""
    sums = {"groups": 0.0, "completions": 0.0, "reward": 0.0, "std": 0.0, "zero_std": 0.0, "tokens": 0.0, "cut": 0.0}
    for group in groups:
        scores = [reward.score for reward in group.rewards]
        mean = sum(scores) / len(scores)
        sums["groups"] += 1
        sums["completions"] += len(scores)
        sums["reward"] += sum(scores)
        sums["std"] += (sum((score - mean) ** 2 for score in scores) / max(len(scores) - 1, 1)) ** 0.5
        sums["zero_std"] += has_equal_rewards(group)
        sums["tokens"] += sum(len(completion.token_ids) for completion in group.completions)
        sums["cut"] += sum(completion.finish_reason == "length" for completion in group.completions)
        for reward in group.rewards:
            for name, value in reward.parts.items():
                sums[f"part_{name}"] = sums.get(f"part_{name}", 0.0) + value
                sums[f"count_{name}"] = sums.get(f"count_{name}", 0.0) + 1
    return sums


def rollout_metrics(sums: dict[str, float]) -> dict[str, float]:
    """Return the ``rollout/`` metrics from sums over all ranks."""
    metrics = {
        "rollout/reward_mean": sums["reward"] / sums["completions"],
        "rollout/reward_std": sums["std"] / sums["groups"],
        "rollout/zero_std_groups": sums["zero_std"] / sums["groups"],
        "rollout/length_mean": sums["tokens"] / sums["completions"],
        "rollout/truncated_frac": sums["cut"] / sums["completions"],
    }
    parts = [name.removeprefix("part_") for name in sums if name.startswith("part_")]
    return metrics | {f"rollout/reward_{name}": sums[f"part_{name}"] / sums[f"count_{name}"] for name in parts}
