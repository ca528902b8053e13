"""The folder of an experiment: ``experiments/<name>`` with its axes, results, tables and figures."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from longctx_rl.config.convert import convert
from longctx_rl.report.results import Result, settings
from longctx_rl.report.study import TITLED
from longctx_rl.runs.directory import MAY_CHANGE

WHERE = tuple(key for key in MAY_CHANGE if key != "budget.")
"""Prefixes of keys that say where and how a run is executed, not what it computes."""
NO_SETTINGS = (*WHERE, "experiment_name")


@dataclass(frozen=True, slots=True)
class Equivalence:
    """A question whose answer can be that two levels do not differ: the default level of an axis and another one."""

    axis: str
    level: str
    column: str
    """Heading of the column of the tables."""
    margin: float
    """Largest difference that is called none, as a share: 0.05 is 5 points."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """A question whose answer is a rank correlation: does a metric measured before training predict the gain?"""

    metric: str
    column: str
    """Heading of the column of the tables whose gain is predicted."""
    axes: tuple[str, ...]
    """The axes whose levels are compared. Runs that are at several levels count once."""


@dataclass(frozen=True, slots=True)
class Experiment:
    """An experiment and what it varies: the method alone, if there is no axes.yaml."""

    folder: Path
    defaults: dict[str, Any] = field(default_factory=dict)
    """Varied key to its default value."""
    axes: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    """Axis to level to the values that differ from the defaults."""
    equivalence: Equivalence | None = None
    prediction: Prediction | None = None

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def results(self) -> Path:
        return self.folder / "results"

    def level(self, axis: str, level: str, results: Sequence[Result]) -> list[Result]:
        """The runs at a level of an axis, with every other varied key at its default."""
        expected = self.defaults | self.axes[axis][level]
        return [
            result
            for result in results
            if result.trained and all(settings(result).get(k) == v for k, v in expected.items())
        ]

    def default_level(self, axis: str) -> str | None:
        """The level of an axis whose values are all defaults; None if there is none."""
        at_default = [level for level, values in self.axes[axis].items() if self.defaults | values == self.defaults]
        return at_default[0] if at_default else None


def open_experiment(folder: Path) -> Experiment:
    """Open an experiment and read its axes, if it has any.

    Raises:
        ValueError: the folder does not exist, or axes.yaml is not as docs/report.md describes.
    """
    if not folder.is_dir():
        known = sorted(path.parent.name for path in folder.parent.glob("*/tables.md"))
        raise ValueError(f"{folder} does not exist: create it, or choose one of {', '.join(known) or 'no experiments'}")
    path = folder / "axes.yaml"
    if not path.is_file():
        return Experiment(folder)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        defaults, axes = dict(content["default"]), content["axes"]
        levels = {
            axis: {str(level): dict(values or {}) for level, values in given.items()} for axis, given in axes.items()
        }
        equivalence = convert(Equivalence, content["equivalence"]) if "equivalence" in content else None
        prediction = convert(Prediction, content["prediction"]) if "prediction" in content else None
    except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is invalid ({error}): give `default:` and `axes:`, as in docs/report.md") from error
    for axis, given in levels.items():
        for level, values in given.items():
            if unknown := sorted(values.keys() - defaults.keys()):
                raise ValueError(f"{path}: {axis}, level {level} sets {unknown[0]}: give it a value under default:")
    experiment = Experiment(folder, defaults, levels, equivalence, prediction)
    if prediction is not None and (unknown := [axis for axis in prediction.axes if axis not in levels]):
        raise ValueError(f"{path}: prediction names the axis {unknown[0]}: choose from {', '.join(levels)}")
    if equivalence is not None and (
        equivalence.level not in levels.get(equivalence.axis, {}) or not experiment.default_level(equivalence.axis)
    ):
        raise ValueError(
            f"{path}: equivalence compares {equivalence.level} with the default level of {equivalence.axis}: name a "
            "level of an axis that has one"
        )
    for asked in (equivalence, prediction):
        if asked is not None and asked.column not in TITLED:
            raise ValueError(f"{path}: there is no column {asked.column}: choose from {', '.join(TITLED)}")
    return experiment


def check_cells(experiment: Experiment, results: Sequence[Result]) -> list[str]:
    """Problems of the grid, one sentence each: duplicate runs, and runs of a cell whose configurations differ.

    A cell is a method with values of the varied keys. Its runs may differ only in their seed.
    """
    problems = []
    groups: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for result in results:
        varied = {key: settings(result).get(key) for key in experiment.defaults}
        groups[result.algo, str(varied)].append(result)
    for (algo, _), cell in groups.items():
        seeds: dict[int | None, Result] = {}
        for result in cell:
            other = seeds.setdefault(result.seed, result)
            if other is not result:
                problems.append(
                    f"{other.name} and {result.name} are the same run ({algo}, seed {result.seed}): keep one of them"
                )
        first = cell[0]
        for result in cell[1:]:
            if differing := _differences(_settings(first), _settings(result)):
                problems.append(
                    f"{first.name} and {result.name} differ in more than their seed ({', '.join(differing)}): "
                    f"name the varied keys in {experiment.folder / 'axes.yaml'}, or run one of them again"
                )
    return problems


def _settings(result: Result) -> dict[str, Any]:
    """Settings that must be equal in all runs of a cell. Seeds in paths, such as a cold start's, are masked."""
    return {
        key: re.sub(r"-s\d+(?=/|$)", "-s*", value) if isinstance(value, str) else value
        for key, value in settings(result).items()
        if key != "seed" and not key.startswith(NO_SETTINGS)
    }


def _differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Keys whose values differ, with both values, among the keys that both have."""
    both = sorted(first.keys() & second.keys())
    return [f"{key} {first[key]} and {second[key]}" for key in both if first[key] != second[key]]
