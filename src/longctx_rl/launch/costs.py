"""The plan of a sweep, read from run directories: which runs are finished, and what the others will cost."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from longctx_rl.config import convert
from longctx_rl.config import load as configuration
from longctx_rl.config.schema import Config
from longctx_rl.files import parse_lines
from longctx_rl.runs import directory
from longctx_rl.runs.progress import duration, limits, share_spent

TAIL_BYTES = 1 << 16
"""Bytes at the end of metrics.jsonl that are read for its last rows."""


@dataclass(frozen=True, slots=True)
class Standing:
    """The state of a run before it is started."""

    kind: Literal["new", "resumable", "finished", "refused"]
    step: int = 0
    """The last step of a finished run, or the step of the checkpoint from which the run resumes."""
    problem: str = ""
    """The reason why the run cannot start."""

    def __str__(self) -> str:
        return {
            "new": "new",
            "resumable": f"resumes from step {self.step}",
            "finished": "finished",
            "refused": "cannot start",
        }[self.kind]


def standing(config: Config) -> Standing:
    """Determine the state of a run from its directory, without writing anything."""
    try:
        directory.check(config)
    except ValueError as problem:
        return Standing("refused", problem=str(problem))
    path = Path(config.run_dir)
    if done := directory.finished(config):
        return Standing("finished", done["step"])
    if not (path.is_dir() and directory.trained(path)):
        return Standing("new")
    saved = [int(entry.name.removeprefix("step-")) for entry in (path / "checkpoints").glob("step-*")]
    return Standing("resumable", max(saved, default=0))


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of a run. Evaluations count only in seconds."""

    seconds: float
    tokens: float
    """Number of trained tokens."""
    flops: float

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.seconds + other.seconds, self.tokens + other.tokens, self.flops + other.flops)

    def __mul__(self, share: float) -> "Cost":
        return Cost(self.seconds * share, self.tokens * share, self.flops * share)

    def __str__(self) -> str:
        return f"{duration(self.seconds):>8}  {self.tokens:>10,.0f} tokens  {self.flops:>8.2g} FLOPs"


@dataclass(frozen=True)
class Measured:
    """A finished run, from which the cost of a comparable one is estimated."""

    config: Config
    progress: dict[str, float]
    """The run's last ``progress/`` metrics."""
    evaluation_seconds: float
    here: bool = True
    """Whether the run's directory is on this machine. False: a committed result, perhaps timed on another machine."""

    @cached_property
    def comparison_key(self) -> list[Any]:
        """The settings that must be equal for another run to be comparable."""
        return _comparison_key(self.config)

    def estimate(self, config: Config) -> Cost:
        """Estimate the cost of a comparable run with another budget."""
        scale = min(limit / self.progress[name] for name, limit in limits(config.budget).items())
        steps = Cost(*(self.progress[f"progress/{name}"] for name in ("wall_seconds", "trained_tokens", "flops")))
        return steps * scale + Cost(self.evaluation_seconds, 0.0, 0.0)


def measured(roots: set[str]) -> list[Measured]:
    """Return the finished runs below each ``runs_root``, except those of another version or without metrics."""
    finished = []
    for root in sorted(roots):
        for record in sorted([*Path(root).glob("*/finished.json"), *Path(root).glob("*/*/finished.json")]):
            try:
                config = configuration.read(record.with_name("config.yaml"))
                rows = _rows(record.with_name("metrics.jsonl"))
            except (ValueError, OSError):
                continue
            progress = [row for row in rows if row.get("progress/trained_tokens")]
            if progress:
                evaluations = sum(row.get("time/eval") or 0.0 for row in rows)
                finished.append(Measured(config, progress[-1], evaluations))
    return finished


def estimate(config: Config, known: Sequence[Measured]) -> Cost | None:
    """Return the mean cost of finished runs with the same method, models, batch, lengths and evaluation, or None."""
    costs = [run.estimate(config) for run in _comparable(config, known)]
    if not costs:
        return None
    return Cost(*(fmean(getattr(cost, name) for cost in costs) for name in ("seconds", "tokens", "flops")))


def _comparable(config: Config, known: Sequence[Measured]) -> list[Measured]:
    """Return the comparable runs on this machine or, if there are none, the comparable committed results."""
    key = _comparison_key(config)
    comparable = [run for run in known if run.comparison_key == key]
    return [run for run in comparable if run.here] or comparable


def _comparison_key(config: Config) -> list[Any]:
    return [
        (config.algo.name, config.algo.group_size, config.needs_teacher, config.needs_reference),
        (config.model.name, config.external_teacher, config.engine.name, config.world_size),
        (config.algo.kd.teacher, config.algo.kd.view, config.algo.kd.view_tokens) if config.needs_teacher else (),
        config.algo.draws,
        (config.batch.prompts_per_step, config.rollout.max_new_tokens, config.data, config.task.mixture),
        convert.plain(config.eval),
    ]


def makespan(seconds: Sequence[float], jobs: int) -> float:
    """Return the duration of all runs, ``jobs`` at a time, if each starts as soon as an earlier one ends."""
    ends = [0.0] * max(jobs, 1)
    for run in seconds:
        heapq.heapreplace(ends, ends[0] + run)
    return max(ends)


def latest(run_dir: Path) -> dict[str, float]:
    """Return the newest value of each metric in the last rows of a run; empty before the first row."""
    path = run_dir / "metrics.jsonl"
    if not path.is_file():
        return {}
    newest: dict[str, float] = {}
    for row in _rows(path, TAIL_BYTES):
        newest |= {name: value for name, value in row.items() if value is not None}
    return newest


def _rows(path: Path, last_bytes: int | None = None) -> list[dict[str, float]]:
    """Return the complete rows of a metrics.jsonl, or those in its last bytes, whose first line may be a fragment.

    Raises:
        ValueError: a row is not valid although it has the beginning and the end of one.
    """
    rows = []
    with path.open("rb") as file:
        if last_bytes is not None:
            file.seek(max(0, path.stat().st_size - last_bytes))
        for line in parse_lines(file):
            if line.raw.startswith(b'{"step": ') and line.raw.endswith(b"}"):
                if line.problem:
                    raise ValueError(f"{path} has a row that is {line.problem}: {line.start!r}; restore the file")
                rows.append(line.value)
    return rows


def render(configs: Sequence[Config], jobs: int, known: Sequence[Measured]) -> str:
    """Render the plan: a line for each run with its state and cost, then the total."""
    lines: list[str] = []
    costs: list[Cost] = []
    unknown = elsewhere = 0
    counts = {"finished": 0, "resumable": 0, "new": 0, "refused": 0}
    for number, config in enumerate(configs, 1):
        where = standing(config)
        counts[where.kind] += 1
        note = where.problem
        if where.kind in ("new", "resumable"):
            cost = remaining(config, known)
            unknown += cost is None
            elsewhere += cost is not None and not _comparable(config, known)[0].here
            note = "no comparable run yet" if cost is None else str(cost)
            costs += [] if cost is None else [cost]
        lines.append(f"{number:>4}  {config.run_dir}  {where}  {note}".rstrip())
    total = sum(costs, Cost(0.0, 0.0, 0.0))
    time = makespan([cost.seconds for cost in costs], jobs)
    lines += [
        f"{_runs(len(configs))}: " + ", ".join(f"{count} {kind}" for kind, count in counts.items() if count),
        f"cost: {' '.join(str(total).split())}" + f"; {duration(time)} with sweep.jobs={jobs}"
        if costs
        else "cost: unknown until a comparable run is finished",
    ]
    if elsewhere:
        lines.append(
            f"{_runs(elsewhere)} estimated from committed results, whose seconds may come from another machine"
        )
    if costs and unknown:
        lines.append(
            f"{_runs(unknown)} not included: no finished run has the same method, models, batch and evaluation"
        )
    return "\n".join(lines)


def _runs(count: int) -> str:
    return f"{count} run{'' if count == 1 else 's'}"


def remaining(config: Config, known: Sequence[Measured]) -> Cost | None:
    """Estimate the remaining cost of a run that is not finished."""
    cost = estimate(config, known)
    return None if cost is None else cost * (1.0 - share_spent(config.budget, latest(Path(config.run_dir))))
