"""Numbers of the page: the estimates of the study's tables, and maps over length and depth."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from longctx_rl.evals.records import ItemRecord
from longctx_rl.report.collect import cells_of, costs_at
from longctx_rl.report.page.arms import Arm
from longctx_rl.report.page.series import rounded
from longctx_rl.report.page.starts import Evals, Fixed, common, labels
from longctx_rl.report.results import Result
from longctx_rl.report.runs import Run
from longctx_rl.report.study import Column, Value, columns_of, difference, level
from longctx_rl.stats import Estimate

DEPTHS = 5
"""Number of equal stretches of a document in a map."""
COSTS = {"step": "steps", "trained_tokens": "trained tokens", "flops": "FLOPs", "wall_seconds": "seconds"}


def result_of(run: Run, evals: Evals) -> Result:
    """A run as the study's estimates need it."""
    cells = cells_of(evals)
    steps = {step for cell in cells.values() for step in cell.scores}
    return Result(name=run.name, algo=run.algo, seed=run.seed, costs=costs_at(run.metrics, steps), cells=cells)


def table(
    arms: Sequence[Arm],
    counted: Sequence[Sequence[int]],
    results: Sequence[Result],
    runs: Sequence[Run],
    starts: Sequence[Fixed | None],
    fixed: Sequence[Fixed],
) -> dict[str, Any]:
    """The results table: columns, and a row for each arm and each untrained model with scores, gains and costs.

    Args:
        counted: for each arm the indices of the runs that count: the finished ones, if there are any.
        starts: for each run the evaluation of its student before training.
    """
    groups = [("main", columns_of(results)), ("each task and length", _cells(results))]
    columns = [column for _, columns in groups for column in columns]
    still = labels(starts)
    still |= {weights: weights.name for weights in fixed if weights not in still}
    rows: list[dict[str, Any]] = []
    for weights, label in still.items():
        scores = [_shown(level([weights.result], column)) for column in columns]
        rows.append({"label": label, "arm": -1, "score": scores, "gain": [None] * len(columns), "cost": []})
    for index, (arm, places) in enumerate(zip(arms, counted, strict=True)):
        arm_results = [results[place] for place in places]
        start = common([starts[place] for place in places])
        rows.append(
            {
                "label": arm.name if all(runs[place].finished for place in places) else f"{arm.name} (not finished)",
                "arm": index,
                "score": [_shown(level(arm_results, column)) for column in columns],
                "gain": [
                    _shown(difference(arm_results, [start.result], column)) if start else None for column in columns
                ],
                "cost": [_cost([runs[place] for place in places], name) for name in COSTS],
            }
        )
    return {
        "groups": [{"name": name, "columns": [column.title for column in columns]} for name, columns in groups],
        "costs": list(COSTS.values()),
        "rows": rows,
    }


def maps(
    counted: Sequence[Sequence[int]], evals: Sequence[Evals], starts: Sequence[Fixed | None]
) -> list[dict[str, Any]]:
    """Scores of each suite and task by length and depth: ``[mean, answers, gain, pairs]`` or null.

    A gain is the mean difference to the score of the runs' student on the same items before training; null if it is
    unknown. The last column of a row covers all depths, including items without one. Entry 0 is before training (the
    first start); the others are the arms after training, over their runs.
    """
    entries: list[list[tuple[str, ItemRecord, float | None]]] = [[]]
    first = next((start for start in starts if start is not None), None)
    if first is not None:
        entries[0] = [(suite, record, None) for suite, record in _at(first.evals, 0)]
    for places in counted:
        start = common([starts[place] for place in places])
        known = {(suite, record.id): record.score for suite, record in _at(start.evals, 0)} if start else {}
        answers = [answer for place in places for answer in _last(evals[place])]
        entries.append([(suite, record, known.get((suite, record.id))) for suite, record in answers])
    grouped: dict[tuple[str, str, int, int], dict[int, list[tuple[float, float | None]]]] = {}
    for entry, answers_of in enumerate(entries):
        for suite, record, was in answers_of:
            depths = [DEPTHS] if record.depth is None else [min(int(record.depth * DEPTHS), DEPTHS - 1), DEPTHS]
            for depth in depths:
                cell = grouped.setdefault((suite, record.task, record.length, depth), {})
                cell.setdefault(entry, []).append((record.score, was))
    heat_maps = []
    for suite, task in sorted({(suite, task) for suite, task, _, _ in grouped}):
        lengths = sorted({length for s, t, length, _ in grouped if (s, t) == (suite, task)})
        shown = [
            [
                [_mean(grouped.get((suite, task, length, depth), {}).get(entry)) for depth in range(DEPTHS + 1)]
                for length in lengths
            ]
            for entry in range(len(entries))
        ]
        heat_maps.append({"suite": suite, "task": task, "lengths": lengths, "entries": shown})
    return heat_maps


def _cells(results: Sequence[Result]) -> list[Column]:
    """A column for every task at every length."""
    cells = sorted({cell for result in results for cell in result.cells})
    return [
        Column(f"{suite}/{task}/{length}", f"{suite} {task}" + (f" {length}" if length else ""), suite, (task,), length)
        for suite, task, length in cells
    ]


def _shown(value: Value | None) -> list[Any] | None:
    """Value, low, high, runs, families and minimum detectable difference; null where unknown."""
    if value is None:
        return None
    estimate: Estimate = value.estimate
    bounds = [None if math.isnan(bound) else rounded(bound) for bound in (estimate.low, estimate.high)]
    detectable = None if value.detectable is None else rounded(value.detectable)
    return [rounded(estimate.value), *bounds, value.runs, value.families, detectable]


def _cost(runs: Sequence[Run], name: str) -> list[float] | None:
    """Mean, least and greatest total cost of the runs."""
    key = f"progress/{name}"
    spent = [max((row[key] or 0.0 for row in run.metrics if key in row), default=None) for run in runs]
    known = [value for value in spent if value is not None]
    return [rounded(fmean(known)), rounded(min(known)), rounded(max(known))] if known else None


def _mean(scores: Sequence[tuple[float, float | None]] | None) -> list[float | None] | None:
    if not scores:
        return None
    gains = [score - was for score, was in scores if was is not None]
    return [
        rounded(fmean(score for score, _ in scores)),
        len(scores),
        rounded(fmean(gains)) if gains else None,
        len(gains),
    ]


def _all(suites: Mapping[str, Sequence[ItemRecord]]) -> list[ItemRecord]:
    return [record for records in suites.values() for record in records]


def _at(suites: Evals, step: int) -> list[tuple[str, ItemRecord]]:
    """The last answer to each item at a step."""
    answers = {
        (suite, record.id): record for suite, records in suites.items() for record in records if record.step == step
    }
    return [(suite, record) for (suite, _), record in answers.items()]


def _last(suites: Evals) -> list[tuple[str, ItemRecord]]:
    """The answers of the last evaluation; empty if it is the one before training."""
    step = max((record.step for record in _all(suites)), default=0)
    return _at(suites, step) if step else []
