"""Is everything there that a study's grids ask for, answered by all, and of the models that are shipped?"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from longctx_rl.config.schema import Config
from longctx_rl.policy.weights import fingerprint
from longctx_rl.report.collect import asking, shipped
from longctx_rl.report.experiment import Experiment
from longctx_rl.report.results import Cell, Result
from longctx_rl.report.study import BASE, TEACHER, base_of

NAMED = 3
"""Missing runs that are named, of more."""


def check_complete(experiment: Experiment, found: Sequence[Result], asked: Mapping[str, Config]) -> list[str]:
    """What is missing or of other weights, one sentence each.

    Args:
        asked: the runs of the study's grids by name; empty for a study without any.
    """
    problems = _missing(experiment, found, asked)
    if asked:
        cells = _answered_by_all([one for one in found if one.name in asked])
        first = next(iter(asked.values()))

        def ask(model: str, name: str) -> str:
            return asking(model, Path("runs", experiment.name, name), first.eval.name, first.eval.items)

        students = Counter(one.model.student for one in asked.values())
        teachers = Counter(str(one.model.teacher) for one in asked.values() if one.needs_teacher)
        if base_of(found) is None or any(one.name == BASE for one in found):
            problems += _fixed(found, BASE, students, cells, ask)
        problems += _fixed(found, TEACHER, teachers, cells, ask) if teachers else []
    return problems + [problem for one in found for problem in _other_weights(one)]


def _missing(experiment: Experiment, found: Sequence[Result], asked: Mapping[str, Config]) -> list[str]:
    missing = sorted(asked.keys() - {one.name for one in found if one.trained})
    if not missing:
        return []
    more = f" and {len(missing) - NAMED} more" if missing[NAMED:] else ""
    runs = f"{len(missing)} of {len(asked)} runs have no result ({', '.join(missing[:NAMED])}{more})"
    return [f"{experiment.name}: {runs}: run its grids, then python -m longctx_rl.report collect {experiment.name}"]


def _fixed(
    found: Sequence[Result],
    name: str,
    used: Counter[str],
    cells: Mapping[Cell, set[str]],
    ask: Callable[[str, str], str],
) -> list[str]:
    """What is wrong with the row of an untrained model: is it what most runs use, and did it answer what they did?"""
    ((model, _),) = used.most_common(1)
    again = ask(model, name)
    rows = [one for one in found if one.name == name and not one.trained]
    problems = [] if rows else [f"nobody asked the {name}: {again}"]
    for row in rows:
        if (checkpoint := row.origin.get("checkpoint")) != model:
            problems.append(f"{name} is {checkpoint}, and not {model} as for most runs: {again}")
        for cell, families in cells.items():
            answered = row.cells[cell].scores.get(0, {}).keys() if cell in row.cells else set()
            if lacking := len(families - answered):
                place = " ".join(map(str, cell))
                problems.append(
                    f"{name} lacks {lacking} of {len(families)} families of {place} that all runs have: {again}"
                )
    return problems


def _answered_by_all(runs: Sequence[Result]) -> dict[Cell, set[str]]:
    """Families that every run answered at its last evaluation, of the cells that every run has."""
    common = set.intersection(*(set(run.cells) for run in runs)) if runs else set()
    return {
        cell: set.intersection(*(set(scores[max(scores)]) for run in runs if (scores := run.cells[cell].scores)))
        for cell in sorted(common)
    }


def _other_weights(result: Result) -> list[str]:
    """Shipped models that have been replaced since a run used them, or a row was asked."""
    used = {str(result.config.get(f"model.{role}")): result.origin.get(role) for role in ("student", "teacher")}
    if not result.trained and result.origin.get("dtype") == "float32":  # the number type of what is shipped
        used = {str(result.origin.get("checkpoint")): result.origin.get("weights")}
    return [
        f"{result.name} is of another {name} than the one that is shipped: train or ask it again"
        for name, weights in used.items()
        if weights and (folder := shipped(name)) and fingerprint(folder) != weights
    ]
