"""Do engines matter? A seed of each of table1's methods on ZeRO-3, compared item by item with the run on engine=local.

    python experiments/engines/compare.py       # from the committed results of both; writes comparison.jsonl

A line for each method: how many items of the final evaluation are answered equally well on both engines, and, as a
yardstick, by two seeds on one engine. Then a line for each column of the tables: ZeRO-3 minus local in percentage
points, mean and 95 % interval over the methods.
"""

import json
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from longctx_rl.report import results
from longctx_rl.report.readings import final as last
from longctx_rl.report.results import Result
from longctx_rl.report.study import COLUMNS, METHODS, arms
from longctx_rl.stats import t_quantile

HERE = Path(__file__).parent
COMPARISON = HERE / "comparison.jsonl"


def final(run: Result) -> dict[tuple[str, str, int, str], float]:
    """The score of each family of each cell at the end of a run."""
    return {
        (*cell, family): score
        for cell, answered in run.cells.items()
        for family, score in answered.scores[run.steps[-1]].items()
    }


def agreement(first: Result, second: Result) -> tuple[int, float]:
    """Number of families that both answered, and the share that got the same score."""
    one, two = final(first), final(second)
    both = one.keys() & two.keys()
    return len(both), fmean(one[key] == two[key] for key in both)


def main() -> None:
    local = {(run.algo, run.seed): run for run in results.read_all(HERE.parent / "table1" / "results")}
    sharded = {run.algo: run for run in results.read_all(HERE / "results") if run.trained}
    methods = [method for method in METHODS if method in sharded]
    lines: list[dict[str, Any]] = []
    for method in methods:
        items, engines = agreement(local[method, 0], sharded[method])
        _, seeds = agreement(local[method, 0], local[method, 1])
        lines.append(
            {
                "method": method,
                "items": items,
                "same_score_on_both_engines": round(engines, 4),
                "same_score_with_two_seeds": round(seeds, 4),
                "steps": [run.steps[-1] for run in (local[method, 0], sharded[method])],
            }
        )
    for column in COLUMNS:
        pairs = [arms([[sharded[method]], [local[method, 0]]], column, last) for method in methods]
        differences = [100 * float(pair[0].mean() - pair[1].mean()) for pair in pairs if pair is not None]
        if len(differences) < len(methods):
            continue
        mean, half = fmean(differences), t_quantile(0.975, len(methods) - 1) * stdev(differences) / len(methods) ** 0.5
        interval = [round(mean - half, 2), round(mean + half, 2)]
        lines.append({"column": column.title, "zero3_minus_local": round(mean, 2), "interval": interval})
    COMPARISON.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    print("\n".join(map(json.dumps, lines)))


if __name__ == "__main__":
    main()
