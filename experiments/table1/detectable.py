"""Minimum detectable differences of the study's design, computed before any of its runs.

    python experiments/table1/detectable.py      # the table in experiments/table1/README.md, in seconds

Simulates studies without any effect. Families differ in difficulty (standard deviation 1.5 on the logit scale, half of
all answers right), runs of a method differ by the standard deviation in the second column, and answers are sampled.
Prints the mean over 400 studies of the contrast's own minimum detectable difference (80 % power at the 5 % level), in
points. Scores nearer to 0 or 1 vary less, so these values are conservative.
"""

import numpy as np
from numpy.typing import NDArray

from longctx_rl.stats.studies import contrast

STUDIES = 400
DESIGNS = {"table1: 5 seeds, 200 items": (5, 200), "table2, table3: 3 seeds, 100 items": (3, 100)}


def answers(rng: np.random.Generator, hard: NDArray[np.float64], runs: int, spread: float) -> NDArray[np.float64]:
    """Answers [runs, families], 1 for right. ``spread`` is the standard deviation of the runs' accuracy."""
    slope = float(np.mean(np.exp(hard) / (1 + np.exp(hard)) ** 2))  # accuracy per unit of logit, where half is right
    logit = hard + rng.normal(0, spread / slope, (runs, 1))
    return (rng.random((runs, len(hard))) < 1 / (1 + np.exp(-logit))).astype(np.float64)


def main() -> None:
    print("| design | runs differ by | gain over the base | two methods | long minus short code, gain over the base |")
    print("|---|---|---|---|---|")
    for design, (runs, families) in DESIGNS.items():
        for spread in (0.02, 0.05, 0.10):
            rng = np.random.default_rng(0)
            detectable = []
            for _ in range(STUDIES):
                hard = rng.normal(0, 1.5, families)
                arms = [answers(rng, hard, runs, spread) for _ in range(4)]
                base = [answers(rng, hard, 1, 0.0) for _ in range(2)]
                contrasts = (
                    contrast([arms[0], -base[0]]),
                    contrast([arms[0], -arms[1]]),
                    contrast([arms[0] - arms[2], base[1] - base[0]], reach=2.0),
                )
                detectable.append([comparison.minimum_detectable for comparison in contrasts])
            cells = " | ".join(f"{100 * value:.1f}" for value in np.mean(detectable, 0))
            print(f"| {design} | {100 * spread:.0f} | {cells} |")


if __name__ == "__main__":
    main()
