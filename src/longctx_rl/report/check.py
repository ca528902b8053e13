"""``check``: do committed results, tables, figures and READMEs agree with each other, with their grids and models?"""

import io
import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from longctx_rl.config import convert
from longctx_rl.config.schema import Config
from longctx_rl.policy.weights import weights_hash
from longctx_rl.report import outputs, results
from longctx_rl.report.collect import PLACES, evaluate_command, shipped
from longctx_rl.report.experiment import NO_SETTINGS, Experiment, check_cells
from longctx_rl.report.results import Cell, Result
from longctx_rl.report.study import BASE, TEACHER, base_of

COMMAND = "python -m longctx_rl "
NAMED = 3
"""Missing runs that a message names; it counts the others."""
Compose = Callable[[list[str]], Config]
"""From overrides to the configuration that they give today."""


def check(
    experiment: Experiment, checkout: Path, compose: Compose, grids: Sequence[Config]
) -> tuple[list[str], list[str]]:
    """Problems and notes, one sentence each.

    Args:
        grids: configurations of all runs that the study's grids request.
    """
    committed = results.read_all(experiment.results)
    requested = {Path(config.run_dir).name: config for config in grids}
    problems = check_cells(experiment, committed) + check_complete(experiment, committed, requested)
    notes: dict[str, None] = {}
    for result in committed:
        if result.trained:
            wrong, new = check_origin(result, compose, requested.get(result.name))
            problems += wrong
            notes |= dict.fromkeys(new)
    if not problems:
        problems += check_files(experiment, checkout, committed)
    return problems, list(notes)


def check_origin(result: Result, compose: Compose, requested: Config | None = None) -> tuple[list[str], list[str]]:
    """Problems and notes of a result's configuration, compared with what its grid or its command gives today.

    Keys that only one of the two has are notes.

    Args:
        requested: the configuration of this run in the study's grids; None: compare with the command of the run.
    """
    stored = results.settings(result)
    if requested:
        today = dict(convert.flat(convert.plain(requested)))
        differing = _differing(stored, today)
        problems = [f"{result.name} differs from its grid: {', '.join(differing)}; run it again"] if differing else []
        return problems, _one_sided(stored, today)
    command = str(result.origin.get("command") or "")
    if not command.startswith(COMMAND):
        return [
            f"{result.name} belongs to no grid and records no command, so its configuration cannot be checked: "
            "run and collect it again"
        ], []
    try:
        today = dict(convert.flat(convert.plain(compose(shlex.split(command.removeprefix(COMMAND))))))
    except ValueError as error:
        return [f"{result.name}: its command `{command}` is invalid today ({error}): run it again"], []
    differing = _differing(stored, today)
    problems = [f"{result.name} differs from `{command}`: {', '.join(differing)}; run it again"] if differing else []
    return problems, _one_sided(stored, today)


def check_files(experiment: Experiment, checkout: Path, committed: Sequence[Result]) -> list[str]:
    """Tables, figures and READMEs that differ from what the committed results give, a sentence each."""
    again = f"python -m longctx_rl.report tables {experiment.name}"
    try:
        made = outputs.files_of(experiment, checkout, committed)
    except ValueError as error:
        return [str(error)]
    problems = []
    for path, content in made.items():
        if not path.is_file():
            problems.append(f"{path} is missing: make it with {again}")
        elif not same(path.read_bytes(), content, path.suffix):
            problems.append(f"{path} differs from what the committed results give: make it again with {again}")
    return problems + [
        f"{path} is no table or figure of {experiment.name}: remove it with {again}"
        for path in outputs.stale(experiment, made)
    ]


def same(there: bytes, made: bytes, suffix: str) -> bool:
    """Whether two files have equal bytes, or two PNGs equal pixels: machines may compress a PNG differently."""
    if there == made or suffix != ".png":
        return there == made
    import numpy as np
    from matplotlib import image

    try:
        first, second = (image.imread(io.BytesIO(content), format="png") for content in (there, made))
    except (OSError, SyntaxError):
        return False
    return first.shape == second.shape and bool(np.array_equal(first, second))


def check_complete(experiment: Experiment, committed: Sequence[Result], requested: Mapping[str, Config]) -> list[str]:
    """Missing runs, base and teacher that do not fit the runs, and replaced models, one sentence each.

    Args:
        requested: the runs of the study's grids by name; empty for a study without grids.
    """
    problems = _missing(experiment, committed, requested)
    if requested:
        cells = _answered_by_all([result for result in committed if result.name in requested])
        first = next(iter(requested.values()))

        def again(model: str, name: str) -> str:
            return evaluate_command(model, Path("runs", experiment.name, name), first.eval.name, first.eval.items)

        students = Counter(config.model.student for config in requested.values())
        teachers = Counter(config.external_teacher for config in requested.values() if config.external_teacher)
        if base_of(committed) is None or any(result.name == BASE for result in committed):
            problems += _fixed(committed, BASE, students, cells, again)
        problems += _fixed(committed, TEACHER, teachers, cells, again) if teachers else []
    return problems + [problem for result in committed for problem in _other_weights(result)]


def _differing(stored: Mapping[str, Any], today: Mapping[str, Any]) -> list[str]:
    return [
        f"{key} was {stored[key]} and is {today[key]} today"
        for key in sorted(stored.keys() & today.keys())
        if stored[key] != today[key] and not key.startswith(NO_SETTINGS)
    ]


def _one_sided(stored: Mapping[str, Any], today: Mapping[str, Any]) -> list[str]:
    added = [f"key added since then: {key}={today[key]}" for key in sorted(today.keys() - stored.keys() - set(PLACES))]
    return added + [f"key removed since then: {key}={stored[key]}" for key in sorted(stored.keys() - today.keys())]


def _missing(experiment: Experiment, committed: Sequence[Result], requested: Mapping[str, Config]) -> list[str]:
    missing = sorted(requested.keys() - {result.name for result in committed if result.trained})
    if not missing:
        return []
    more = f" and {len(missing) - NAMED} more" if missing[NAMED:] else ""
    runs = f"{len(missing)} of {len(requested)} runs have no result ({', '.join(missing[:NAMED])}{more})"
    return [f"{experiment.name}: {runs}: run its grids, then python -m longctx_rl.report collect {experiment.name}"]


def _fixed(
    committed: Sequence[Result],
    name: str,
    used: Counter[str],
    cells: Mapping[Cell, set[str]],
    again: Callable[[str, str], str],
) -> list[str]:
    """Problems of an untrained model's row: is it the model that most runs use, and did it answer their items?

    Args:
        name: base or teacher.
        used: how many runs use each model in this role.
        cells: families that every run answered.
        again: from a model and a row's name to the command that evaluates it.
    """
    ((model, _),) = used.most_common(1)
    command = again(model, name)
    rows = [result for result in committed if result.name == name and not result.trained]
    problems = [] if rows else [f"{name} has no result: {command}"]
    for row in rows:
        if (checkpoint := row.origin.get("checkpoint")) != model:
            problems.append(f"{name} is {checkpoint}, but most runs use {model}: {command}")
        for cell, families in cells.items():
            answered = row.cells[cell].scores.get(0, {}).keys() if cell in row.cells else set()
            if lacking := len(families - answered):
                place = " ".join(map(str, cell))
                problems.append(
                    f"{name} lacks {lacking} of {len(families)} families of {place} that all runs answered: {command}"
                )
    return problems


def _answered_by_all(runs: Sequence[Result]) -> dict[Cell, set[str]]:
    """Families that every run answered at its last evaluation, in the cells that every run has."""
    common = set.intersection(*(set(run.cells) for run in runs)) if runs else set()
    return {
        cell: set.intersection(*(set(scores[max(scores)]) for run in runs if (scores := run.cells[cell].scores)))
        for cell in sorted(common)
    }


def _other_weights(result: Result) -> list[str]:
    """Shipped models whose weights have changed since a run used them or an evaluation measured them."""
    used = {str(result.config.get(f"model.{role}")): result.origin.get(role) for role in ("student", "teacher")}
    if not result.trained and result.origin.get("dtype") == "float32":  # the number type of the shipped weights
        used = {str(result.origin.get("checkpoint")): result.origin.get("weights")}
    return [
        f"{result.name} used different weights of {name} from those shipped now: train or evaluate it again"
        for name, weights in used.items()
        if weights and (folder := shipped(name)) and _hash(folder) != weights
    ]


@cache
def _hash(folder: Path) -> str | None:
    """The hash of a shipped model's weights, read once for all results."""
    return weights_hash(folder)
