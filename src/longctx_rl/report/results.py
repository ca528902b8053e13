"""Committed results: one small file for each run, with the data of tables and figures and the run's provenance.

``experiments/<name>/results/<run>.jsonl`` has a line for the run itself, one for its costs, one for its curves, and one
for each suite, task and length with the scores of the item families.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from longctx_rl.config import convert
from longctx_rl.config.schema import Config
from longctx_rl.files import json_lines, mismatch, write_text
from longctx_rl.launch.costs import Measured
from longctx_rl.policy.shape import ModelShape

Cell = tuple[str, str, int]
"""Suite, task, nominal prompt length."""
COSTS = ("trained_tokens", "flops", "wall_seconds")
"""Costs, beside steps, at which runs can be compared when they are equal: names of ``progress/`` metrics."""
DESCRIBED = {
    "name": str,
    "algo": str,
    "seed": int | None,
    "problems": list[str],
    "config": {
        "algo.group_size": int | None,
        "algo.updates_per_rollout": int | None,
        "data.lengths": list[int] | None,
    },
    "origin": {"git": dict[str, Any] | None, "models": dict[str, ModelShape] | None},
    "before": dict[str, float] | None,
}
SPENT = {"costs": dict[str, dict[str, float]]}
PROGRESS = dict.fromkeys(("step", "prompts", "sampled_tokens", "teacher_tokens", *COSTS), float)
CURVES = {"curves": dict[str, list[float | None]]}
CELL = {
    "suite": str,
    "task": str,
    "length": int,
    "families": list[str],
    "scores": dict[str, list[float | None]],
    "cut": dict[str, float],
}
"""Types of a file's lines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CellScores:
    """The scores of a run on one cell."""

    scores: dict[int, dict[str, float]]
    """Evaluated step to family to the mean score of the family's items."""
    cut: dict[int, float]
    """Evaluated step to the share of answers that were truncated at the token limit."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Result:
    """A run, or an evaluation of fixed weights such as the base model.

    Compared by identity, so that values computed from a result can be cached.
    """

    name: str
    algo: str
    """The method; for an evaluation of fixed weights, the name of its folder."""
    seed: int | None
    """None for fixed weights."""
    config: dict[str, Any] = field(default_factory=dict)
    """Dotted key to value; empty for fixed weights."""
    origin: dict[str, Any] = field(default_factory=dict)
    """Command, commit, versions, machine, and the hash of the initial weights."""
    problems: tuple[str, ...] = ()
    before: dict[str, float] = field(default_factory=dict)
    """``view/`` metrics that were measured before training."""
    costs: dict[int, dict[str, float]] = field(default_factory=dict)
    """Evaluated step to ``progress/`` metrics, without their prefix."""
    curves: dict[str, list[float | None]] = field(default_factory=dict)
    """Metric to its values at the steps ``curves['step']``."""
    cells: dict[Cell, CellScores] = field(default_factory=dict)

    @cached_property
    def steps(self) -> list[int]:
        """Evaluated steps, sorted."""
        return sorted({step for cell in self.cells.values() for step in cell.scores})

    @property
    def trained(self) -> bool:
        return self.seed is not None


def write(folder: Path, result: Result) -> None:
    """Write or replace a result's file."""
    described = {key: getattr(result, key) for key in ("name", "algo", "seed", "origin", "problems", "config")}
    described |= {"before": result.before} if result.before else {}
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
        ValueError: there are none, or a file is not a valid result.
    """
    results = [read(path) for path in files(folder)]
    if not results:
        raise ValueError(missing(folder))
    return results


def configuration(result: Result) -> Config:
    """The configuration of a run. Raises ValueError if another version wrote it."""
    return convert.convert(Config, _nested({**result.config, "run_dir": "", "runs_root": ""}))


@cache
def settings(result: Result) -> dict[str, Any]:
    """Dotted key to value, completed with today's defaults; of a run from another version, only what it stored."""
    try:
        return dict(convert.flat(convert.plain(configuration(result))))
    except ValueError:
        return result.config


def measured(experiments: Path) -> list[Measured]:
    """Measured costs of committed runs, for plans; invalid files and configurations of other versions are skipped."""
    measurements = []
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
        measurements.append(Measured(config, progress, seconds, here=False))
    return measurements


def files(folder: Path) -> list[Path]:
    """The files of an experiment's results, sorted by name."""
    return sorted(folder.glob("*.jsonl"))


def missing(folder: Path) -> str:
    """A sentence that says how to make missing results."""
    name = folder.parent.name
    return (
        f"no results in {folder} yet: train its runs (experiment_name={name}; of a table: make {name}-runs), then "
        f"python -m longctx_rl.report collect {name}"
    )


def read(path: Path) -> Result:
    """Read a result. Raises ValueError if the file is not a valid one."""
    try:
        described, costs, curves, *cells = [line.checked() for line in json_lines(path)]
        for line, kind in ((described, DESCRIBED), (costs, SPENT), (curves, CURVES), *((cell, CELL) for cell in cells)):
            _require(line, kind)
        for spent in costs["costs"].values():
            _require(spent, PROGRESS if spent else {})
        keyed = {(cell["suite"], cell["task"], cell["length"]): _cell(cell) for cell in cells}
        if len(keyed) < len(cells):
            raise ValueError("a suite, task and length occurs twice")
        return Result(
            **{**described, "problems": tuple(described["problems"])},
            costs={int(step): values for step, values in costs["costs"].items()},
            curves=curves["curves"],
            cells=keyed,
        )
    except (TypeError, ValueError) as error:  # an unknown field of the first line is a TypeError
        raise ValueError(f"{path} is not a valid result ({error}): restore the file, or collect it again") from error


def _require(value: Any, kind: Any) -> None:
    if problem := mismatch(value, kind):
        raise ValueError(f"a line is {problem}")


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings from dotted keys."""
    whole: dict[str, Any] = {}
    for key, value in values.items():
        *path, name = key.split(".")
        place = whole
        for part in path:
            place = place.setdefault(part, {})
        place[name] = value
    return whole


def _row(families: list[str], scores: Mapping[str, float]) -> list[float | None]:
    """Scores in the order of ``families``, without missing scores at the end."""
    row: list[float | None] = [scores.get(family) for family in families]
    while row and row[-1] is None:
        row.pop()
    return row


def _cell(line: Mapping[str, Any]) -> CellScores:
    families = line["families"]
    if len(set(families)) < len(families) or any(len(row) > len(families) for row in line["scores"].values()):
        raise ValueError(f"{line['task']} {line['length']} has a family twice, or more scores than families")
    scores = {
        int(step): {family: score for family, score in zip(families, row, strict=False) if score is not None}
        for step, row in line["scores"].items()
    }
    return CellScores(scores=scores, cut={int(step): share for step, share in line["cut"].items()})
