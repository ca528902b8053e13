"""An experiment's folder: ``experiments/<name>`` with its axes, results, tables and figures."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from longctx_rl.report.results import Result, settings
from longctx_rl.runs.directory import MAY_CHANGE

WHERE = tuple(key for key in MAY_CHANGE if key != "budget.")
"""Beginnings of keys that say where and how a run runs, not what it is."""
NO_SETTINGS = (*WHERE, "experiment_name")


@dataclass(frozen=True, slots=True)
class Experiment:
    """What is varied. Without axes.yaml: the method alone."""

    folder: Path
    defaults: dict[str, Any] = field(default_factory=dict)
    """Each varied key with its default value."""
    axes: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    """Axis to level to the values that make it, where they are not the defaults."""

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def results(self) -> Path:
        return self.folder / "results"

    def level(self, axis: str, level: str, results: Sequence[Result]) -> list[Result]:
        """The runs at one level of an axis: every other varied key is at its default."""
        wanted = self.defaults | self.axes[axis][level]
        return [one for one in results if one.trained and all(settings(one).get(k) == v for k, v in wanted.items())]

    def default_level(self, axis: str) -> str | None:
        """The level that changes nothing."""
        at_default = [level for level, values in self.axes[axis].items() if self.defaults | values == self.defaults]
        return at_default[0] if at_default else None


def open_experiment(folder: Path) -> Experiment:
    """Read an experiment's axes, if it has any.

    Raises:
        ValueError: the folder does not exist, or axes.yaml is not as described in docs/report.md.
    """
    if not folder.is_dir():
        known = sorted(path.parent.name for path in folder.parent.glob("*/README.md"))
        raise ValueError(f"{folder} does not exist: make it, or choose one of {', '.join(known) or 'no experiments'}")
    path = folder / "axes.yaml"
    if not path.is_file():
        return Experiment(folder)
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
        defaults, axes = dict(found["default"]), found["axes"]
        levels = {
            axis: {str(level): dict(values or {}) for level, values in given.items()} for axis, given in axes.items()
        }
    except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} needs `default:` and `axes:`, keys and levels with values ({error})") from error
    for axis, given in levels.items():
        for level, values in given.items():
            if unknown := sorted(values.keys() - defaults.keys()):
                raise ValueError(f"{path}: {axis}, level {level} sets {unknown[0]}, which needs a value under default:")
    return Experiment(folder, defaults, levels)


def check_cells(experiment: Experiment, results: Sequence[Result]) -> list[str]:
    """What is wrong with the grid, one sentence each: two runs of one cell, or a cell with several configurations."""
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
                    f"{other.name} and {result.name} are the same cell ({algo}, seed {result.seed}): keep one of them"
                )
        first = cell[0]
        for result in cell[1:]:
            if differing := _differences(_settings(first), _settings(result)):
                problems.append(
                    f"{first.name} and {result.name} are one cell with different settings ({', '.join(differing)}): "
                    f"name what varies in {experiment.folder / 'axes.yaml'}, or run one of them again"
                )
    return problems


def _settings(result: Result) -> dict[str, Any]:
    """What must be equal in all runs of a cell. Paths that end in a seed, such as a cold start's, are one."""
    return {
        key: re.sub(r"-s\d+(?=/|$)", "-s*", value) if isinstance(value, str) else value
        for key, value in settings(result).items()
        if key != "seed" and not key.startswith(NO_SETTINGS)
    }


def _differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Keys with both values, of keys that both have."""
    both = sorted(first.keys() & second.keys())
    return [f"{key} {first[key]} and {second[key]}" for key in both if first[key] != second[key]]
