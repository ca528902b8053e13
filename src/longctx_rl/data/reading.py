"""Rows of a data set, one after another in a fixed order, from the Hub or from local files in the same columns.

What cannot be read among what can is skipped and counted: a broken file, a line that is not UTF-8 or not JSON. Columns
that are missing altogether are an error.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

Row = dict[str, Any]

REQUIRED = ("id", "document", "source", "language", "question", "answer")
"""Columns of LongBlocks that every row is read from; a value may still be null."""
CHAT = "messages"
"""Column of a chat data set: turns of ``{"role": ..., "content": ...}``."""
READ_ROWS = 64
"""Rows of a Parquet file in memory at one time."""


@dataclass(slots=True)
class Problems:
    """What was skipped on the way."""

    files: dict[str, str] = field(default_factory=dict)
    """Name of a file, and why it could not be read to its end."""
    lines: Counter[str] = field(default_factory=Counter)
    """Why lines were skipped, and how many."""


@dataclass(frozen=True, slots=True)
class Origin:
    """A data set: a folder or file, or a Hub id with a revision."""

    path: str
    revision: str | None = None
    split: str = "train"
    streaming: bool = False
    """Hub only: read row by row over the network instead of downloading first."""

    def pinned(self) -> "Origin":
        """With the commit that the revision stands for, so that rows of two commits never mix; as it is if local.

        Where the Hub is away, the revision stays as it is.
        """
        if Path(self.path).expanduser().exists():
            return self
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError

        try:
            return replace(self, revision=HfApi().dataset_info(self.path, revision=self.revision).sha)
        except (OSError, HfHubHTTPError, ValueError):
            return self

    def rows(self, problems: Problems) -> Iterator[Row]:
        """All rows, in an order that never changes.

        Raises:
            ValueError: nothing there, not reachable, nothing readable, or a column is missing.
        """
        local = Path(self.path).expanduser()
        return _local_rows(local, problems) if local.exists() else _hub_rows(self)


def _local_rows(path: Path, problems: Problems) -> Iterator[Row]:
    readers = {".parquet": _parquet_rows, ".jsonl": _json_rows}
    files = sorted(f for f in path.rglob("*") if f.suffix in readers) if path.is_dir() else [path]
    if not files or any(file.suffix not in readers for file in files):
        raise ValueError(f"{path} holds no .parquet or .jsonl file: give a folder or file of either, or a Hub id")
    read = 0
    for file in files:
        name = file.relative_to(path).as_posix() if path.is_dir() else file.name
        count = 0
        try:
            for row in readers[file.suffix](file, problems):
                yield row
                count += 1
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            if isinstance(error, OSError) and error.errno is not None:  # of the disk, not of the file
                raise ValueError(f"{file} cannot be read ({error.strerror}): the same command goes on") from error
            cause = (str(error).strip() or type(error).__name__).splitlines()[0]
            problems.files[name] = f"after {count} rows: {cause}" if count else cause
        read += count
    if not read:
        causes = [f"{name} ({cause})" for name, cause in problems.files.items()]
        causes += [f"{count} lines {why}" for why, count in problems.lines.items()]
        raise ValueError(f"{path} holds no readable row: {'; '.join(causes) or 'its files are empty'}")


def _parquet_rows(file: Path, problems: Problems) -> Iterator[Row]:
    del problems
    with pyarrow.parquet.ParquetFile(file) as opened:
        check_columns(opened.schema_arrow.names, file.name)
        for batch in opened.iter_batches(batch_size=READ_ROWS):
            yield from batch.to_pylist()


def _json_rows(file: Path, problems: Problems) -> Iterator[Row]:
    first = True
    with file.open("rb") as lines:
        for line in lines:
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8"))
            except UnicodeDecodeError:
                problems.lines["not UTF-8"] += 1
                continue
            except json.JSONDecodeError:
                problems.lines["not JSON"] += 1
                continue
            if not isinstance(row, dict):
                problems.lines["not a JSON object"] += 1
                continue
            if first:
                check_columns(row, file.name)
                first = False
            yield row


def check_columns(columns: Mapping[str, Any] | list[str], name: str) -> None:
    """Refuse rows that are neither LongBlocks' nor chat's, naming the column."""
    if CHAT in columns:
        return
    if missing := [column for column in REQUIRED if column not in columns]:
        raise ValueError(
            f"{name} has no column {missing[0]!r}: rows need {', '.join(REQUIRED)}, or {CHAT!r} of a chat data set"
        )


def _hub_rows(origin: Origin) -> Iterator[Row]:
    import datasets
    from huggingface_hub.errors import HfHubHTTPError

    try:
        found: Any = datasets.load_dataset(
            origin.path, revision=origin.revision, split=origin.split, streaming=origin.streaming
        )
        names = found.column_names
    except (OSError, ValueError, HfHubHTTPError, datasets.exceptions.DatasetsError) as error:
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        revision = f" --revision {origin.revision}" if origin.revision else ""
        raise ValueError(
            f"data set {origin.path} is neither a folder nor could it be loaded from the Hub ({cause}): "
            f"hf download --repo-type dataset {origin.path}{revision} --local-dir FOLDER, then give the folder"
        ) from error
    if names is not None:
        check_columns(list(names), origin.path)
    try:
        yield from found
    except (OSError, HfHubHTTPError, datasets.exceptions.DatasetsError) as error:
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"reading {origin.path} from the Hub broke off ({cause}): the same command goes on") from error
