"""Prepared rows on disk: cleaned, measured in tokens, and stored in memory-mapped Arrow files.

A store holds every usable row of one data set for one tokenizer. Filters and splits are applied to its small columns
when it is opened. ``preparation`` writes stores.
"""

import bisect
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow

from longctx_rl.data.reading import Row
from longctx_rl.files import mismatch, parsed_json, read_object, replacing

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


COUNTS = {"read": int, "dropped": list[tuple[str, str, int]], "noted": dict[str, int]}


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
    def from_json(cls, data: Any) -> "Counts":
        """Return the counts of ``as_json``. Raises ValueError for other data."""
        if problem := mismatch(data, COUNTS):
            raise ValueError(f"it is {problem}")
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
    """Return the counts at the end of a part. Raises ValueError if it is damaged."""
    with reading_part(path) as reader:
        return Counts.from_json(parsed_json((reader.schema.metadata or {}).get(b"counts", b""))[0])


@contextmanager
def reading_part(path: Path, reader: Any = None) -> Iterator[Any]:
    """Yield a reader of a part, opened unless given. Whatever shows in the block that it is damaged is a ValueError."""
    try:
        reader = reader or pyarrow.ipc.open_file(pyarrow.memory_map(str(path)))
        if not reader.schema.equals(SCHEMA):
            raise ValueError("it has other columns")
        yield reader
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} is damaged ({cause}): remove {path.parent} to prepare the data set again") from error


class Store:
    """A prepared data set, open for reading.

    ``columns`` maps each name of ``SMALL`` to a list with one value per row.

    Raises:
        ValueError: a file is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        remove = f"remove {folder} to prepare the data set again"
        self.report = read_object(
            folder / REPORT,
            remove,
            origin=dict[str, str | None],
            tokenizer=str,
            kept=int,
            counts=COUNTS,
            files=dict[str, str],
            lines=dict[str, int],
            columns=list[str],
        )
        self._batches: list[tuple[Path, Any, int]] = []
        """(part, its reader, batch number within it)."""
        self._starts: list[int] = []
        self.columns: dict[str, list[Any]] = {name: [] for name in SMALL}
        total = 0
        for part in parts(folder):
            with reading_part(part) as reader:
                for number in range(reader.num_record_batches):
                    batch = reader.get_batch(number).select(SMALL)
                    batch.validate(full=True)
                    self._batches.append((part, reader, number))
                    self._starts.append(total)
                    total += batch.num_rows
                    for name, values in self.columns.items():
                        values.extend(batch.column(name).to_pylist())
        if total != self.report["kept"]:
            raise ValueError(f"{folder} has {total} of its {self.report['kept']} rows: {remove}")
        self._size = total

    def __len__(self) -> int:
        return self._size

    def row(self, index: int) -> Row:
        """Return one row with all its columns. Raises ValueError if it has changed since it was written."""
        where = bisect.bisect_right(self._starts, index) - 1
        part, reader, number = self._batches[where]
        with reading_part(part, reader):
            one = reader.get_batch(number).slice(index - self._starts[where], 1)
            one.validate(full=True)
            (row,) = one.to_pylist()
            whole: Row = row | {"responses": dict(row["responses"])}
            if row_hash(whole) != self.columns["row_hash"][index]:
                raise ValueError("a row has changed")
        return whole

    @property
    def counts(self) -> Counts:
        return Counts.from_json(self.report["counts"])


def row_hash(row: Row) -> str:
    """Hash the texts of a row."""
    texts = (row[name] for name in ("document", "question", "answer"))
    return digest(*texts, *map(str, row["responses"].items()))


def digest(*texts: str) -> str:
    """Hash a sequence of texts, including the boundaries between them."""
    hasher = hashlib.blake2b(digest_size=16)
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        hasher.update(len(data).to_bytes(8, "little"))
        hasher.update(data)
    return hasher.hexdigest()
