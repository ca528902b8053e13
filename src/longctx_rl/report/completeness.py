"""Is everything there that a study's grids ask for, answered by all, and started from the models that are shipped?"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import longctx_rl
from longctx_rl.config import Config
from longctx_rl.report.collect import hash_of
from longctx_rl.report.experiment import Experiment
from longctx_rl.report.results import Cell, Result
from longctx_rl.report.study import BASE, TEACHER

NAMED = 3
"""Missing runs that are named, of more."""


def check_complete(experiment: Experiment, found: Sequence[Result], asked: Mapping[str, Config]) -> list[str]:
    """What is missing or was asked of other weights, one sentence each.

    Args:
        asked: the runs of the study's grids by name; empty for a study without any.
    """
    problems = _missing(experiment, found, asked)
    if asked:
        shared = _answered_by_all([one for one in found if one.name in asked])
        problems += _fixed(experiment, found, BASE, {one.model.student for one in asked.values()}, shared)
        problems += _fixed(experiment, found, TEACHER, {one.model.teacher for one in asked.values()}, shared)
    return problems + [problem for one in found if (problem := _other_weights(one))]


def _missing(experiment: Experiment, found: Sequence[Result], asked: Mapping[str, Config]) -> list[str]:
    missing = sorted(asked.keys() - {one.name for one in found if one.trained})
    if not missing:
        return []
    more = f" and {len(missing) - NAMED} more" if missing[NAMED:] else ""
    runs = f"{len(missing)} of {len(asked)} runs have no result ({', '.join(missing[:NAMED])}{more})"
    return [f"{experiment.name}: {runs}: make {experiment.name}-runs"]


def _fixed(
    experiment: Experiment, found: Sequence[Result], name: str, used: set[str | None], cells: Mapping[Cell, set[str]]
) -> list[str]:
    """What is wrong with the row of an untrained model: is it one that runs use, and did it answer what they did?"""
    again = f"make {experiment.name}-runs asks it"
    rows = [one for one in found if one.name == name and not one.trained]
    if not rows:
        return [f"{experiment.name}: nobody asked the {name}: {again}"]
    (row,), problems = rows, []
    if (checkpoint := row.origin.get("checkpoint")) not in used:
        problems.append(f"{name} is {checkpoint}, which no run of {experiment.name} uses: {again}")
    for cell, families in cells.items():
        answered = row.cells[cell].scores.get(0, {}).keys() if cell in row.cells else set()
        if lacking := len(families - answered):
            place = " ".join(map(str, cell))
            problems.append(
                f"{name} lacks {lacking} of {len(families)} families of {place} that all runs have: {again}"
            )
    return problems


def _answered_by_all(runs: Sequence[Result]) -> dict[Cell, set[str]]:
    """Families of each cell that every run answered at its last evaluation."""
    cells: dict[Cell, set[str]] = {}
    for run in runs:
        for cell, scores in run.cells.items():
            last = set(scores.scores[max(scores.scores)])
            cells[cell] = cells[cell] & last if cell in cells else last
    return cells


def _other_weights(result: Result) -> str | None:
    """Whether a run started from a shipped model that has been replaced since."""
    student, trained_from = str(result.config.get("model.student")), result.origin.get("student")
    folder = Path(longctx_rl.__file__).parent / "models" / student
    if not trained_from or not folder.is_dir() or hash_of(folder) == trained_from:
        return None
    return f"{result.name} was trained from another {student} than the one that is shipped: train it again"
