"""Intervals against hand-computed values, scipy, and what they promise: coverage."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest, bootstrap

from longctx_rl.stats import Estimate, bootstrap_mean, detectable, paired_difference, wilson


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (1, 1), (0, 10), (7, 10), (10, 10), (431, 500), (1, 1000)])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_wilson_equals_scipy(successes: int, n: int, confidence: float) -> None:
    ours = wilson(successes, n, confidence)
    theirs = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)
    assert ours.low <= ours.value == successes / n <= ours.high


def test_wilson_by_hand() -> None:
    # 8 of 10: centre (0.8 + 3.8415 / 20) / 1.38415 = 0.71674, half-width 0.22678.
    estimate = wilson(8, 10)
    assert (estimate.low, estimate.high) == pytest.approx((0.49016, 0.94332), abs=1e-4)


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (3, 2), (-1, 2)])
def test_wilson_refuses_impossible_counts(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match=rf"{successes} successes in {n} trials: give at least one trial"):
        wilson(successes, n)


def test_bootstrap_agrees_with_scipy() -> None:
    values = np.random.default_rng(0).beta(2, 1, 120)
    ours = bootstrap_mean(values.tolist(), seed=1)
    theirs = bootstrap((values,), np.mean, method="percentile", n_resamples=10_000, rng=2).confidence_interval
    assert ours.value == pytest.approx(values.mean())
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.004)


def test_bootstrap_repeats_with_its_seed() -> None:
    values = [0.0, 0.5, 1.0, 0.25]
    assert bootstrap_mean(values, seed=3) == bootstrap_mean(values, seed=3)


def test_family_bootstrap_keeps_families_whole() -> None:
    # Two families: a resample is (a, a), (b, b) or one of each, so its mean is 0, 1 or the pooled mean.
    estimate = bootstrap_mean([0.0, 0.0, 1.0, 1.0], ["a", "a", "b", "b"], seed=0)
    assert (estimate.value, estimate.low, estimate.high) == (0.5, 0.0, 1.0)
    # Families of unequal size weigh by their size: one of each is 1/4, not 1/2.
    estimate = bootstrap_mean([1.0, 0.0, 0.0, 0.0], ["a", "b", "b", "b"], seed=0, confidence=0.4)
    assert (estimate.value, estimate.low, estimate.high) == (0.25, 0.25, 0.25)


def test_copies_within_a_family_add_no_certainty() -> None:
    values = np.random.default_rng(1).random(40).tolist()
    single = bootstrap_mean(values, seed=0)
    copied = bootstrap_mean(np.repeat(values, 4).tolist(), np.repeat(np.arange(40), 4).tolist(), seed=0)
    assert (copied.low, copied.high) == pytest.approx((single.low, single.high))


def test_one_family_has_no_interval() -> None:
    estimate = bootstrap_mean([1.0, 0.0], ["a", "a"], seed=0)
    assert estimate.value == 0.5 and math.isnan(estimate.low) and math.isnan(estimate.high)


def test_items_that_all_agree_are_no_proof() -> None:
    """As wide as Wilson's interval where none of the families was seen to differ, not of width zero."""
    unseen = wilson(0, 20).high
    nothing = paired_difference([0.5] * 20, [0.5] * 20, seed=0)
    assert (nothing.value, nothing.low, nothing.high) == pytest.approx((0.0, -unseen, unseen))
    for value in (0.0, 1.0):
        ours, counted = bootstrap_mean([value] * 20, seed=0), wilson(int(20 * value), 20)
        assert (ours.low, ours.high) == pytest.approx((counted.low, counted.high))


def test_bootstrap_refuses_what_it_cannot_average() -> None:
    with pytest.raises(ValueError, match=r"0 values .*: give at least one"):
        bootstrap_mean([], seed=0)
    with pytest.raises(ValueError, match="all of them finite"):
        bootstrap_mean([1.0, math.nan], seed=0)
    with pytest.raises(ValueError, match=r"1\.0 to 1\.5 .*limits=\(0\.0, 1\.0\): give"):
        bootstrap_mean([1.0, 1.5], seed=0)
    with pytest.raises(ValueError, match="one family per value"):
        bootstrap_mean([1.0, 0.0], ["a"], seed=0)


def test_pairing_removes_the_items_own_difficulty() -> None:
    rng = np.random.default_rng(2)
    before = rng.random(200)
    after = before + 0.02 + 0.01 * rng.standard_normal(200)
    estimate = paired_difference(before.tolist(), after.tolist(), seed=0)
    assert estimate.value == pytest.approx(float((after - before).mean()))
    assert 0.015 < estimate.low < estimate.high < 0.025
    with pytest.raises(ValueError, match="pair the same items"):
        paired_difference([1.0], [1.0, 0.0], seed=0)


def test_what_a_comparison_can_find() -> None:
    """Of two-sided tests at 5 % with 80 % power: (1.960 + 0.842) standard errors."""
    assert detectable(Estimate(0.3, 0.3 - 0.196, 0.3 + 0.196)) == pytest.approx(0.2802, abs=1e-4)
    draws = np.random.default_rng(0).normal(0.2802, 0.1, 20_000)
    assert np.mean(np.abs(draws) > 0.196) == pytest.approx(0.8, abs=0.01)


def test_coverage() -> None:
    rng = np.random.default_rng(4)
    hits = sum((i := wilson(int(rng.binomial(40, 0.85)), 40)).low <= 0.85 <= i.high for _ in range(400))
    assert 0.92 <= hits / 400 <= 0.99
    # 60 families of 3 items that share a difficulty; the mean over families is 0.5.
    hits = 0
    for trial in range(300):
        values = np.repeat(rng.random(60), 3) * 0.8 + 0.2 * rng.random(180)
        estimate = bootstrap_mean(values.tolist(), np.repeat(np.arange(60), 3).tolist(), seed=trial, resamples=500)
        hits += estimate.low <= 0.5 <= estimate.high
    assert 0.90 <= hits / 300 <= 0.98
