"""What a run has done and spent so far. Together with the engine's state this is all that resuming needs."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from longctx_rl.config.schema import BudgetConfig


@dataclass(slots=True)
class TrainState:
    """Counters over all ranks since the run began. Names are those of the ``progress/`` metrics."""

    step: int = 0
    prompts: int = 0
    """Also the cursor into the training source."""
    sampled_tokens: int = 0
    trained_tokens: int = 0
    teacher_tokens: int = 0
    flops: float = 0.0
    wall_seconds: float = 0.0
    skipped: int = 0
    evaluated: dict[str, float] = field(default_factory=dict)
    """Metrics of the latest evaluation."""
    evaluated_step: int = -1
    evaluated_items: int = 0
    """When the latest evaluation was, and its items per task and length."""
    evaluated_part: int = 0
    """Of the parts that ``eval.times`` cuts the budget into, those behind the latest evaluation."""
    saved_step: int = -1
    """When the latest checkpoint was written."""

    def metrics(self) -> dict[str, float]:
        names = ("prompts", "sampled_tokens", "trained_tokens", "teacher_tokens", "flops", "wall_seconds")
        return {"progress/step": self.step} | {f"progress/{name}": getattr(self, name) for name in names}

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "TrainState":
        return cls(**data)


def spent(state: TrainState, budget: BudgetConfig) -> str | None:
    """Which budget ends the run, in words, or None."""
    for name, (used, limit) in _limits(state, budget).items():
        if limit is not None and used >= limit:
            return f"budget.{name}={limit:g} is spent"
    until = budget.until
    if until is not None and state.evaluated.get(until.metric, float("-inf")) >= until.at_least:
        return f"{until.metric} reached {state.evaluated[until.metric]:.3f}"
    return None


def spent_share(state: TrainState, budget: BudgetConfig) -> float:
    """Share of the budget in tokens, FLOPs or seconds that is used up, whichever is further; 0 if none is set."""
    return max((used / limit for used, limit in _costs(state, budget).values() if limit is not None), default=0.0)


def parts_spent(state: TrainState, budget: BudgetConfig, parts: int) -> int:
    """How many of so many equal parts of the budget that will end the run are spent."""
    limits = _limits(state, budget).values()
    return max((int(used * parts / limit) for used, limit in limits if limit), default=0)


def _limits(state: TrainState, budget: BudgetConfig) -> dict[str, tuple[float, float | None]]:
    return {"steps": (state.step, budget.steps), **_costs(state, budget)}


def _costs(state: TrainState, budget: BudgetConfig) -> dict[str, tuple[float, float | None]]:
    return {
        "trained_tokens": (state.trained_tokens, budget.trained_tokens),
        "flops": (state.flops, budget.flops),
        "seconds": (state.wall_seconds, budget.seconds),
    }


class Stopwatch:
    """Seconds per phase of a step: ``with watch("rollout"): ...``"""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start

    def metrics(self) -> dict[str, float]:
        return {f"time/{phase}": seconds for phase, seconds in self.seconds.items()}
