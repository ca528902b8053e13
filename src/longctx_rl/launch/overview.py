"""What a person sees of a sweep while it runs: a line for each running run, from its metrics.jsonl."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from longctx_rl.config.schema import Config
from longctx_rl.launch import costs
from longctx_rl.runs.progress import duration, share_spent

LIVE_SECONDS = 1.0
PLAIN_SECONDS = 30.0
"""Between two looks: on a terminal, where the lines are rewritten, and elsewhere."""


@dataclass(slots=True)
class Watched:
    """A run that is under way."""

    config: Config
    began: float
    """In the monotonic clock's seconds."""
    share: float
    """Of its budget that had been spent by then."""

    @classmethod
    def starting(cls, config: Config) -> "Watched":
        return cls(config, time.monotonic(), share_spent(config.budget, costs.latest(Path(config.run_dir))))

    def seconds_left(self, metrics: dict[str, float]) -> float:
        """At the pace so far; not a number before the first step. Evaluations to come are not in it."""
        share = share_spent(self.config.budget, metrics)
        pace = (share - self.share) / (time.monotonic() - self.began)
        return (1.0 - share) / pace if pace > 0 else float("nan")

    def line(self) -> str:
        """Step, share of the budget, seconds, time left, and how it does."""
        metrics = costs.latest(Path(self.config.run_dir))
        columns = [
            Path(self.config.run_dir).name,
            f"step {metrics.get('progress/step', 0):.0f}",
            f"{share_spent(self.config.budget, metrics):.0%} of the budget",
            f"{duration(time.monotonic() - self.began)} gone",
            f"{duration(self.seconds_left(metrics))} left",
        ]
        for label, name in (("reward", "rollout/reward_mean"), ("loss", "loss/total")):
            columns += [f"{label} {metrics[name]:.3f}"] if name in metrics else []
        return "  ".join(columns)


class Overview:
    """Rewrites its lines in place on a terminal, and adds them now and then elsewhere."""

    def __init__(self, terminal: TextIO | None = None) -> None:
        self._terminal = terminal or sys.stdout
        self._live = self._terminal.isatty()
        self._last = time.monotonic() if not self._live else float("-inf")
        self._open = 0

    def show(self, summary: str, running: Sequence[Watched]) -> None:
        """Show how the sweep stands, if it is time to."""
        if time.monotonic() - self._last < (LIVE_SECONDS if self._live else PLAIN_SECONDS):
            return
        self._last = time.monotonic()
        lines = [summary, *(f"  {one.line()}" for one in running)]
        self._clear()
        self._terminal.write("".join(f"{line}\n" for line in lines))
        self._terminal.flush()
        self._open = len(lines) if self._live else 0

    def say(self, text: str) -> None:
        """Write a message that stays."""
        self._clear()
        self._terminal.write(f"{text}\n")
        self._terminal.flush()

    def _clear(self) -> None:
        """Take back the lines that are to be rewritten."""
        if self._open:
            self._terminal.write(f"\x1b[{self._open}F\x1b[J")
            self._open = 0
