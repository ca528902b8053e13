"""The progress line: rewritten in place on a terminal, printed at intervals elsewhere."""

import sys
import time
from collections.abc import Mapping
from typing import TextIO

from longctx_rl import cli
from longctx_rl.config.schema import BudgetConfig

PLAIN_SECONDS = 10.0
"""Minimum interval between two printed lines, and between two lines of log.txt."""

_CLEAR = "\r\x1b[K"


class Progress:
    """Writes progress and messages to the terminal and to log.txt, without mixing them on one line."""

    def __init__(self, budget: BudgetConfig, log: TextIO, terminal: TextIO | None = None) -> None:
        self._budget = budget
        self._log = log
        self._terminal = terminal or sys.stdout
        self._live = self._terminal.isatty()
        self._line_open = False
        self._last_plain = float("-inf")
        self._begun: tuple[float, float] | None = None

    def show(self, metrics: Mapping[str, float]) -> None:
        """Show the metrics of a training step."""
        line = self.render(metrics, time.monotonic())
        plain = time.monotonic() - self._last_plain >= PLAIN_SECONDS or self.share_spent(metrics) >= 1.0
        if self._live:
            cli.write(self._terminal, _CLEAR + line)
            self._line_open = True
        elif plain:
            cli.write(self._terminal, f"{line}\n")
        if plain:
            self._last_plain = time.monotonic()
            self._write_log(line)

    def say(self, text: str) -> None:
        """Write a message on its own line."""
        self.end_line()
        cli.write(self._terminal, f"{text}\n")
        self._write_log(text)

    def end_line(self) -> None:
        """Finish the live line, so that further output starts below it."""
        if self._line_open:
            cli.write(self._terminal, "\n")
            self._line_open = False

    def share_spent(self, metrics: Mapping[str, float]) -> float:
        """Return the spent share of the budget that will end the run, in [0, 1]."""
        return share_spent(self._budget, metrics)

    def render(self, metrics: Mapping[str, float], now: float) -> str:
        """Return one line: step, loss, reward, KL to the teacher, speed, time left; a dash for missing metrics."""
        spent = self.share_spent(metrics)
        if self._begun is None:
            self._begun = (now - metrics.get("perf/step_seconds", 0.0), spent - self._one_step(metrics, spent))
        start, first = self._begun
        left = (now - start) / (spent - first) * (1.0 - spent) if spent > first else float("nan")
        columns = (
            f"step {metrics['progress/step']:.0f}" + ("" if self._budget.steps is None else f"/{self._budget.steps}"),
            f"loss {_number(metrics.get('loss/total'))}",
            f"reward {_number(metrics.get('rollout/reward_mean'))}",
            f"KL to teacher {_number(metrics.get('teacher/kl_reverse'))}",
            f"{_count(metrics.get('perf/tokens_per_second', 0.0))} tokens/s",
            f"{duration(left)} left",
        )
        return "  ".join(columns)

    @staticmethod
    def _one_step(metrics: Mapping[str, float], spent: float) -> float:
        """Estimate the share of the budget that the latest step used: steps cost about the same."""
        return spent / max(metrics["progress/step"], 1.0)

    def _write_log(self, text: str) -> None:
        self._log.write(text + "\n")
        self._log.flush()


def share_spent(budget: BudgetConfig, metrics: Mapping[str, float]) -> float:
    """Return the spent share of the budget that will end the run, in [0, 1], from ``progress/`` metrics."""
    return min(1.0, max((metrics.get(name, 0.0) / limit for name, limit in limits(budget).items()), default=1.0))


def limits(budget: BudgetConfig) -> dict[str, float]:
    """Return the configured budgets, by the metric that counts against them."""
    budgets = {
        "progress/step": budget.steps,
        "progress/trained_tokens": budget.trained_tokens,
        "progress/flops": budget.flops,
        "progress/wall_seconds": budget.seconds,
    }
    return {name: limit for name, limit in budgets.items() if limit}


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _count(value: float) -> str:
    return f"{value:.0f}" if value < 10_000 else f"{value / 1000:.0f}k"


def duration(seconds: float) -> str:
    """Format seconds as ``m:ss`` or ``h:mm:ss``; ``?`` for NaN."""
    if seconds != seconds:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
