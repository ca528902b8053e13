"""Coverage of intervals and false positive rates in simulated studies of three runs and 500 families.

    python experiments/bench/coverage.py [--studies 2000]

Item scores are 0 or 1, from logits that add family difficulty (sd 1.5), a run effect (sd as given) and their
interaction (sd 0.5). ``primary`` simulates studies of table1's design (five methods with five runs, 200 families in two
conditions, a base that is one model) in which long and short code improved equally or not at all, and counts the share
with any star for the primary quantity, by the report's rule. The coverage of ``contrast`` is measured on five times as
many studies, which gives it to within 0.2 points. Appends a line to results/coverage.jsonl.
"""

import argparse
import json
from datetime import date
from pathlib import Path

import numpy as np

from longctx_rl.stats import contrast, hierarchical_bootstrap, holm

RESULTS = Path(__file__).parent / "results" / "coverage.jsonl"
RUNS, FAMILIES, METHODS, EFFECT = 3, 500, 5, 0.3


def study(rng: np.random.Generator, spread: float, effects: list[float]) -> list[np.ndarray]:
    """Scores [S, F] of each method."""
    hard = rng.normal(0.0, 1.5, FAMILIES)
    return [scores(rng, hard, effect, spread, RUNS) for effect in effects]


def scores(rng: np.random.Generator, hard: np.ndarray, effect: float, spread: float, runs: int) -> np.ndarray:
    """Scores [S, F] of one method."""
    logits = effect + hard + rng.normal(0.0, spread, (runs, 1)) + rng.normal(0.0, 0.5, (runs, len(hard)))
    return (rng.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(float)


def starred(spread: float, effect: float, studies: int) -> float:
    """Share of studies with a star for long minus short code when both improve equally."""
    rng, stars = np.random.default_rng(2), 0
    for _ in range(studies):
        hard = rng.normal(0.0, 1.5, (2, 200))  # long, short
        base = [scores(rng, difficulty, 0.0, 0.0, 1) for difficulty in hard]
        p_values, gained = [], []
        for _ in range(METHODS):
            long, short = (scores(rng, difficulty, effect, spread, 5) for difficulty in hard)
            p_values.append(contrast([long - short, -(base[0] - base[1])], reach=2.0).p_value)
            gained.append(contrast([long, -base[0]]).estimate.low > 0.0)
        stars += any(p < 0.05 and also for p, also in zip(holm(p_values), gained, strict=True))
    return stars / studies


def truth(spread: float) -> float:
    draws = np.random.default_rng(99).normal(0.0, (1.5**2 + 0.5**2 + spread**2) ** 0.5, 4_000_000)
    return float((1 / (1 + np.exp(-(EFFECT + draws)))).mean() - (1 / (1 + np.exp(-draws))).mean())


def covered(spread: float, studies: int) -> dict[str, float]:
    """Shares of studies whose interval covers the true difference, and that detect any among five equal methods."""
    rng, value = np.random.default_rng(1), truth(spread)
    hits = {"contrast": 0, "hierarchical_bootstrap": 0}
    few, many = min(studies, 400), 5 * studies
    width = 0.0
    for index in range(many):
        better, base = study(rng, spread, [EFFECT, 0.0])
        ours = contrast([better, -base]).estimate
        hits["contrast"] += ours.low <= value <= ours.high
        width += (ours.high - ours.low) / many
        if index < few:
            plain = hierarchical_bootstrap(
                lambda arms: float(arms[0].mean() - arms[1].mean()), [better, base], seed=index, resamples=400
            )
            hits["hierarchical_bootstrap"] += plain.low <= value <= plain.high
    false_positives = 0
    for _ in range(studies):
        arms = study(rng, spread, [0.0] * METHODS)
        false_positives += min(holm([contrast([a, -b]).p_value for i, a in enumerate(arms) for b in arms[:i]])) <= 0.05
    return {
        "contrast": round(hits["contrast"] / many, 4),
        "mean_width": round(width, 4),
        "hierarchical_bootstrap": round(hits["hierarchical_bootstrap"] / few, 4),
        "any_of_ten_comparisons_under_no_effect": round(false_positives / studies, 4),
        "primary": {"gained_alike": starred(spread, EFFECT, studies), "not_gained": starred(spread, 0.0, studies)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=2000)
    options = parser.parse_args()
    row = {
        "date": date.today().isoformat(),
        "command": f"python experiments/bench/coverage.py --studies {options.studies}",
        "by_spread_of_runs": {str(spread): covered(spread, options.studies) for spread in (0.0, 0.1, 0.2, 0.3, 0.5)},
    }
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row, indent=2))


if __name__ == "__main__":
    main()
