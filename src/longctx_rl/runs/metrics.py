"""Reading of ``metrics.jsonl`` without torch, so that reports start quickly."""

from pathlib import Path

from longctx_rl import files

Row = dict[str, float | None]
"""Metrics by name, ``step`` first; None where a value was not finite."""


def read_metrics(path: Path) -> list[Row]:
    """Return the rows of a metrics.jsonl; a last line that a crash truncated is dropped.

    Raises:
        ValueError: another line is not a row.
    """
    rows = []
    for number, row in enumerate(files.json_values(path), 1):
        problem = files.mismatch(row, dict[str, float | None]) or files.mismatch(row, {"step": int})
        if problem:
            raise ValueError(f"{path}, line {number} is {problem}: restore the file")
        rows.append(row)
    return rows
