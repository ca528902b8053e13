"""Paired tests, Holm and pass@k against scipy, hand-computed values and enumeration."""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import binomtest, false_discovery_control, ttest_1samp

from longctx_rl.stats import holm, mcnemar, pass_at_k, permutation_test


def test_mcnemar_is_the_sign_test_of_discordant_items() -> None:
    first = [True] * 12 + [False] * 3 + [True] * 40 + [False] * 20
    second = [False] * 12 + [True] * 3 + [True] * 40 + [False] * 20
    assert mcnemar(first, second) == pytest.approx(binomtest(12, 15).pvalue)
    # By hand: 2 * (C(15,12) + C(15,13) + C(15,14) + C(15,15)) / 2^15
    assert mcnemar(first, second) == pytest.approx(2 * (455 + 105 + 15 + 1) / 2**15)
    assert mcnemar([True, False], [True, False]) == 1.0
    with pytest.raises(ValueError, match="pair the same items"):
        mcnemar([True], [])


def test_permutation_test_counts_all_labellings() -> None:
    differences = [1.0, 1.0, 1.0, 1.0, 1.0, -1.0, 1.0, 1.0]
    sums = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in itertools.product((1, -1), repeat=8)
    ]
    exact = sum(one >= 6 for one in sums) / len(sums)
    assert permutation_test(differences, seed=0, resamples=40_000) == pytest.approx(exact, abs=0.005)


def test_permutation_test_exchanges_families_whole() -> None:
    differences = [1.0] * 12
    alone, together = (
        permutation_test(differences, seed=0),
        permutation_test(differences, ["a"] * 6 + ["b"] * 6, seed=0),
    )
    assert alone < 0.01 and together == pytest.approx(0.5, abs=0.02)
    assert permutation_test([0.0, 0.0], seed=0) == 1.0


def test_permutation_test_holds_its_level() -> None:
    rng = np.random.default_rng(0)
    found = [permutation_test(rng.choice([-1.0, 0.0, 0.0, 1.0], 40), seed=i, resamples=400) for i in range(600)]
    assert np.mean(np.array(found) <= 0.05) <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 600)


def test_permutation_test_agrees_with_the_t_test_on_normal_data() -> None:
    data = np.random.default_rng(3).normal(0.25, 1.0, 60)
    expected = ttest_1samp(data, 0.0).pvalue
    assert 0.02 < expected < 0.5
    assert permutation_test(data.tolist(), seed=0, resamples=40_000) == pytest.approx(expected, abs=0.02)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
    draws = np.random.default_rng(0).random(20)
    assert all(a >= b for a, b in zip(holm(draws.tolist()), false_discovery_control(draws), strict=True))


@pytest.mark.parametrize(("n", "c", "k"), [(1, 0, 1), (1, 1, 1), (10, 3, 1), (10, 3, 5), (10, 9, 2), (200, 7, 100)])
def test_pass_at_k_is_the_share_of_subsets(n: int, c: int, k: int) -> None:
    assert pass_at_k(n, c, k) == pytest.approx(1 - math.comb(n - c, k) / math.comb(n, k))
    if n <= 10:
        subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
        assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


@pytest.mark.parametrize(("n", "c", "k"), [(2, 1, 3), (2, 3, 1), (2, -1, 1), (0, 0, 1), (2, 1, 0)])
def test_pass_at_k_refuses(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match=rf"pass@{k} from {c} right of {n} samples: give at least k samples"):
        pass_at_k(n, c, k)
