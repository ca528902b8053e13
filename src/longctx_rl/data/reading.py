"""Reading the rows of a data set in a fixed order, from the Hub or from local files with the same columns.

Unreadable parts are skipped and counted: a damaged file, or a line that is not UTF-8 or not JSON. A missing column
is an error.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from longctx_rl.data.longblocks import RESPONSE_PREFIX
from longctx_rl.files import BYTE_ORDER_MARK, json_lines

Row = dict[str, Any]

REQUIRED = ("id", "document", "source", "language", "question", "answer")
"""LongBlocks columns that must exist; values may still be null."""
CHAT = "messages"
"""Column of a chat data set: turns of ``{"role": ..., "content": ...}``."""
OPTIONAL = (CHAT, "task", "evidence", "family_id", "uuid", "category")
"""Other columns that are read, beside responses."""
READ_ROWS = 64
"""Rows of a Parquet file that are in memory at a time."""
NOT_READ = (".arrow", ".csv", ".tsv", ".json", ".ndjson", ".gz", ".zst", ".xz", ".bz2", ".zip")
"""Formats that may hold rows and are not read."""
DESCRIPTIONS = re.compile(r"(dataset_dict|dataset_infos?|state|report)\.json|rejected\.ndjson")
"""Names of files that hold no rows: those of ``datasets``, and of data sets that this package builds."""
LFS_POINTER = b"version https://git-lfs"
SPLITS = {
    "train": r"train(ing)?",
    "validation": r"val(id(ation)?)?|dev",
    "test": r"test(ing)?|eval(uation)?",
}
"""Split to the names that files and folders of data sets give it."""
OF = r"[-_.]of[-_.]\d+([-_.][\da-f]+)?"
SHARD = rf"([-_.]\d+({OF})?)?"
"""What may follow a split in a file's name: the number of a shard, of how many, and a hash."""


@dataclass(slots=True)
class Problems:
    """What was skipped during reading."""

    files: dict[str, str] = field(default_factory=dict)
    """Maps the name of a file to the reason why it could not be read completely."""
    lines: Counter[str] = field(default_factory=Counter)
    """Number of skipped lines by reason."""
    columns: set[str] = field(default_factory=set)
    """Columns that are not read."""


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

        try:
            return replace(self, revision=HfApi().dataset_info(self.path, revision=self.revision).sha)
        except _hub_errors():
            return self

    def rows(self, problems: Problems) -> Iterator[Row]:
        """Yield all rows, always in the same order.

        Raises:
            ValueError: the data set does not exist, is not reachable, has no readable row, or lacks a column.
        """
        local = Path(self.path).expanduser()
        return _local_rows(local, self.split, problems) if local.exists() else _hub_rows(self, problems)


def _local_rows(path: Path, split: str, problems: Problems) -> Iterator[Row]:
    files = _files(path, split, problems) if path.is_dir() else [path]
    if not files or any(file.suffix.lower() not in READERS for file in files):
        others = f", only {', '.join(problems.files)}" if problems.files else ""
        raise ValueError(
            f"{path} holds no .parquet or .jsonl file of split={split}{others}: give a folder or file of either, the "
            "split that it holds, or a Hub id"
        )
    read = 0
    for file in files:
        name = file.relative_to(path).as_posix() if path.is_dir() else file.name
        count = 0
        try:
            with file.open("rb") as opened:
                beginning = opened.read(len(LFS_POINTER)).removeprefix(BYTE_ORDER_MARK)
            if beginning == LFS_POINTER:
                raise OSError("a pointer of Git LFS: git lfs pull fetches the file")
            if beginning.lstrip().startswith(b"["):
                raise OSError("a JSON array: write one object in each line")
            for row in READERS[file.suffix.lower()](file, problems):
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
        raise ValueError(
            f"{path} holds no readable row: {'; '.join(causes) or 'its files are empty'}; a .jsonl file has one JSON "
            "object in each line, in UTF-8"
        )


def _files(path: Path, split: str, problems: Problems) -> list[Path]:
    """Return the files of a split, sorted by name; record those of other splits and formats as skipped.

    A file whose name spells no split belongs to each of them. A split with a name of its own, such as ``chat``, has
    only the files that spell it, if there are any. Hidden files are ignored.
    """
    names = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    names = [name for name in names if not any(part.startswith(".") for part in name.split("/"))]
    readable = [name for name in names if Path(name).suffix.lower() in READERS]
    others = [name for name in names if name.lower().endswith(NOT_READ) and not DESCRIPTIONS.fullmatch(Path(name).name)]
    problems.files |= dict.fromkeys(others, "neither .parquet nor .jsonl")
    chosen = [name for name in readable if _spells(name, split)]
    if split in SPLITS or not chosen:
        chosen += [name for name in readable if not any(_spells(name, other) for other in SPLITS)]
    problems.files |= {name: "of another split" for name in readable if name not in set(chosen)}
    return [path / name for name in sorted(chosen)]


def _spells(name: str, split: str) -> bool:
    """Whether a folder or file is named after a split: ``test/``, ``test_0.jsonl``, ``test-00000-of-00001.parquet``.

    In the Hub's names of shards, the split may go on: ``test_sft-00000-of-00001.parquet``.
    """
    word = rf"({SPLITS.get(split, re.escape(split))})"
    *folders, file = name.split("/")
    stem = re.fullmatch(rf"{word}({SHARD}|_\w+[-_.]\d+{OF})", Path(file).stem, re.IGNORECASE)
    return stem is not None or any(re.fullmatch(word, folder, re.IGNORECASE) for folder in folders)


def _parquet_rows(file: Path, problems: Problems) -> Iterator[Row]:
    with pyarrow.parquet.ParquetFile(file) as opened:
        names = opened.schema_arrow.names
        columns = check_columns(names, file.name)
        problems.columns.update(set(names) - set(columns))
        for batch in opened.iter_batches(batch_size=READ_ROWS, columns=columns):
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
            check_columns(list(line.value), file.name)
            first = False
        problems.columns.update(name for name in line.value if not _is_read(name))
        yield line.value


READERS = {".parquet": _parquet_rows, ".jsonl": _json_rows}


def _is_read(column: str) -> bool:
    return column in REQUIRED or column in OPTIONAL or column.startswith(RESPONSE_PREFIX)


def check_columns(columns: Sequence[str], name: str) -> list[str]:
    """Return the columns that are read.

    Raises:
        ValueError: rows have neither LongBlocks' columns nor those of a chat data set, or a column occurs twice.
    """
    read = [column for column in columns if _is_read(column)]
    if twice := [column for column, count in Counter(read).items() if count > 1]:
        raise ValueError(f"{name} has the column {twice[0]!r} twice: remove one of them")
    missing = [column for column in REQUIRED if column not in columns]
    if missing and (CHAT not in columns or "document" in columns):
        raise ValueError(
            f"{name} has no column {missing[0]!r} ({', '.join(columns) or 'no columns'}): rows need "
            f"{', '.join(REQUIRED)}, or {CHAT!r} without a document in a chat data set"
        )
    return read


def _hub_errors() -> tuple[type[Exception], ...]:
    """Errors of a data set that is not on the Hub, not reachable, or not readable."""
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HfHubHTTPError

    http_library: Any = HfHubHTTPError.__bases__  # without a network its own error is raised, which is not an OSError
    return (OSError, ValueError, RuntimeError, DatasetsError, *http_library)


def _hub_rows(origin: Origin, problems: Problems) -> Iterator[Row]:
    import datasets

    try:
        dataset: Any = datasets.load_dataset(
            origin.path, revision=origin.revision, split=origin.split, streaming=origin.streaming
        )
        names = dataset.column_names
    except _hub_errors() as error:
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        revision = f" --revision {origin.revision}" if origin.revision else ""
        raise ValueError(
            f"data set {origin.path} is not a local folder and cannot be loaded from the Hub ({cause}): "
            f"hf download --repo-type dataset {origin.path}{revision} --local-dir FOLDER, then give the folder"
        ) from error
    if names is not None:
        check_columns(list(names), origin.path)
        problems.columns.update(name for name in names if not _is_read(name))
    try:
        yield from dataset
    except _hub_errors() as error:
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"reading {origin.path} from the Hub failed ({cause}): repeat the command") from error
