"""``check``: are the committed results made by their configuration, and all numbers from the committed results?"""

import io
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import image

from longctx_rl.config import convert
from longctx_rl.config.schema import Config
from longctx_rl.report import outputs, results
from longctx_rl.report.collect import PLACES
from longctx_rl.report.completeness import check_complete
from longctx_rl.report.experiment import NO_SETTINGS, Experiment, check_cells
from longctx_rl.report.results import Result

COMMAND = "python -m longctx_rl "
Compose = Callable[[list[str]], Config]
"""From overrides to the configuration they give today."""


def check(
    experiment: Experiment, checkout: Path, compose: Compose, grids: Sequence[Config]
) -> tuple[list[str], list[str]]:
    """Problems and notes, one sentence each. ``grids``: every run that the study asks for."""
    found = results.read_all(experiment.results)
    asked = {Path(config.run_dir).name: config for config in grids}
    problems = check_cells(experiment, found) + check_complete(experiment, found, asked)
    notes: dict[str, None] = {}
    for result in found:
        if result.trained:
            wrong, new = check_origin(result, compose, asked.get(result.name))
            problems += wrong
            notes |= dict.fromkeys(new)
    if not problems:
        problems += check_files(experiment, checkout)
    return problems, list(notes)


def check_origin(result: Result, compose: Compose, asked: Config | None = None) -> tuple[list[str], list[str]]:
    """Is its configuration the one that a grid asks for, or else that of its command? One-sided keys are notes."""
    stored = results.settings(result)
    if asked:
        today = dict(convert.flat(convert.plain(asked)))
        differing = _differing(stored, today)
        problems = [f"{result.name} is not what its grid asks for: {', '.join(differing)}"] if differing else []
        return problems, _one_sided(stored, today)
    command = str(result.origin.get("command") or "")
    if not command.startswith(COMMAND):
        return [f"{result.name}: its command is not known, so its configuration cannot be checked"], []
    try:
        today = dict(convert.flat(convert.plain(compose(shlex.split(command.removeprefix(COMMAND))))))
    except ValueError as error:
        return [f"{result.name}: `{command}` gives no configuration today ({error})"], []
    differing = _differing(stored, today)
    problems = [f"{result.name} was not made by `{command}`: {', '.join(differing)}"] if differing else []
    return problems, _one_sided(stored, today)


def check_files(experiment: Experiment, checkout: Path) -> list[str]:
    """Tables, figures and README marks that differ from what the results give."""
    try:
        made = outputs.files_of(experiment, checkout)
    except ValueError as error:
        return [str(error)]
    problems = []
    for path, content in made.items():
        if not path.is_file():
            problems.append(f"{path} is missing: make it with python -m longctx_rl.report tables {experiment.name}")
        elif not same(path.read_bytes(), content, path.suffix):
            problems.append(
                f"{path} is not what the committed results give: python -m longctx_rl.report tables {experiment.name}"
            )
    return problems + [f"{path} is made by nothing: remove it" for path in outputs.stale(experiment, made)]


def same(there: bytes, made: bytes, suffix: str) -> bool:
    """Equal bytes, or equal pixels: machines may compress a PNG differently."""
    if there == made or suffix != ".png":
        return there == made
    try:
        first, second = (image.imread(io.BytesIO(content), format="png") for content in (there, made))
    except (OSError, SyntaxError):
        return False
    return first.shape == second.shape and bool(np.array_equal(first, second))


def _differing(stored: Mapping[str, Any], today: Mapping[str, Any]) -> list[str]:
    return [
        f"{key} {stored[key]} is {today[key]} today"
        for key in sorted(stored.keys() & today.keys())
        if stored[key] != today[key] and not key.startswith(NO_SETTINGS)
    ]


def _one_sided(stored: Mapping[str, Any], today: Mapping[str, Any]) -> list[str]:
    added = [f"new since then: {key}={today[key]}" for key in sorted(today.keys() - stored.keys()) if key not in PLACES]
    return added + [f"gone since then: {key}={stored[key]}" for key in sorted(stored.keys() - today.keys())]
