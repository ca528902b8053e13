"""Reading the rows of a data set in a fixed order, from the Hub or from local files with the same columns.

Unreadable parts are skipped and counted: a damaged file, or a line that is not UTF-8 or not JSON. A missing column
is an error.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from longctx_rl.files import json_lines

Row = dict[str, Any]

REQUIRED = ("id", "document", "source", "language", "question", "answer")
"""LongBlocks columns that must exist; values may still be null."""
CHAT = "messages"
"""Column of a chat data set: turns of ``{"role": ..., "content": ...}``."""
READ_ROWS = 64
"""Rows of a Parquet file that are in memory at a time."""


@dataclass(slots=True)
class Problems:
    """What was skipped during reading."""

    files: dict[str, str] = field(default_factory=dict)
    """Maps the name of a file to the reason why it could not be read completely."""
    lines: Counter[str] = field(default_factory=Counter)
    """Number of skipped lines by reason."""


@dataclass(frozen=True, slots=True)
class Origin:
    """The location of a data set: a folder or file, or a Hub id with a revision."""

    path: str
    revision: str | None = None
    split: str = "train"
    streaming: bool = False
    """Hub only: stream rows over the network instead of downloading the data set first."""

    def pinned(self) -> "Origin":
        """Return the origin with its revision resolved to a commit, so that rows of two commits never mix.

        A local origin is returned unchanged, as is any origin if the Hub is not reachable.
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
        """Yield all rows, always in the same order.

        Raises:
            ValueError: the data set does not exist, is not reachable, has no readable row, or lacks a column.
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
            if isinstance(error, OSError) and error.errno is not None:  # the disk failed, not the file
                raise ValueError(f"{file} cannot be read ({error.strerror}): repeat the command") from error
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
    for line in json_lines(file):
        if line.blank:
            continue
        if line.problem or not isinstance(line.value, dict):
            problems.lines[line.problem or "not a JSON object"] += 1
            continue
        if first:
            check_columns(line.value, file.name)
            first = False
        yield line.value


def check_columns(columns: Mapping[str, Any] | list[str], name: str) -> None:
    """Raise ValueError, naming the column, if rows have neither LongBlocks' columns nor those of a chat data set."""
    if CHAT in columns:
        return
    if missing := [column for column in REQUIRED if column not in columns]:
        raise ValueError(
            f"{name} has no column {missing[0]!r}: rows need {', '.join(REQUIRED)}, or {CHAT!r} in a chat data set"
        )


def _hub_rows(origin: Origin) -> Iterator[Row]:
    import datasets
    from huggingface_hub.errors import HfHubHTTPError

    try:
        dataset: Any = datasets.load_dataset(
            origin.path, revision=origin.revision, split=origin.split, streaming=origin.streaming
        )
        names = dataset.column_names
    except (OSError, ValueError, HfHubHTTPError, datasets.exceptions.DatasetsError) as error:
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        revision = f" --revision {origin.revision}" if origin.revision else ""
        raise ValueError(
            f"data set {origin.path} is not a local folder and cannot be loaded from the Hub ({cause}): "
            f"hf download --repo-type dataset {origin.path}{revision} --local-dir FOLDER, then give the folder"
        ) from error
    if names is not None:
        check_columns(list(names), origin.path)
    try:
        yield from dataset
    except (OSError, HfHubHTTPError, datasets.exceptions.DatasetsError) as error:
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"reading {origin.path} from the Hub failed ({cause}): repeat the command") from error
