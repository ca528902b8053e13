"""Studies: several training runs (seeds) of each method, all evaluated on the same item families.

A comparison is a *contrast*, a signed sum of the arms' means: a method's gain, a difference of two gains, a difference
of differences. Its variance has two sources: the sample of families, which all arms share, and the training runs, which
are independent. An interval must account for both, and for the small number of runs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from longctx_rl.stats.intervals import Estimate, t_quantile, wilson

Scores = NDArray[np.float64]
"""[S, F]: the score of each run of one arm on each family."""
FLOOR = 0.25
"""Lower bound on the variance of a contrast, as a share of the variance that its families alone contribute."""


@dataclass(frozen=True, slots=True)
class Contrast:
    """A contrast with its uncertainty."""

    estimate: Estimate
    standard_error: float
    degrees_of_freedom: float
    p_value: float
    """Two-sided, for the null hypothesis of no difference."""
    minimum_detectable: float
    """The true difference that a study of this design detects with 80 % power at the 5 % level."""


def contrast(arms: Sequence[Scores], *, reach: float = 1.0, confidence: float = 0.95, power: float = 0.8) -> Contrast:
    """Sum of the arms' means, with a t interval that accounts for both sources of variance.

    Runs and families are two crossed random effects, y = mean + run + family + rest:

        variance = Var_f(z) / F + sum over arms of [Var_s(run means) - Var(rest) / F] / S

    where z is the sum over arms of a family's mean. The bracket is the variance between runs, which the first term
    lacks; an arm of one run (a base model) contributes none. A negative estimate is kept as it is, which leaves the sum
    unbiased; only a sum below ``FLOOR`` times the first term is raised to that value. The degrees of freedom are
    Satterthwaite's (Biometrics Bulletin 2, 1946), computed from the variance of the run means including their noise, so
    that three runs widen the interval as three runs must even where they agree by chance. They are never fewer than
    those of the arm with the fewest runs, which is Satterthwaite's minimum when no component is negative.

    Args:
        arms: each [S, F], with signs and weights applied: a gain is ``[after, -before]``. Several conditions of the
            same runs are combined into one arm first, so that what they share cancels. All arms have the same F
            families in the same order.
        reach: largest absolute value of a family's contrast: 1 for a difference of shares, 2 for a difference of
            differences. No interval extends beyond it.

    Raises:
        ValueError: there are no arms, they have different families or fewer than two, or a value is not finite.
    """
    from scipy.special import stdtr

    data = [np.atleast_2d(np.asarray(arm, dtype=np.float64)) for arm in arms]
    if not data or len({arm.shape[1] for arm in data}) != 1 or data[0].shape[1] < 2:
        raise ValueError("a contrast needs arms with the same families, at least two of them")
    if not all(np.isfinite(arm).all() for arm in data):
        raise ValueError("a contrast needs a finite score for each run and family: fill or drop missing scores")
    families = data[0].shape[1]
    family_means = [arm.mean(0) for arm in data]
    z = np.sum(family_means, 0)
    value, family_part = float(z.mean()), float(z.var(ddof=1) / families)
    variance = family_part
    uncertainty = family_part**2 / (families - 1)  # the denominator of Satterthwaite's formula
    fewest = min((len(arm) for arm in data if len(arm) > 1), default=families)
    for arm, means in zip(data, family_means, strict=True):
        runs = arm.shape[0]
        if runs > 1:
            run_means = arm.mean(1)
            rest = arm - means - run_means[:, None] + arm.mean()
            noise = float((rest**2).sum() / ((runs - 1) * (families - 1)) / families)
            own = float(run_means.var(ddof=1))
            variance += (own - noise) / runs
            uncertainty += (own / runs) ** 2 / (runs - 1)
    variance = max(variance, FLOOR * family_part)
    if variance < 1e-20 * reach**2:  # every family and run agrees: allow as many to differ as Wilson's interval does
        unseen = wilson(0, families, confidence).high * reach
        estimate = Estimate(value, max(value - unseen, -reach), min(value + unseen, reach))
        p_value = 1.0 if abs(value) < 1e-10 else min(1.0, 2.0 * 0.5**families)  # the sign test's
        return Contrast(estimate, 0.0, families - 1.0, p_value, unseen)
    freedom = max(variance**2 / uncertainty, fewest - 1.0)
    error = variance**0.5
    quantile = t_quantile((1 + confidence) / 2, freedom)
    half = quantile * error
    p_value = float(2 * stdtr(freedom, -abs(value) / error))
    detectable = (quantile + t_quantile(power, freedom)) * error
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
    """Any statistic of the arms, with a percentile bootstrap interval: runs are drawn within arms, families across all.

    With few runs the interval is too narrow: resampling three runs reproduces two thirds of their variance, and
    percentiles make no small-sample correction as t does. Prefer ``contrast`` for any statistic that can be written as
    one; docs/evaluation.md gives the coverage of both.

    Args:
        statistic: a function of the resampled arms.
        arms: each [S, F], the same families in the same order.
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
    """P(pass long | pass short), and an arm of each run's and family's influence on it, for ``contrast``.

    By the delta method, the influence on a ratio of means R = mean(long * short) / mean(short) is
    (long * short - R * short) / mean(short). Adding R makes it an arm whose mean is R.

    Args:
        long, short: [S, F] shares of passed items of the same families, from 0 to 1.

    Returns:
        R, and the arm [S, F].

    Raises:
        ValueError: no item passes in the short condition.
    """
    both, base = np.asarray(long) * np.asarray(short), float(np.mean(short))
    if base == 0.0:
        raise ValueError("retention is not defined: no item passes when its context is short")
    ratio = float(both.mean() / base)
    influence: Scores = ratio + (both - ratio * np.asarray(short)) / base
    return ratio, influence


def interquartile_mean(scores: Scores) -> float:
    """Mean of the middle half of all scores, [S, K] runs by tasks: less sensitive to a single lucky run than the mean.

    Source: Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice", NeurIPS 2021.
    """
    from scipy.stats import trim_mean

    return float(trim_mean(np.asarray(scores, dtype=np.float64), 0.25, axis=None))


def performance_profile(scores: Scores, thresholds: Sequence[float]) -> list[float]:
    """Share of scores, [S, K] runs by tasks, above each threshold. Source: see ``interquartile_mean``."""
    data = np.asarray(scores, dtype=np.float64)
    return [float((data > threshold).mean()) for threshold in thresholds]
