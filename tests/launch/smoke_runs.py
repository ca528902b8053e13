"""Command lines of runs of two steps, and where they leave their rows."""

from collections.abc import Callable
from pathlib import Path

from small_runs import rows_of

Command = Callable[..., tuple[int, str, str]]
"""Runs a command line; returns its exit code, standard output and standard error."""
SMOKE = ("+experiment=smoke", "model=mini_fresh", "logging=none", "eval=none")
RUN = "runs/smoke/sft-mini_fresh-mix-s"
"""The directory of a run with ``+algo=sft`` and ``SMOKE``, without the seed."""


def steps(run: Path) -> list[int]:
    """Return the steps in a run's metrics.jsonl."""
    return [row["step"] for row in rows_of(run)]
