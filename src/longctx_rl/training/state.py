"""Progress and costs of a run so far. Together with the engine's state, this is all that a resumed run needs."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from longctx_rl.config.schema import BudgetConfig
from longctx_rl.files import mismatch


@dataclass(slots=True)
class TrainState:
    """Counters over all ranks since the start of the run, named like the ``progress/`` metrics."""

    step: int = 0
    prompts: int = 0
    """Number of prompts so far, which is also the cursor into the training source."""
    sampled_tokens: int = 0
    trained_tokens: int = 0
    teacher_tokens: int = 0
    flops: float = 0.0
    wall_seconds: float = 0.0
    skipped: int = 0
    evaluated: dict[str, float] = field(default_factory=dict)
    """Metrics of the latest evaluation."""
    evaluated_step: int = -1
    """Step of the latest evaluation."""
    evaluated_items: int = 0
    """Items per task and length of the latest evaluation."""
    evaluated_part: int = 0
    """Number of the ``eval.times`` equal parts of the budget that were spent at the latest evaluation."""
    saved_step: int = -1
    """Step of the latest checkpoint."""

    def metrics(self) -> dict[str, float]:
        names = ("prompts", "sampled_tokens", "trained_tokens", "teacher_tokens", "flops", "wall_seconds")
        return {"progress/step": self.step} | {f"progress/{name}": getattr(self, name) for name in names}

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "TrainState":
        """Return a saved state. Raises ValueError if another version wrote it."""
        if problem := mismatch(data, cls):
            raise ValueError(f"the checkpoint has a trainer state {problem}: resume it with the version that wrote it")
        return cls(**data)


def spent(state: TrainState, budget: BudgetConfig) -> str | None:
    """Return the sentence that says why the run ends, or None while no budget is spent."""
    for name, (used, limit) in _limits(state, budget).items():
        if limit is not None and used >= limit:
            return f"budget.{name}={limit:g} is spent"
    until = budget.until
    if until is not None and state.evaluated.get(until.metric, float("-inf")) >= until.at_least:
        return f"{until.metric} reached {state.evaluated[until.metric]:.3f}"
    return None


def spent_share(state: TrainState, budget: BudgetConfig) -> float:
    """Return the largest spent share of the budgets in tokens, FLOPs and seconds; 0 if none of them is set."""
    return max((used / limit for used, limit in _costs(state, budget).values() if limit is not None), default=0.0)


def parts_spent(state: TrainState, budget: BudgetConfig, parts: int) -> int:
    """Divide the budget that will end the run into ``parts`` equal parts, and return how many of them are spent."""
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
    """Measures the seconds of each phase of a step: ``with watch("rollout"): ...``"""

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
