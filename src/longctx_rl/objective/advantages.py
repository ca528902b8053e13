"""Group-relative advantages."""

from collections.abc import Sequence

from longctx_rl.objective.spec import Baseline

STD_FLOOR = 1e-4
"""Added to the standard deviation, as TRL does."""


def group_advantages(rewards: Sequence[float], *, baseline: Baseline, normalize_std: bool) -> tuple[float, ...]:
    """Return how much better each completion is than the others of its group.

    ``mean`` subtracts the group's mean (GRPO, arXiv 2402.03300, eq. 4), ``leave_one_out`` the mean of the others
    (RLOO, arXiv 2402.14740). ``normalize_std`` divides by the group's unbiased standard deviation; without it this is
    Dr. GRPO's advantage (arXiv 2503.20783). If all rewards are equal, the advantages are exactly zero.

    Args:
        rewards: [G] scores.

    Returns:
        [G] advantages.

    Raises:
        ValueError: fewer than two rewards.
    """
    count = len(rewards)
    if count < 2:
        raise ValueError("a group-relative advantage needs at least 2 completions: set algo.group_size=8")
    if min(rewards) == max(rewards):
        return (0.0,) * count
    mean = sum(rewards) / count
    centred = [reward - mean for reward in rewards]
    if baseline == "leave_one_out":
        centred = [value * count / (count - 1) for value in centred]
    if not normalize_std:
        return tuple(centred)
    std = (sum((reward - mean) ** 2 for reward in rewards) / (count - 1)) ** 0.5
    return tuple(value / (std + STD_FLOOR) for value in centred)
