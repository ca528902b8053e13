"""Reading ``metrics.jsonl``. Imports nothing, so that whoever reads runs does not wait for torch."""

import json
from pathlib import Path

Row = dict[str, float | None]
"""Metrics by name, ``step`` first; None where a value was not finite."""


def read_metrics(path: Path) -> list[Row]:
    """The rows of a metrics.jsonl; a last line that was cut short by a crash is left out.

    Raises:
        ValueError: another line is not JSON.
    """
    lines = path.read_text(encoding="utf-8").split("\n")
    complete = lines[:-1]  # what follows the last newline is empty, or cut short
    rows: list[Row] = []
    for number, line in enumerate(complete, 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number} is not JSON: {line[:60]!r}; restore the file") from error
    return rows
