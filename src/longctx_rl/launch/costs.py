"""What a sweep has before it, read from run directories: which runs are finished, and what the others will cost."""

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
"""Of metrics.jsonl, which hold its last rows."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a run is before it is started."""

    kind: Literal["new", "half done", "finished", "refused"]
    step: int = 0
    """Of the checkpoint that it goes on from, or its last."""
    problem: str = ""
    """Why it cannot start."""

    def __str__(self) -> str:
        return {
            "new": "new",
            "half done": f"goes on from step {self.step}",
            "finished": "finished",
            "refused": "cannot start",
        }[self.kind]


def standing(config: Config) -> Standing:
    """What is in a run's directory. Writes nothing."""
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
    return Standing("half done", max(saved, default=0))


@dataclass(frozen=True, slots=True)
class Cost:
    """What a run takes: evaluations count in seconds alone."""

    seconds: float
    tokens: float
    """Trained tokens."""
    flops: float

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.seconds + other.seconds, self.tokens + other.tokens, self.flops + other.flops)

    def __mul__(self, share: float) -> "Cost":
        return Cost(self.seconds * share, self.tokens * share, self.flops * share)

    def __str__(self) -> str:
        return f"{duration(self.seconds):>8}  {self.tokens:>10,.0f} tokens  {self.flops:>8.2g} FLOPs"


@dataclass(frozen=True)
class Measured:
    """A finished run, as a guide to what one like it will cost."""

    config: Config
    progress: dict[str, float]
    """Its last ``progress/`` metrics."""
    evaluation_seconds: float
    here: bool = True
    """Whether its directory is here; False: a committed result, whose seconds may be another machine's."""

    @cached_property
    def likeness(self) -> list[Any]:
        """What must be equal for it to be a guide."""
        return _likeness(self.config)

    def estimate(self, config: Config) -> Cost:
        """The cost of a run like it with another budget."""
        scale = min(limit / self.progress[name] for name, limit in limits(config.budget).items())
        steps = Cost(*(self.progress[f"progress/{name}"] for name in ("wall_seconds", "trained_tokens", "flops")))
        return steps * scale + Cost(self.evaluation_seconds, 0.0, 0.0)


def measured(roots: set[str]) -> list[Measured]:
    """The finished runs below some ``runs_root``; those of another version, or without metrics, are left out."""
    found = []
    for root in sorted(roots):
        for record in sorted([*Path(root).glob("*/finished.json"), *Path(root).glob("*/*/finished.json")]):
            try:
                config = configuration.read(record.with_name("config.yaml"))
                rows = _rows(record.with_name("metrics.jsonl"))
            except (ValueError, FileNotFoundError):
                continue
            progress = [row for row in rows if row.get("progress/trained_tokens")]
            if progress:
                evaluations = sum(row.get("time/eval") or 0.0 for row in rows)
                found.append(Measured(config, progress[-1], evaluations))
    return found


def estimate(config: Config, known: Sequence[Measured]) -> Cost | None:
    """The mean over finished runs of the same method, models, batch, lengths and evaluation; None: there is none."""
    costs = [one.estimate(config) for one in _alike(config, known)]
    if not costs:
        return None
    return Cost(*(fmean(getattr(one, name) for one in costs) for name in ("seconds", "tokens", "flops")))


def _alike(config: Config, known: Sequence[Measured]) -> list[Measured]:
    """Those that are here; only if there are none, committed ones."""
    wanted = _likeness(config)
    alike = [one for one in known if one.likeness == wanted]
    return [one for one in alike if one.here] or alike


def _likeness(config: Config) -> list[Any]:
    return [
        (config.algo.name, config.algo.group_size, config.needs_teacher, config.needs_reference),
        (config.model.name, config.model.teacher, config.engine.name, config.world_size),
        (config.batch.prompts_per_step, config.rollout.max_new_tokens, config.data, config.task.mixture),
        convert.plain(config.eval),
    ]


def makespan(seconds: Sequence[float], jobs: int) -> float:
    """How long so many runs at a time take, each starting as soon as one before it ends."""
    ends = [0.0] * max(jobs, 1)
    for one in seconds:
        heapq.heapreplace(ends, ends[0] + one)
    return max(ends)


def latest(run_dir: Path) -> dict[str, float]:
    """The newest value of each metric that the last rows of a run hold; empty if it has none yet."""
    path = run_dir / "metrics.jsonl"
    if not path.is_file():
        return {}
    newest: dict[str, float] = {}
    for row in _rows(path, TAIL_BYTES):
        newest |= {name: value for name, value in row.items() if value is not None}
    return newest


def _rows(path: Path, last_bytes: int | None = None) -> list[dict[str, float]]:
    """The complete rows of a metrics.jsonl, or of its end, whose first line may be a fragment.

    Raises:
        ValueError: a row that begins and ends as one is broken.
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
    """The plan as text: each run with where it stands and what it will cost, and the whole."""
    lines: list[str] = []
    costs: list[Cost] = []
    unknown = elsewhere = 0
    counts = {"finished": 0, "half done": 0, "new": 0, "refused": 0}
    for number, config in enumerate(configs, 1):
        where = standing(config)
        counts[where.kind] += 1
        note = where.problem
        if where.kind in ("new", "half done"):
            cost = remaining(config, known)
            unknown += cost is None
            elsewhere += cost is not None and not _alike(config, known)[0].here
            note = "no run alike yet" if cost is None else str(cost)
            costs += [] if cost is None else [cost]
        lines.append(f"{number:>4}  {config.run_dir}  {where}  {note}".rstrip())
    total = sum(costs, Cost(0.0, 0.0, 0.0))
    time = makespan([cost.seconds for cost in costs], jobs)
    lines += [
        f"{len(configs)} runs: " + ", ".join(f"{count} {kind}" for kind, count in counts.items() if count),
        f"cost: {' '.join(str(total).split())}" + f"; {duration(time)} with sweep.jobs={jobs}"
        if costs
        else "cost: not known before a run of this kind is finished",
    ]
    if elsewhere:
        lines.append(f"{elsewhere} of them cost what committed results did, whose seconds may be another machine's")
    if costs and unknown:
        lines.append(f"{unknown} runs are not in it: no finished run is of their method, models, batch and evaluation")
    return "\n".join(lines)


def remaining(config: Config, known: Sequence[Measured]) -> Cost | None:
    """What is left to pay for a run that is not finished."""
    cost = estimate(config, known)
    return None if cost is None else cost * (1.0 - share_spent(config.budget, latest(Path(config.run_dir))))
