"""Selection of a store's rows by a configuration, with the reasons why rows are excluded."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from longctx_rl.config.data import LongBlocksConfig
from longctx_rl.data.longblocks import RESPONSE_PREFIX
from longctx_rl.data.store import Store
from longctx_rl.data.tasks import task_of

Split = Literal["train", "validation", "test"]


@dataclass(slots=True)
class Selection:
    """The selected rows of one split."""

    rows: dict[str, list[int]] = field(default_factory=dict)
    """Maps a task to row indices in the store."""
    lengths: dict[str, list[int]] = field(default_factory=dict)
    """Prompt tokens of each row."""
    excluded: Counter[str] = field(default_factory=Counter)
    """Number of excluded rows by reason."""

    def __len__(self) -> int:
        return sum(map(len, self.rows.values()))


def split_of(document_hash: str, *, validation: float, test: float) -> Split:
    """Return the split of a document and all its questions, a function of the document's hash only."""
    place = int(document_hash[:12], 16) / 16**12
    if place < test:
        return "test"
    return "validation" if place < test + validation else "train"


def task_at(store: Store, index: int) -> str:
    """Return the task of a row of a store."""
    row = {name: values[index] for name, values in store.columns.items()}
    return task_of(
        row["named_task"],
        row["source"],
        document_tokens=row["document_tokens"],
        answer_tokens=row["answer_tokens"],
        verbatim=row["verbatim"],
    )


def select(
    store: Store,
    settings: LongBlocksConfig,
    split: Split,
    *,
    overhead: int,
    tasks: Sequence[str],
    longest_target: int | None = None,
) -> Selection:
    """Apply the configured filters to a store.

    Args:
        overhead: prompt tokens other than document and question.
        tasks: tasks to select; empty: all.
        longest_target: maximum tokens of an imitation target; None: no limit.
    """
    selection, columns = Selection(), store.columns
    for index in range(len(store)):
        row = {name: values[index] for name, values in columns.items()}
        beside = row["question_tokens"] + overhead
        task = task_at(store, index)
        reason = _reason(row, settings, split, task, tasks) or _length_reason(row, settings, beside, longest_target)
        if reason:
            selection.excluded[reason] += 1
            continue
        selection.rows.setdefault(task, []).append(index)
        selection.lengths.setdefault(task, []).append(min(row["document_tokens"] + beside, settings.max_tokens))
    return selection


def _reason(row: dict[str, Any], settings: LongBlocksConfig, split: Split, task: str, tasks: Sequence[str]) -> str:
    """Return why a row is excluded regardless of its length; empty if it is not."""
    if split_of(row["document_hash"], validation=settings.validation, test=settings.test) != split:
        return "document of another split"
    if settings.sources is not None and row["source"] not in settings.sources:
        return "source not selected"
    if settings.languages is not None and row["language"] not in settings.languages:
        return "language not selected"
    if tasks and task not in tasks:
        return "task not selected"
    if settings.target.startswith(RESPONSE_PREFIX) and settings.target not in row["targets"]:
        return f"no {settings.target}"
    return ""


def _length_reason(row: dict[str, Any], settings: LongBlocksConfig, beside: int, longest_target: int | None) -> str:
    length = row["document_tokens"] + beside
    if length < settings.min_tokens:
        return "shorter than data.longblocks.min_tokens"
    if beside >= settings.max_tokens:
        return "a question longer than data.longblocks.max_tokens"
    if length > settings.max_tokens and settings.overlong == "drop":
        return "longer than data.longblocks.max_tokens"
    if longest_target is not None:
        named = settings.target in row["targets"]
        target = row["target_tokens"][row["targets"].index(settings.target)] if named else row["answer_tokens"]
        if target > longest_target:
            return "an answer longer than rollout.max_new_tokens"
    return ""
