"""Tests that compare two models on the same items, correction for multiple tests, and pass@k."""

from collections.abc import Hashable, Sequence

import numpy as np

RESAMPLES = 10_000
_CHUNK = 500


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Two-sided p-value of McNemar's exact test that two models solve equally many of the same independent items.

    Only items that exactly one of them solves count. Under the null hypothesis, either model is equally likely to have
    solved such an item.

    Source: Q. McNemar, Psychometrika 12 (1947); the exact form is the sign test of the discordant pairs.

    Args:
        first, second: [n] whether each item was solved, in the same order.

    Raises:
        ValueError: the lists differ in length.
    """
    from scipy.stats import binomtest

    if len(first) != len(second):
        raise ValueError(f"{len(first)} results cannot be paired with {len(second)}: pair the same items")
    pairs = list(zip(first, second, strict=True))
    won, lost = pairs.count((True, False)), pairs.count((False, True))
    return float(binomtest(won, won + lost).pvalue) if won + lost else 1.0


def permutation_test(
    differences: Sequence[float], families: Sequence[Hashable] | None = None, *, seed: int, resamples: int = RESAMPLES
) -> float:
    """Two-sided p-value of a paired mean difference, from random exchanges of the two models' labels within families.

    The observed labelling counts as one of the draws, so the p-value is never 0 and the test holds its level.

    Source: Fisher, "The Design of Experiments" (1935), section 21; Phipson and Smyth, SAGMB 9 (2010), for the draws.

    Args:
        differences: [n] second score minus first.
        families: [n] the family of each item; the labels of a family are exchanged together.

    Raises:
        ValueError: there are no differences, or the list of families has another length.
    """
    data = np.asarray(differences, dtype=np.float64)
    if not data.size or (families is not None and len(families) != data.size):
        raise ValueError(f"{data.size} differences: give at least one, and a family for each")
    if families is not None:
        numbers: dict[Hashable, int] = {}
        index = [numbers.setdefault(family, len(numbers)) for family in families]
        data = np.bincount(index, data).astype(np.float64)
    rng = np.random.default_rng(seed)
    observed = abs(data.sum()) - 1e-12 * abs(data).sum()  # rounding must not separate sums that are equal up to order
    extreme = 1
    for done in range(0, resamples, _CHUNK):
        signs = rng.integers(0, 2, size=(min(_CHUNK, resamples - done), data.size)) * 2.0 - 1.0
        extreme += int((abs(signs @ data) >= observed).sum())
    return extreme / (resamples + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted so that the probability of any false positive among them stays below the level.

    Source: S. Holm, Scandinavian Journal of Statistics 6 (1979).

    Returns:
        [n] adjusted values in the order of the input, at most 1.
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Unbiased estimate of the probability that at least one of ``k`` samples is right.

    With n ``samples`` of which c are ``right`` it is 1 - C(n - c, k) / C(n, k), as a product that does not overflow.

    Source: Chen et al., "Evaluating Large Language Models Trained on Code", arXiv 2107.03374, equation 1.

    Raises:
        ValueError: there are fewer samples than k, or the counts are impossible.
    """
    if not 1 <= k <= samples or not 0 <= right <= samples:
        raise ValueError(f"pass@{k} from {right} right of {samples} samples: give at least k samples")
    if samples - right < k:
        return 1.0
    return float(1.0 - np.prod(1.0 - k / np.arange(samples - right + 1, samples + 1)))
