"""Studies: several training runs (seeds) of each method, all judged by the same item families.

What is compared is a *contrast*, a sum of arms' means with signs: a method's gain, a difference of two gains, a
difference of differences. Two things vary: which families were asked, shared by all arms, and how each run turned out,
which is its own. An interval must allow for both, and for the few runs there are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student
from scipy.stats import trim_mean

from longctx_rl.stats.intervals import Estimate, wilson

Scores = NDArray[np.float64]
"""[S, F]: one arm's score of each run on each family."""
FLOOR = 0.25
"""Least variance of a contrast, as a share of what its families alone give."""


@dataclass(frozen=True, slots=True)
class Contrast:
    """A contrast with its uncertainty."""

    estimate: Estimate
    standard_error: float
    degrees_of_freedom: float
    p_value: float
    """Two-sided, of no difference."""
    minimum_detectable: float
    """The true difference that a study like this finds with 80 % power at the 5 % level."""


def contrast(arms: Sequence[Scores], *, reach: float = 1.0, confidence: float = 0.95, power: float = 0.8) -> Contrast:
    """Sum of the arms' means, with a t interval of both variances.

    Runs and families are two crossed random effects, y = mean + run + family + rest:

        variance = Var_f(z) / F + sum over arms of [Var_s(run means) - Var(rest) / F] / S

    with z the sum over arms of a family's mean. The bracket is the runs' own variance, which the first term lacks; arms
    of one run (a base model) have none. It may come out negative and then counts as such, which keeps the estimate
    without bias; only a sum below ``FLOOR`` of the first term is raised to that. The degrees of freedom are
    Satterthwaite's (Biometrics Bulletin 2, 1946), with the run means' variance as it is, noise included: three runs
    widen the interval as three runs must, also where they lie close together by chance. They are never below those of
    the arm with the fewest runs, which is the least that Satterthwaite's can be without negative parts.

    Args:
        arms: each [S, F], signs and weights folded in: a gain is ``[after, -before]``. Scores of several conditions of
            one run are combined into one arm first, so that what they share cancels. F is the same and in one order.
        reach: largest absolute value of a family's contrast: 1 for a difference of shares, 2 for one of differences.
            No interval goes beyond it.

    Raises:
        ValueError: no arms, different families, fewer than two families, values that are not finite.
    """
    data = [np.atleast_2d(np.asarray(arm, dtype=np.float64)) for arm in arms]
    if not data or len({arm.shape[1] for arm in data}) != 1 or data[0].shape[1] < 2:
        raise ValueError("a contrast needs arms with the same families, at least two of them")
    if not all(np.isfinite(arm).all() for arm in data):
        raise ValueError("a contrast needs a finite score for each run and family: fill or drop what is missing")
    families = data[0].shape[1]
    z = np.sum([arm.mean(0) for arm in data], 0)
    value, family_part = float(z.mean()), float(z.var(ddof=1) / families)
    variance = family_part
    uncertainty = family_part**2 / (families - 1)  # of the variance, in Satterthwaite's formula
    fewest = min((len(arm) for arm in data if len(arm) > 1), default=families)
    for arm in data:
        runs = arm.shape[0]
        if runs > 1:
            rest = arm - arm.mean(0) - arm.mean(1, keepdims=True) + arm.mean()
            noise = float((rest**2).sum() / ((runs - 1) * (families - 1)) / families)
            own = float(arm.mean(1).var(ddof=1))
            variance += (own - noise) / runs
            uncertainty += (own / runs) ** 2 / (runs - 1)
    variance = max(variance, FLOOR * family_part)
    if variance < 1e-20 * reach**2:  # every family and run agrees: as many as Wilson's interval allows may differ
        unseen = wilson(0, families, confidence).high * reach
        estimate = Estimate(value, max(value - unseen, -reach), min(value + unseen, reach))
        p_value = 1.0 if abs(value) < 1e-10 else min(1.0, 2.0 * 0.5**families)  # the sign test's
        return Contrast(estimate, 0.0, families - 1.0, p_value, unseen)
    freedom = max(variance**2 / uncertainty, fewest - 1.0)
    error = variance**0.5
    half = float(student.ppf((1 + confidence) / 2, freedom)) * error
    p_value = float(2 * student.sf(abs(value) / error, freedom))
    detectable = float(student.ppf((1 + confidence) / 2, freedom) + student.ppf(power, freedom)) * error
    estimate = Estimate(value, max(value - half, -reach), min(value + half, reach))
    return Contrast(estimate, error, freedom, p_value, detectable)


def hierarchical_bootstrap(
    statistic: Callable[[list[Scores]], float],
    arms: Sequence[Scores],
    *,
    seed: int,
    confidence: float = 0.95,
    resamples: int = 2_000,
) -> Estimate:
    """Any statistic of the arms, with the percentile interval of drawing runs within arms and families over all of
    them.

    With few runs it is too narrow: three runs drawn with replacement vary by two thirds of what runs vary, and
    percentiles know no t. Prefer ``contrast`` for whatever can be written as one; docs/evaluation.md has both
    coverages.
    """
    data = [np.atleast_2d(np.asarray(arm, dtype=np.float64)) for arm in arms]
    families = data[0].shape[1]
    rng = np.random.default_rng(seed)
    draws = np.empty(resamples)
    for index in range(resamples):
        chosen = rng.integers(families, size=families)
        draws[index] = statistic([arm[rng.integers(len(arm), size=len(arm))][:, chosen] for arm in data])
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Estimate(float(statistic(data)), float(low), float(high))


def retention_influence(long: Scores, short: Scores) -> tuple[float, Scores]:
    """P(pass long | pass short) and what each run and family adds to it, for ``contrast``.

    A ratio of means R = mean(long * short) / mean(short) moves by (long * short - R * short) / mean(short): the delta
    method. Adding R makes it an arm whose mean is R.

    Args:
        long, short: [S, F] shares of passed items of the same families, from 0 to 1.

    Raises:
        ValueError: nothing passes when short.
    """
    both, base = np.asarray(long) * np.asarray(short), float(np.mean(short))
    if base == 0.0:
        raise ValueError("retention is not defined: no item passes when its context is short")
    ratio = float(both.mean() / base)
    influence: Scores = ratio + (both - ratio * np.asarray(short)) / base
    return ratio, influence


def interquartile_mean(scores: Scores) -> float:
    """Mean of the middle half of all runs and tasks, [S, K]: less moved by one lucky run than the mean.

    Source: Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice", NeurIPS 2021.
    """
    return float(trim_mean(np.asarray(scores, dtype=np.float64), 0.25, axis=None))


def performance_profile(scores: Scores, thresholds: Sequence[float]) -> list[float]:
    """Share of runs and tasks, [S, K], whose score exceeds each threshold. Source: as ``interquartile_mean``."""
    data = np.asarray(scores, dtype=np.float64)
    return [float((data > threshold).mean()) for threshold in thresholds]
