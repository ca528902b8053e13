"""Held-out documents of LongBlocks, or of a data set in its columns: the test split, which training excludes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from longctx_rl.config.eval import SuiteConfig
from longctx_rl.evals.items import Item

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LABELS = ("multihop", "grounding", "longform", "code")
KEY = "eval.suites.longblocks"


def read_items(config: SuiteConfig, first: int, count: int, tokenizer: PreTrainedTokenizerBase) -> list[Item]:
    """At most ``count`` rows per task and length from the test split, ordered by row hash.

    A row belongs to the smallest length that its prompt fits in. Its document is its family.

    Raises:
        ValueError: the data set cannot be read, nothing is held out, or a task has no row.
    """
    rows = config.data.longblocks if config.data is not None else None
    if rows is None:
        raise ValueError(f"{KEY}.data names no data set: choose /data@{KEY}.data=longblocks")
    from longctx_rl.data.longblocks_source import overhead, rendered  # pyarrow: not for a suite's name
    from longctx_rl.data.preparation import prepare
    from longctx_rl.data.reading import Origin
    from longctx_rl.data.selection import select

    # Answers are compared with the reference, not with a teacher's. Rows beyond the largest length are dropped.
    rows = replace(rows, target="answer", max_tokens=max(config.lengths), overlong="drop")
    books = Path(rows.books) if rows.books is not None else None
    origin = Origin(rows.path, rows.revision, rows.split, rows.streaming)
    store = prepare(origin, tokenizer, Path(rows.cache), books)
    chosen = select(store, rows, "test", overhead=overhead(tokenizer, rows.instruction), tasks=config.labels)
    hashes = store.columns["row_hash"]
    items: list[Item] = []
    for task in config.labels:
        cells: dict[int, list[int]] = {length: [] for length in sorted(config.lengths)}
        for row, tokens in zip(chosen.rows.get(task, ()), chosen.lengths.get(task, ()), strict=True):
            cells[next(length for length in cells if tokens <= length)].append(row)
        if not any(cells.values()):
            reasons = ", ".join(f"{number} {why}" for why, number in chosen.excluded.most_common())
            raise ValueError(
                f"{rows.path} has no held-out row of {task} ({reasons or 'none at all'}): raise {KEY}.data.longblocks."
                f"test or {KEY}.lengths, or remove {task} from {KEY}.labels"
            )
        for length, cell_rows in cells.items():
            ordered = sorted(cell_rows, key=lambda row: hashes[row])
            for row in ordered[first : first + count]:
                example = rendered(store, row, rows, tokenizer)
                example = replace(example, id=f"{hashes[row]}-L{length}", length=length, response=None)
                items.append(Item(task, example))
    if not items:
        raise ValueError(f"{KEY} has no rows at or after eval.first={first}: lower it")
    return items
