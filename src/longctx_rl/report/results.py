"""Committed results: one small file for each run, with what tables and figures need of it and where it came from.

``experiments/<name>/results/<run>.jsonl``: a line of the run itself, one of its costs, one of its curves, and one for
each suite, task and length with the scores of its item families.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from longctx_rl.config import convert
from longctx_rl.config.schema import Config
from longctx_rl.files import json_lines, write_text
from longctx_rl.launch.costs import Measured

Cell = tuple[str, str, int]
"""Suite, task, nominal prompt length."""
COSTS = ("trained_tokens", "flops", "wall_seconds")
"""What runs can be compared at equal amounts of, beside steps: names of ``progress/`` metrics."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CellScores:
    """What a run scored on one cell."""

    scores: dict[int, dict[str, float]]
    """Evaluated step to family to mean score of the family's items."""
    cut: dict[int, float]
    """Evaluated step to the share of answers that met the token limit."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Result:
    """One run, or one evaluation of fixed weights such as the base model. Equal to itself alone, so that what is
    computed from it can be cached."""

    name: str
    algo: str
    """The method; of an evaluation, its folder's name."""
    seed: int | None
    """None: fixed weights, nothing was trained."""
    config: dict[str, Any] = field(default_factory=dict)
    """Dotted key to value; empty for fixed weights."""
    origin: dict[str, Any] = field(default_factory=dict)
    """Command, commit, versions, machine, hash of the weights it started from."""
    problems: tuple[str, ...] = ()
    costs: dict[int, dict[str, float]] = field(default_factory=dict)
    """Evaluated step to ``progress/`` metrics, without their prefix."""
    curves: dict[str, list[float | None]] = field(default_factory=dict)
    """Metric to its values at the points of ``curves['step']``."""
    cells: dict[Cell, CellScores] = field(default_factory=dict)

    @property
    def steps(self) -> list[int]:
        """Evaluated steps, sorted."""
        return sorted({step for cell in self.cells.values() for step in cell.scores})

    @property
    def trained(self) -> bool:
        return self.seed is not None


def write(folder: Path, result: Result) -> None:
    """Write or replace a result's file."""
    described = {key: getattr(result, key) for key in ("name", "algo", "seed", "origin", "problems", "config")}
    lines: list[Mapping[str, Any]] = [described, {"costs": result.costs}, {"curves": result.curves}]
    for (suite, task, length), cell in sorted(result.cells.items()):
        families = sorted({family for scores in cell.scores.values() for family in scores})
        steps = {step: _row(families, scores) for step, scores in sorted(cell.scores.items())}
        place = {"suite": suite, "task": task, "length": length}
        lines.append({**place, "families": families, "scores": steps, "cut": dict(sorted(cell.cut.items()))})
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n" for line in lines)
    write_text(folder / f"{result.name}.jsonl", text)


def read_all(folder: Path) -> list[Result]:
    """All results of an experiment, sorted by name.

    Raises:
        ValueError: there are none, or a file is not a result.
    """
    found = [read(path) for path in files(folder)]
    if not found:
        raise ValueError(missing(folder))
    return found


def configuration(result: Result) -> Config:
    """A run's configuration. Raises ValueError if it is of another version."""
    return convert.convert(Config, _nested({**result.config, "run_dir": "", "runs_root": ""}))


@cache
def settings(result: Result) -> dict[str, Any]:
    """Dotted key to value, with today's defaults where a run says nothing and is of this version."""
    try:
        return dict(convert.flat(convert.plain(configuration(result))))
    except ValueError:
        return result.config


def measured(experiments: Path) -> list[Measured]:
    """What committed runs cost, for plans; what is no result, or of another version's configuration, is left out."""
    found = []
    for path in sorted(experiments.glob("*/results/*.jsonl")):
        try:
            result = read(path)
            config = configuration(result)
            progress = {
                name: values[-1] or 0.0 for name, values in result.curves.items() if name.startswith("progress/")
            }
            seconds = float(result.origin["evaluation_seconds"])
        except (ValueError, KeyError, TypeError):
            continue
        if not progress.get("progress/trained_tokens"):
            continue
        found.append(Measured(config, progress, seconds, here=False))
    return found


def files(folder: Path) -> list[Path]:
    """The files of an experiment's results, sorted by name."""
    return sorted(folder.glob("*.jsonl"))


def missing(folder: Path) -> str:
    """What to do about results that are not there."""
    name = folder.parent.name
    return (
        f"no results in {folder} yet: train its runs (experiment_name={name}; of a table: make {name}-runs), then "
        f"python -m longctx_rl.report collect {name}"
    )


def read(path: Path) -> Result:
    """One result. Raises ValueError if the file is not one."""
    try:
        lines = [line.checked() for line in json_lines(path)]
        described, costs, curves, *cells = lines
        return Result(
            **{**described, "problems": tuple(described["problems"])},
            costs={int(step): values for step, values in costs["costs"].items()},
            curves=curves["curves"],
            cells={(cell["suite"], cell["task"], cell["length"]): _cell(cell) for cell in cells},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is no committed result ({error}): restore it, or collect it again") from error


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """From dotted keys to nested ones."""
    whole: dict[str, Any] = {}
    for key, value in values.items():
        *path, name = key.split(".")
        place = whole
        for part in path:
            place = place.setdefault(part, {})
        place[name] = value
    return whole


def _row(families: list[str], scores: Mapping[str, float]) -> list[float | None]:
    """Scores in the order of all families; what stands behind the last one is left out."""
    row: list[float | None] = [scores.get(family) for family in families]
    while row and row[-1] is None:
        row.pop()
    return row


def _cell(line: Mapping[str, Any]) -> CellScores:
    scores = {
        int(step): {family: score for family, score in zip(line["families"], row, strict=False) if score is not None}
        for step, row in line["scores"].items()
    }
    return CellScores(scores=scores, cut={int(step): share for step, share in line["cut"].items()})
