"""The groups of one step, sampled from the policy and graded or read from the data set, and their packed rows."""

import statistics
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from longctx_rl.config.schema import Config
from longctx_rl.data.packing import empty_row, pack, plan_rows
from longctx_rl.data.source import TrainingSource, prompt_ids, recorded_group
from longctx_rl.engine import distributed
from longctx_rl.objective.advantages import STD_FLOOR, group_advantages
from longctx_rl.policy.scoring import num_pieces
from longctx_rl.rewards.composed import Answered, Rewarder
from longctx_rl.rewards.judge import GraderUnavailable
from longctx_rl.rollout import SampleRequest, sample_seed
from longctx_rl.training.parts import Parts
from longctx_rl.training.state import Stopwatch
from longctx_rl.types import PackedGroups, Reward, RolloutGroup


def recorded_groups(
    source: TrainingSource, tokenizer: PreTrainedTokenizerBase, indices: Sequence[int]
) -> list[RolloutGroup]:
    """Return rows of the data set as groups of recorded completions, which need no grading."""
    return [recorded_group(tokenizer, source.document(index)) for index in indices]


def sampled_groups(parts: Parts, indices: Sequence[int], step: int, watch: Stopwatch) -> list[RolloutGroup]:
    """Sample completions from the current policy, and return them with rewards and advantages.

    Args:
        indices: global numbers of this rank's prompts. They seed the sampler, so that a resumed run, or a run on
            another number of ranks, samples the same completions.
        step: number of steps taken so far.
    """
    config = parts.config
    examples = [parts.source.document(index)[0] for index in indices]
    requests = [
        SampleRequest(
            prompt_ids(parts.tokenizer, example),
            tuple(sample_seed(config.seed, step, index, i) for i in range(config.algo.group_size)),
        )
        for index, example in zip(indices, examples, strict=True)
    ]
    with watch("rollout"), parts.engine.full_weights() as policy:
        completions = parts.sampler.sample(policy.model, requests)  # type: ignore[arg-type]
    groups = [
        RolloutGroup(
            example, request.prompt_ids, tuple(replace(completion, policy_version=step) for completion in group)
        )
        for example, request, group in zip(examples, requests, completions, strict=True)
    ]
    with watch("reward"):
        return graded(config, parts.rewarder, groups)


def graded(config: Config, rewarder: Rewarder, groups: Sequence[RolloutGroup]) -> list[RolloutGroup]:
    """Return the groups with rewards, and with advantages if the method uses them. All ranks call this.

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
    scored = [replace(group, rewards=tuple(next(remaining) for _ in group.completions)) for group in groups]
    return with_advantages(config, scored) if config.algo.weights.pg else scored


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


def packed_in_step(
    groups: Sequence[RolloutGroup], row_tokens: int, chunk: int, device: torch.device
) -> list[PackedGroups]:
    """Pack this rank's groups into rows such that all ranks run the same modules in the same order.

    All ranks return the same number of rows, padded with empty ones. Each row is scored in as many pieces as the rank
    with the most loss tokens needs.
    """
    rows = [pack([groups[index] for index in row], device) for row in plan_rows(groups, row_tokens)]
    longest = int(distributed.all_reduce_max({"rows": len(rows)})["rows"])
    rows += [empty_row(device) for _ in range(longest - len(rows))]
    needed = {str(index): num_pieces(row.num_loss_tokens, chunk) for index, row in enumerate(rows)}
    agreed = distributed.all_reduce_max(needed)
    return [replace(row, score_pieces=int(agreed[str(index)])) for index, row in enumerate(rows)]


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
        sums["zero_std"] += min(scores) == max(scores)
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
