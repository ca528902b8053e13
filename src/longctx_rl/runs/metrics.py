"""Reading of ``metrics.jsonl`` without torch, so that reports start quickly."""

from pathlib import Path

from longctx_rl import files

Row = dict[str, float | None]
"""Metrics by name, ``step`` first; None where a value was not finite."""


def read_metrics(path: Path) -> list[Row]:
    """Return the rows of a metrics.jsonl; a last line that a crash truncated is dropped.

    Raises:
        ValueError: another line is not JSON.
    """
    return list(files.json_values(path))
