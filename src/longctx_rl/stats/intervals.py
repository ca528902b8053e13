"""Intervals for accuracies and their differences.

Every interval is two-sided. Items of one family (the same question at several context lengths) are not independent, so
bootstrap resampling draws whole families.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
_CHUNK = 500
"""Resamples drawn at a time, which bounds the memory."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its interval. The bounds are nan where the data do not determine them."""

    value: float
    low: float
    high: float


def wilson(successes: int, n: int, confidence: float = 0.95) -> Estimate:
    """A proportion with Wilson's score interval, which keeps its coverage at small n and near 0 and 1.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927).

    Raises:
        ValueError: there are no trials, or more successes than trials.
    """
    if not 0 <= successes <= n or n == 0:
        raise ValueError(f"{successes} successes in {n} trials: give at least one trial, and at most as many successes")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = successes / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    # At 0 and at n successes one bound is exact, and rounding must not move it past the share.
    return Estimate(share, min(share, max(0.0, middle - half)), max(share, min(1.0, middle + half)))


def bootstrap_mean(
    values: Sequence[float],
    families: Sequence[Hashable] | None = None,
    *,
    seed: int,
    limits: tuple[float, float] = (0.0, 1.0),
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
) -> Estimate:
    """A mean with its percentile bootstrap interval.

    Families are drawn with replacement, as many as there are, each with all its values (the cluster bootstrap). With
    fewer than two families the bounds are nan. Where all families agree, resampling yields no spread. The interval then
    assumes that as large a share of families as Wilson's interval allows may lie at either limit.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), section 13.3; Davison and Hinkley,
    "Bootstrap Methods and their Application" (1997), section 3.8, for whole clusters.

    Args:
        values: [n].
        families: [n] the family of each value; None: every value is its own family.
        limits: smallest and largest possible value.

    Raises:
        ValueError: there are no values, a value is outside the limits or not finite, or the list of families has
            another length.
    """
    data = np.asarray(values, dtype=np.float64)
    if not data.size or not np.isfinite(data).all():
        raise ValueError(f"{data.size} values cannot be averaged: give at least one, all of them finite")
    if data.min() < limits[0] or data.max() > limits[1]:
        raise ValueError(f"values from {data.min()} to {data.max()} lie outside limits={limits}: give their limits")
    if families is not None and len(families) != data.size:
        raise ValueError(f"{data.size} values have {len(families)} families: name one family per value")
    sums, counts = _per_family(data, families)
    mean = float(data.mean())
    if sums.size < 2:
        return Estimate(mean, float("nan"), float("nan"))
    if np.ptp(sums / counts) == 0:
        unseen = wilson(0, sums.size, confidence).high
        return Estimate(mean, mean - unseen * (mean - limits[0]), mean + unseen * (limits[1] - mean))
    rng = np.random.default_rng(seed)
    means = []
    for done in range(0, resamples, _CHUNK):
        drawn = rng.integers(sums.size, size=(min(_CHUNK, resamples - done), sums.size))
        means.append(sums[drawn].sum(1) / counts[drawn].sum(1))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return Estimate(mean, float(low), float(high))


def paired_difference(
    before: Sequence[float],
    after: Sequence[float],
    families: Sequence[Hashable] | None = None,
    *,
    seed: int,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
) -> Estimate:
    """Mean of ``after - before`` over the same items, with the interval of ``bootstrap_mean``.

    Pairing removes the difficulty of the items from the variance.

    Args:
        before: [n] scores from 0 to 1.
        after: [n] scores of the same items in the same order.

    Raises:
        ValueError: the lists differ in length; see also ``bootstrap_mean``.
    """
    if len(before) != len(after):
        raise ValueError(f"{len(before)} scores before cannot be paired with {len(after)} after: pair the same items")
    differences = [late - early for early, late in zip(before, after, strict=True)]
    return bootstrap_mean(
        differences, families, seed=seed, limits=(-1.0, 1.0), confidence=confidence, resamples=resamples
    )


def detectable(difference: Estimate, *, power: float = 0.8, confidence: float = 0.95) -> float:
    """Minimum detectable difference: the smallest true difference that such a comparison detects with the given power.

    Computed from the width of the interval as for a normal estimate: (z_confidence + z_power) standard errors. nan if
    ``difference`` has no interval.
    """
    two_sided, one_sided = NormalDist().inv_cdf((1 + confidence) / 2), NormalDist().inv_cdf(power)
    return (difference.high - difference.low) / 2 * (1 + one_sided / two_sided)


def t_quantile(probability: float, freedom: float) -> float:
    """Quantile of Student's t distribution with ``freedom`` degrees of freedom."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, probability))


def _per_family(
    data: NDArray[np.float64], families: Sequence[Hashable] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum and number of values of each family, in the order in which families first appear."""
    if families is None:
        return data, np.ones_like(data)
    numbers: dict[Hashable, int] = {}
    index = np.array([numbers.setdefault(family, len(numbers)) for family in families])
    return np.bincount(index, data).astype(np.float64), np.bincount(index).astype(np.float64)
