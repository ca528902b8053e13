"""The display of a sweep under way: a summary, and a line for each active run from its metrics.jsonl."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from longctx_rl import cli
from longctx_rl.config.schema import Config
from longctx_rl.launch import costs
from longctx_rl.runs.progress import duration, share_spent

LIVE_SECONDS = 1.0
PLAIN_SECONDS = 30.0
"""Seconds between updates: on a terminal, where the lines are rewritten, and elsewhere."""


@dataclass(slots=True)
class Watched:
    """A run that is under way."""

    config: Config
    began: float
    """Start time on the monotonic clock, in seconds."""
    share: float
    """Share of the budget that was already spent at the start."""

    @classmethod
    def starting(cls, config: Config) -> "Watched":
        return cls(config, time.monotonic(), share_spent(config.budget, costs.latest(Path(config.run_dir))))

    def seconds_left(self, metrics: dict[str, float]) -> float:
        """Estimate the seconds left at the pace so far, without evaluations to come; NaN before the first step."""
        share = share_spent(self.config.budget, metrics)
        pace = (share - self.share) / (time.monotonic() - self.began)
        return (1.0 - share) / pace if pace > 0 else float("nan")

    def line(self) -> str:
        """Return step, share of the budget, time elapsed, time left, reward and loss in one line."""
        metrics = costs.latest(Path(self.config.run_dir))
        columns = [
            Path(self.config.run_dir).name,
            f"step {metrics.get('progress/step', 0):.0f}",
            f"{share_spent(self.config.budget, metrics):.0%} of the budget",
            f"{duration(time.monotonic() - self.began)} elapsed",
            f"{duration(self.seconds_left(metrics))} left",
        ]
        for label, name in (("reward", "rollout/reward_mean"), ("loss", "loss/total")):
            columns += [f"{label} {metrics[name]:.3f}"] if name in metrics else []
        return "  ".join(columns)


class Overview:
    """Rewrites its lines in place on a terminal, and prints them at longer intervals elsewhere."""

    def __init__(self, terminal: TextIO | None = None) -> None:
        self._terminal = terminal or sys.stdout
        self._live = self._terminal.isatty()
        self._last = time.monotonic() if not self._live else float("-inf")
        self._open = 0

    def show(self, summary: str, running: Sequence[Watched]) -> None:
        """Show the state of the sweep if an update is due."""
        if time.monotonic() - self._last < (LIVE_SECONDS if self._live else PLAIN_SECONDS):
            return
        self._last = time.monotonic()
        lines = [summary, *(f"  {run.line()}" for run in running)]
        self._clear()
        cli.write(self._terminal, "".join(f"{line}\n" for line in lines))
        self._open = len(lines) if self._live else 0

    def say(self, text: str) -> None:
        """Write a message that is not rewritten."""
        self._clear()
        cli.write(self._terminal, f"{text}\n")

    def _clear(self) -> None:
        """Erase the lines that are about to be rewritten."""
        if self._open:
            cli.write(self._terminal, f"\x1b[{self._open}F\x1b[J")
            self._open = 0
