"""Prepared rows on disk: cleaned, measured in tokens, and stored in memory-mapped Arrow files.

A store holds every usable row of one data set for one tokenizer. Filters and splits are applied to its small columns
when it is opened. ``preparation`` writes stores.
"""

import bisect
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow

from longctx_rl.data.reading import Row
from longctx_rl.files import replacing

BATCH_ROWS = 16
"""Rows per Arrow batch, the unit of one access."""
REPORT = "report.json"
"""Written last: a store that has this file is complete."""

SCHEMA = pyarrow.schema(
    [
        ("id", pyarrow.string()),
        ("document", pyarrow.large_string()),
        ("source", pyarrow.string()),
        ("language", pyarrow.string()),
        ("question", pyarrow.string()),
        ("answer", pyarrow.string()),
        ("responses", pyarrow.map_(pyarrow.string(), pyarrow.string())),
        # Only in rows that this package wrote.
        ("named_task", pyarrow.string()),
        ("evidence", pyarrow.string()),
        ("family_id", pyarrow.string()),
        # Measured.
        ("document_hash", pyarrow.string()),
        ("row_hash", pyarrow.string()),
        ("document_tokens", pyarrow.int32()),
        ("question_tokens", pyarrow.int32()),
        ("answer_tokens", pyarrow.int32()),
        ("verbatim", pyarrow.bool_()),
        ("spells_special", pyarrow.bool_()),
        ("targets", pyarrow.list_(pyarrow.string())),  # names of the responses
        ("target_tokens", pyarrow.list_(pyarrow.int32())),
    ]
)
SMALL = (
    "source", "language", "named_task", "document_hash", "row_hash",
    "document_tokens", "question_tokens", "answer_tokens", "verbatim", "targets", "target_tokens",
)  # fmt: skip
"""Columns that are loaded into memory when a store is opened."""


@dataclass(slots=True)
class Counts:
    """Counts of rows that were read, dropped and annotated."""

    read: int = 0
    dropped: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Number of dropped rows by (reason, source)."""
    noted: Counter[str] = field(default_factory=Counter)
    """Number of kept rows by property."""

    def as_json(self) -> dict[str, Any]:
        dropped = [[why, source, count] for (why, source), count in sorted(self.dropped.items())]
        return {"read": self.read, "dropped": dropped, "noted": dict(sorted(self.noted.items()))}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Counts":
        dropped = Counter({(why, source): count for why, source, count in data["dropped"]})
        return cls(data["read"], dropped, Counter(data["noted"]))


def write_part(path: Path, rows: Sequence[Row], counts: Counts) -> None:
    """Write rows atomically, with the counts so far. Raises OSError."""
    schema = SCHEMA.with_metadata({"counts": json.dumps(counts.as_json())})
    with (
        replacing(path) as temporary,
        pyarrow.OSFile(str(temporary), "wb") as sink,
        pyarrow.ipc.new_file(sink, schema) as writer,
    ):
        for start in range(0, len(rows), BATCH_ROWS):
            chunk = rows[start : start + BATCH_ROWS]
            writer.write_batch(pyarrow.RecordBatch.from_pylist(chunk, schema=schema))


def parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("part-*.arrow"))


def part_counts(path: Path) -> Counts:
    """Return the counts at the end of a part."""
    with pyarrow.memory_map(str(path)) as source:
        return Counts.from_json(json.loads(pyarrow.ipc.open_file(source).schema.metadata[b"counts"]))


class Store:
    """A prepared data set, open for reading.

    ``columns`` maps each name of ``SMALL`` to a list with one value per row.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.report: dict[str, Any] = json.loads((folder / REPORT).read_text(encoding="utf-8"))
        self._readers = [pyarrow.ipc.open_file(pyarrow.memory_map(str(path))) for path in parts(folder)]
        self._batches: list[tuple[Any, int]] = []
        """(reader, batch number within it)."""
        self._starts: list[int] = []
        self.columns: dict[str, list[Any]] = {name: [] for name in SMALL}
        total = 0
        for reader in self._readers:
            for number in range(reader.num_record_batches):
                batch = reader.get_batch(number)
                self._batches.append((reader, number))
                self._starts.append(total)
                total += batch.num_rows
                for name, values in self.columns.items():
                    values.extend(batch.column(name).to_pylist())
        self._size = total

    def __len__(self) -> int:
        return self._size

    def row(self, index: int) -> Row:
        """Return one row with all its columns."""
        where = bisect.bisect_right(self._starts, index) - 1
        reader, number = self._batches[where]
        (row,) = reader.get_batch(number).slice(index - self._starts[where], 1).to_pylist()
        whole: Row = row | {"responses": dict(row["responses"])}
        return whole

    @property
    def counts(self) -> Counts:
        return Counts.from_json(self.report["counts"])


def digest(*texts: str) -> str:
    """Hash a sequence of texts, including the boundaries between them."""
    hasher = hashlib.blake2b(digest_size=16)
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        hasher.update(len(data).to_bytes(8, "little"))
        hasher.update(data)
    return hasher.hexdigest()
