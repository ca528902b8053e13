"""Grouping of runs into arms: an arm is a method with its settings, repeated over seeds."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from longctx_rl.config import convert
from longctx_rl.report.experiment import WHERE
from longctx_rl.report.runs import Run
from longctx_rl.report.study import METHODS

APART = (
    *WHERE,
    *("seed", "sandbox", "engine.", "eval.", "batch.micro_batch_tokens", "batch.backward"),
)
"""Keys and prefixes of keys that do not distinguish arms, because they change nothing about training but its seed."""

Settings = dict[str, str]
"""Dotted key to value as JSON."""


@dataclass(frozen=True, slots=True)
class Arm:
    """Runs that differ only in their seeds."""

    name: str
    algo: str
    runs: tuple[int, ...]
    """Indices in the list of runs."""


def settings_of(config: Mapping[str, Any]) -> Settings:
    """A nested configuration as dotted keys."""
    return {key: json.dumps(value, ensure_ascii=False, default=str) for key, value in convert.flat(config)}


def arms_of(runs: Sequence[Run], settings: Sequence[Settings]) -> list[Arm]:
    """Arms in the order of the tables, each named by its method and the fewest settings that distinguish it."""
    arms: list[Arm] = []
    algos = sorted(
        {run.algo for run in runs}, key=lambda name: (METHODS.index(name) if name in METHODS else len(METHODS), name)
    )
    for algo in algos:
        indices = [index for index, run in enumerate(runs) if run.algo == algo]
        alike = {index: _without_seed(settings[index]) for index in indices}
        keys = _telling(list(alike.values()))
        groups: dict[tuple[str, ...], list[int]] = {}
        for index in indices:
            groups.setdefault(tuple(alike[index][key] for key in keys), []).append(index)
        arms += [Arm(_name(algo, keys, values), algo, tuple(groups[values])) for values in sorted(groups)]
    return arms


def duplicates(arm: Arm, runs: Sequence[Run]) -> dict[int, int]:
    """Runs that repeat a seed of their arm, with the run that counts instead: a finished one, else the longest."""
    best = sorted(arm.runs, key=lambda index: (not runs[index].finished, -len(runs[index].metrics), index))
    first: dict[int, int] = {}
    return {index: first[runs[index].seed] for index in best if first.setdefault(runs[index].seed, index) != index}


def _without_seed(settings: Settings) -> Settings:
    """Settings with seeds masked in paths, such as a cold start's."""
    return {key: re.sub(r'-s\d+(?=[/"])', "-s*", value) for key, value in settings.items()}


def _telling(settings: Sequence[Settings]) -> list[str]:
    """The fewest keys whose values distinguish all distinct settings, the experiment's name first."""
    everywhere = set.intersection(*map(set, settings))  # a key that only one version has is not a choice
    keys = sorted(key for key in everywhere if not key.startswith(APART))
    varying = [key for key in keys if len({run_settings[key] for run_settings in settings}) > 1]
    varying.sort(key=lambda key: (key != "experiment_name", not key.startswith("algo.")))
    chosen: list[str] = []
    for key in varying:
        if len(_kinds(settings, [*chosen, key])) > len(_kinds(settings, chosen)):
            chosen.append(key)
    for key in chosen[:]:  # later keys may say all that an earlier one does
        others = [other for other in chosen if other != key]
        if len(_kinds(settings, others)) == len(_kinds(settings, chosen)):
            chosen = others
    return chosen


def _kinds(settings: Sequence[Settings], keys: Sequence[str]) -> set[tuple[str, ...]]:
    return {tuple(run_settings[key] for key in keys) for run_settings in settings}


def _name(algo: str, keys: Sequence[str], values: Sequence[str]) -> str:
    parts = [
        value.strip('"') if key == "experiment_name" else f"{key.removeprefix('algo.')}={value.strip(chr(34))}"
        for key, value in zip(keys, values, strict=True)
    ]
    return " ".join([algo, *parts])
