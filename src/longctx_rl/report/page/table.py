"""Numbers of the page: the same estimates as the study's tables, and maps of length and depth."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from longctx_rl.evals.records import ItemRecord
from longctx_rl.report.collect import cells_of, costs_at
from longctx_rl.report.page.arms import Arm, Settings
from longctx_rl.report.page.series import rounded
from longctx_rl.report.results import Result
from longctx_rl.report.runs import Run
from longctx_rl.report.study import Column, Value, columns_of, difference, level
from longctx_rl.stats import Estimate

Evals = dict[str, list[ItemRecord]]
DEPTHS = 5
"""Equal stretches of the document that a map tells apart."""
COSTS = {"step": "steps", "trained_tokens": "trained tokens", "flops": "FLOPs", "wall_seconds": "seconds"}


@dataclass(frozen=True, slots=True)
class Fixed:
    """Weights that no run trained, such as the model before training."""

    name: str
    checkpoint: str
    evals: Evals

    @property
    def student(self) -> str:
        """The checkpoint as settings name the model that a run started from."""
        return json.dumps(self.checkpoint, ensure_ascii=False)


def result_of(run: Run, evals: Evals) -> Result:
    """A run as the study's estimates take it."""
    cells = cells_of(evals)
    steps = {step for cell in cells.values() for step in cell.scores}
    return Result(name=run.name, algo=run.algo, seed=run.seed, costs=costs_at(run.metrics, steps), cells=cells)


def table(
    arms: Sequence[Arm],
    counted: Sequence[Sequence[int]],
    results: Sequence[Result],
    runs: Sequence[Run],
    settings: Sequence[Settings],
    fixed: Sequence[Fixed],
) -> dict[str, Any]:
    """Columns, and for each arm and each model that was not trained a value in each: score, gain over the base, cost.

    Args:
        counted: for each arm the places of the runs that count: its finished ones, where it has any.
    """
    groups = [("main", columns_of(results)), ("each task and length", _cells(results))]
    columns = [column for _, columns in groups for column in columns]
    bases = _bases(results, settings, fixed)
    still = {
        "before training" if len(bases) == 1 else f"before training: {student.strip(chr(34))}": base
        for student, base in bases.items()
    }
    still |= {one.name: _result(one) for one in fixed if one.student not in bases}
    rows: list[dict[str, Any]] = []
    for label, weights in still.items():
        scores = [_shown(level([weights], column)) for column in columns]
        rows.append({"label": label, "arm": -1, "score": scores, "gain": [None] * len(columns), "cost": []})
    for index, (arm, places) in enumerate(zip(arms, counted, strict=True)):
        mine = [results[place] for place in places]
        start = bases.get(settings[places[0]].get("model.student", ""))
        rows.append(
            {
                "label": arm.name if all(runs[place].finished for place in places) else f"{arm.name} (not finished)",
                "arm": index,
                "score": [_shown(level(mine, column)) for column in columns],
                "gain": [_shown(difference(mine, [start], column)) if start else None for column in columns],
                "cost": [_cost([runs[place] for place in places], name) for name in COSTS],
            }
        )
    return {
        "groups": [{"name": name, "columns": [column.title for column in columns]} for name, columns in groups],
        "costs": list(COSTS.values()),
        "rows": rows,
    }


def before(evals: Sequence[Evals], settings: Sequence[Settings], fixed: Sequence[Fixed]) -> Evals:
    """What was answered before training: by the student of some run, else in the first run that was asked then."""
    students = {own.get("model.student") for own in settings}
    asked = [one.evals for one in fixed if one.student in students]
    return next((suites for suites in (*asked, *evals) if any(one.step == 0 for one in _all(suites))), {})


def maps(counted: Sequence[Sequence[int]], evals: Sequence[Evals], first: Evals) -> list[dict[str, Any]]:
    """For each suite and task the mean score by length and depth, ``[mean, answers]`` or null.

    The last column of a row is over all depths, of items without one too. Entry 0 is before training (``first`` at
    step 0), the others are the arms after it, over their runs.
    """
    answered = [_at(first, 0), *([one for place in places for one in _last(evals[place])] for places in counted)]
    grouped: dict[tuple[str, str, int, int], dict[int, list[float]]] = {}
    for entry, records in enumerate(answered):
        for suite, record in records:
            places = [DEPTHS] if record.depth is None else [min(int(record.depth * DEPTHS), DEPTHS - 1), DEPTHS]
            for depth in places:
                cell = grouped.setdefault((suite, record.task, record.length, depth), {})
                cell.setdefault(entry, []).append(record.score)
    found = []
    for suite, task in sorted({(suite, task) for suite, task, _, _ in grouped}):
        lengths = sorted({length for s, t, length, _ in grouped if (s, t) == (suite, task)})
        entries = [
            [
                [_mean(grouped.get((suite, task, length, depth), {}).get(entry)) for depth in range(DEPTHS + 1)]
                for length in lengths
            ]
            for entry in range(len(answered))
        ]
        found.append({"suite": suite, "task": task, "lengths": lengths, "entries": entries})
    return found


def _cells(results: Sequence[Result]) -> list[Column]:
    """A column for every task at every length."""
    cells = sorted({cell for result in results for cell in result.cells})
    return [
        Column(f"{suite}/{task}/{length}", f"{suite} {task}" + (f" {length}" if length else ""), suite, (task,), length)
        for suite, task, length in cells
    ]


def _bases(results: Sequence[Result], settings: Sequence[Settings], fixed: Sequence[Fixed]) -> dict[str, Result]:
    """Student to what it answered before training: in its own folder, else in the first run that was asked then."""
    asked = {one.student: _result(one) for one in reversed(fixed)}
    found: dict[str, Result] = {}
    for result, own in zip(results, settings, strict=True):
        student = own.get("model.student", "")
        if student in asked:
            found[student] = asked[student]
        elif 0 in result.steps:
            found.setdefault(student, Result(name="base", algo="base", seed=None, cells=result.cells))
    return found


def _result(one: Fixed) -> Result:
    return Result(name=one.name, algo=one.name, seed=None, cells=cells_of(one.evals))


def _shown(value: Value | None) -> list[Any] | None:
    """Value, low, high, runs, families, and of a difference the one that could be found; null: one run cannot tell."""
    if value is None:
        return None
    estimate: Estimate = value.estimate
    bounds = [None if math.isnan(bound) else rounded(bound) for bound in (estimate.low, estimate.high)]
    findable = None if value.detectable is None else rounded(value.detectable)
    return [rounded(estimate.value), *bounds, value.runs, value.families, findable]


def _cost(runs: Sequence[Run], name: str) -> list[float] | None:
    """Mean, least and greatest of what the runs had spent in the end."""
    key = f"progress/{name}"
    spent = [max((row[key] or 0.0 for row in run.metrics if key in row), default=None) for run in runs]
    known = [value for value in spent if value is not None]
    return [rounded(fmean(known)), rounded(min(known)), rounded(max(known))] if known else None


def _mean(scores: Sequence[float] | None) -> list[float] | None:
    return [rounded(fmean(scores)), len(scores)] if scores else None


def _all(suites: Mapping[str, Sequence[ItemRecord]]) -> list[ItemRecord]:
    return [record for records in suites.values() for record in records]


def _at(suites: Evals, step: int) -> list[tuple[str, ItemRecord]]:
    """Each item's last answer at a step."""
    answers = {(suite, one.id): one for suite, records in suites.items() for one in records if one.step == step}
    return [(suite, record) for (suite, _), record in answers.items()]


def _last(suites: Evals) -> list[tuple[str, ItemRecord]]:
    """The answers of the last evaluation after some training."""
    step = max((record.step for record in _all(suites)), default=0)
    return _at(suites, step) if step else []
