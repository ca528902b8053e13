"""Run directories as they are on disk: complete, unfinished, truncated, or written by another version.

Everything that can be read is used; everything that cannot is named in ``Run.problems``, one sentence each.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import longctx_rl
from longctx_rl.config import convert
from longctx_rl.config.schema import Config
from longctx_rl.evals.folder import read_description
from longctx_rl.evals.records import ItemRecord, record_of
from longctx_rl.files import json_lines, mismatch
from longctx_rl.runs.directory import ENVIRONMENT, read_environment
from longctx_rl.runs.metrics import Row

SAFE_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The C implementation where PyYAML has it: 200 configurations in one second instead of ten."""
ROLLOUT = {
    **dict.fromkeys(("id", "prompt_tail", "answer", "completion", "finish_reason"), str | None),
    **dict.fromkeys(("tokens", "reward", "advantage"), float | None),
    "reward_parts": dict[str, float] | None,
    "tokens_text": list[str] | None,
    "teacher_gap": list[float] | None,
}
"""Types of the fields of a saved completion."""


@dataclass(frozen=True, slots=True)
class Run:
    """A training run, as its directory describes it."""

    path: Path
    config: dict[str, Any]
    """config.yaml as plain nested data; empty if it cannot be read."""
    environment: dict[str, Any]
    """environment.json; empty if it cannot be read."""
    metrics: list[Row]
    """Rows of metrics.jsonl in the order they were written, ``step`` first."""
    problems: tuple[str, ...]
    """What is missing, truncated or from another version, one sentence each."""
    finished: bool
    """The run reached its end."""

    @property
    def algo(self) -> str:
        """The name of the method; ``unknown`` without a readable configuration."""
        return str(self.config.get("algo", {}).get("name", "unknown"))

    @property
    def seed(self) -> int:
        """-1 without a readable configuration."""
        seed = self.config.get("seed")
        return seed if isinstance(seed, int) else -1

    @property
    def name(self) -> str:
        """The name of the directory."""
        return self.path.name

    def rollouts(self) -> dict[int, list[dict[str, Any]]]:
        """The saved completions of each step, in the order of steps; unreadable lines are dropped."""
        files = sorted((self.path / "rollouts").glob("step-*.jsonl"))
        numbered = {file: file.stem.removeprefix("step-") for file in files}
        return {
            int(step): [row for row in _json_objects(file)[0] if not mismatch(row, ROLLOUT)]
            for file, step in numbered.items()
            if step.isdecimal()
        }


@dataclass(frozen=True, slots=True)
class EvaluationFolder:
    """A folder of ``python -m longctx_rl.evaluate``: an evaluation of fixed weights."""

    path: Path
    described: dict[str, Any]
    """The content of evaluation.json."""

    @property
    def name(self) -> str:
        """The name of the folder, such as ``base``."""
        return self.path.name

    @property
    def checkpoint(self) -> str:
        return str(self.described.get("checkpoint"))


def find_evaluations(root: Path) -> list[EvaluationFolder]:
    """All evaluation folders under ``root``, sorted by path. Raises ValueError if one cannot be read."""
    fix = "remove this folder and evaluate its checkpoint again"
    found = sorted(root.rglob("evaluation.json"))
    return [EvaluationFolder(file.parent, read_description(file, fix)) for file in found]


def find_runs(root: Path) -> list[Run]:
    """All runs under ``root``, sorted by path: directories with config.yaml and metrics.jsonl or environment.json.

    Raises:
        ValueError: there are none.
    """
    runs = [read_run(path) for path in sorted(run_directories(root))]
    if not runs:
        raise ValueError(f"no runs under {root}: give a folder that contains run directories, such as runs/table1")
    return runs


def read_run(path: Path) -> Run:
    """Read a run directory, whatever its state."""
    problems: list[str] = []
    config = _config(path / "config.yaml", problems)
    environment = _environment(path, problems)
    there = (path / "metrics.jsonl").is_file()
    rows, unread = _json_objects(path / "metrics.jsonl") if there else ([], [])
    metrics = [row for row in rows if isinstance(row.get("step"), int) and not mismatch(row, dict[str, float | None])]
    problems += unread
    if len(metrics) < len(rows):
        unusable = len(rows) - len(metrics)
        problems.append(f"{path / 'metrics.jsonl'} has {unusable} rows that are not metrics, which were dropped")
    if not metrics:
        problems.append(f"{path / 'metrics.jsonl'} {'contains no step' if there else 'is missing'}")
    finished = (path / "finished.json").is_file()
    if not finished:
        problems.append(f"{path} is not finished: continue it with resume=true")
    return Run(path, config, environment, metrics, tuple(problems), finished)


def read_evals(folder: Path) -> dict[str, tuple[list[ItemRecord], list[str]]]:
    """Each suite's records, and problems of its file, from ``evals/`` of a run directory or an evaluation folder."""
    evals: dict[str, tuple[list[ItemRecord], list[str]]] = {}
    for file in sorted((folder / "evals").glob("*.jsonl")):
        lines, problems = _json_objects(file)
        kept: list[ItemRecord] = []
        for line in lines:
            try:
                kept.append(record_of(line))
            except ValueError:  # written by another version, or damaged
                continue
        if len(kept) < len(lines):
            problems.append(f"{file} has {len(lines) - len(kept)} records of another version, which were dropped")
        evals[file.stem] = (kept, problems)
    return evals


def run_directories(root: Path) -> Iterator[Path]:
    """Run directories under ``root``, in no particular order."""
    for config in root.rglob("config.yaml"):
        if config.is_file() and any((config.parent / name).is_file() for name in ("metrics.jsonl", "environment.json")):
            yield config.parent


def _config(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        config = yaml.load(path.read_text(encoding="utf-8"), Loader=SAFE_LOADER)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        problems.append(f"{path} cannot be read: {str(error).splitlines()[0]}")
        return {}
    if not isinstance(config, dict) or not isinstance(config.get("algo"), dict):
        problems.append(f"{path} is not a run's configuration")
        return {}
    try:
        convert.convert(Config, config)
    except ValueError as error:
        problems.append(f"{path} was written by another version ({error})")
    return config


def _environment(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        environment = read_environment(path, "commit and versions are unknown")
    except ValueError as error:
        problems.append(str(error))
        return {}
    if not environment:
        problems.append(f"{path / ENVIRONMENT} is missing: commit and versions are unknown")
        return {}
    version = environment.get("longctx_rl")
    if version != longctx_rl.__version__:
        problems.append(f"{path} was made by longctx_rl {version}; this is {longctx_rl.__version__}")
    return environment


def _json_objects(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The objects of a JSON Lines file, and its problems."""
    objects: list[dict[str, Any]] = []
    problems: list[str] = []
    broken = 0
    for line in json_lines(path):
        if line.cut:
            problems.append(f"{path} ends in the middle of a line, which was dropped")
        elif isinstance(line.value, dict):
            objects.append(line.value)
        else:
            broken += 1
    if broken:
        problems.append(f"{path} has {broken} lines that are not JSON objects, which were dropped")
    return objects, problems
