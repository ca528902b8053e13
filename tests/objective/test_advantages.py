"""Group-relative advantages."""

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longctx_rl.objective.advantages import STD_FLOOR, Baseline, group_advantages

REWARDS = (1.0, 0.0, 0.25, 1.0, 0.5)
MODES: list[tuple[Baseline, bool]] = [
    ("mean", False),
    ("mean", True),
    ("leave_one_out", False),
    ("leave_one_out", True),
]


def test_mean_baseline_without_std() -> None:
    mean = statistics.fmean(REWARDS)
    assert group_advantages(REWARDS, baseline="mean", normalize_std=False) == pytest.approx([r - mean for r in REWARDS])


def test_std_is_the_unbiased_one_of_the_group() -> None:
    mean, std = statistics.fmean(REWARDS), statistics.stdev(REWARDS)
    expected = [(r - mean) / (std + STD_FLOOR) for r in REWARDS]
    assert group_advantages(REWARDS, baseline="mean", normalize_std=True) == pytest.approx(expected, rel=1e-12)


def test_leave_one_out_compares_with_the_others() -> None:
    expected = [r - statistics.fmean(REWARDS[:i] + REWARDS[i + 1 :]) for i, r in enumerate(REWARDS)]
    ours = group_advantages(REWARDS, baseline="leave_one_out", normalize_std=False)
    assert ours == pytest.approx(expected, rel=1e-12)


def test_leave_one_out_with_std_divides_by_the_same_std() -> None:
    plain = group_advantages(REWARDS, baseline="leave_one_out", normalize_std=False)
    std = statistics.stdev(REWARDS) + STD_FLOOR
    ours = group_advantages(REWARDS, baseline="leave_one_out", normalize_std=True)
    assert ours == pytest.approx([value / std for value in plain], rel=1e-12)


@pytest.mark.parametrize(("baseline", "normalize_std"), MODES)
@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1 * 3, 1 / 3, 0.7, 1e-12, -1e9])
@pytest.mark.parametrize("count", [2, 3, 7, 8])
def test_equal_rewards_give_exactly_zero(baseline: Baseline, normalize_std: bool, reward: float, count: int) -> None:
    """The mean of equal floats is not always that float: of three times 0.7 it is not."""
    ours = group_advantages([reward] * count, baseline=baseline, normalize_std=normalize_std)
    assert ours == (0.0,) * count


@pytest.mark.parametrize(("baseline", "normalize_std"), MODES)
def test_rewards_equal_up_to_rounding_are_not_blown_up(baseline: Baseline, normalize_std: bool) -> None:
    ours = group_advantages([0.3, 0.1 * 3, 0.3], baseline=baseline, normalize_std=normalize_std)
    assert max(map(abs, ours)) < 1e-11


@given(
    st.lists(st.floats(-10, 10), min_size=2, max_size=12),
    st.sampled_from(MODES),
    st.floats(-5, 5),
)
def test_advantages_sum_to_zero_and_ignore_an_offset(
    rewards: list[float], mode: tuple[Baseline, bool], offset: float
) -> None:
    baseline, normalize_std = mode
    ours = group_advantages(rewards, baseline=baseline, normalize_std=normalize_std)
    assert sum(ours) == pytest.approx(0.0, abs=1e-8)
    moved = group_advantages([r + offset for r in rewards], baseline=baseline, normalize_std=normalize_std)
    assert moved == pytest.approx(ours, abs=1e-8)


def test_one_completion_is_refused_with_the_fix() -> None:
    with pytest.raises(ValueError, match=r"at least 2 completions: set algo\.group_size=8"):
        group_advantages([1.0], baseline="mean", normalize_std=True)
