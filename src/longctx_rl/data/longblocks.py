"""Conversion between examples and rows in LongBlocks' columns, extended by the columns of exact grading."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from longctx_rl.files import built, mismatch, parsed_unicode
from longctx_rl.types import Evidence, Example

RESPONSE_PREFIX = "response_"
SOLVER_RESPONSE = f"{RESPONSE_PREFIX}solver"
"""Column of the generated worked responses; on the Hub, each teacher model has its own column."""


def to_row(example: Example) -> dict[str, Any]:
    """Return the example as a flat row for JSON Lines or Parquet."""
    return {
        "id": example.id,
        "document": example.document,
        "source": example.source,
        "language": example.language,
        "question": example.question,
        "answer": example.answer,
        SOLVER_RESPONSE: example.response,
        "task": example.task,
        "evidence": json.dumps([asdict(item) for item in example.evidence]),
        "family_id": example.family_id,
        "length": example.length,
        "chat": example.chat,
    }


def from_row(
    row: Mapping[str, Any], *, response_column: str = SOLVER_RESPONSE, default_task: str = "longblocks"
) -> Example:
    """Return the example of a row that this package wrote, or of a Hub row, which has no evidence, family or task.

    Args:
        row: maps column names to values.
        response_column: the response used as the imitation target; if absent or null, the answer is the target.
        default_task: task of rows without one.

    Raises:
        ValueError: a required column is missing or null.
    """
    for column in ("id", "document", "question", "answer"):
        if row.get(column) is None:
            hint = ": its text must be restored from its source first" if column == "document" else ""
            raise ValueError(f"row {row.get('id')!r} has no {column!r}{hint}")
    return Example(
        id=str(row["id"]),
        document=row["document"],
        question=row["question"],
        answer=row["answer"],
        task=row.get("task") or default_task,
        response=row.get(response_column),
        language=row.get("language") or "en",
        source=row.get("source") or "",
        evidence=read_evidence(row.get("evidence") or "[]"),
        family_id=row.get("family_id") or "",
        length=row.get("length") or 0,
        chat=row.get("chat", True),
    )


def read_evidence(text: str) -> tuple[Evidence, ...]:
    """Return the evidence of a row, which is stored as JSON. Raises ValueError if it is malformed."""
    items, problem = parsed_unicode(text.encode("utf-8"))
    if problem := problem or mismatch(items, list[Evidence], "evidence"):
        raise ValueError(f"the evidence is {problem}")
    return tuple(built(Evidence, item) for item in items)
