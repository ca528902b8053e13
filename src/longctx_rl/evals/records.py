"""One line per evaluated item: ``evals/<suite>.jsonl`` of a run."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemRecord:
    """What a model answered to one item after ``step`` optimizer steps, and what the answer was worth."""

    step: int
    id: str
    family_id: str
    task: str
    length: int
    """Nominal prompt length in tokens."""
    prompt_tokens: int
    output: str
    score: float
    """In [0, 1]."""
    parts: Mapping[str, float]
    """The score's components."""
    truncated: bool
    """The answer met the token limit."""
    tokens: int = 0
    """Of the answer."""
    prompt_hash: str = ""
    depth: float | None = None
    """Where the first piece of evidence lies, as a share of the document; None: there is none."""
    question: str = ""
    reference: str = ""
    """The reference answer."""


def prompt_hash(ids: Sequence[int]) -> str:
    """A short hash of a prompt's tokens: equal hashes, equal prompts."""
    return hashlib.blake2b(json.dumps(list(ids)).encode(), digest_size=8).hexdigest()


def append(path: Path, records: Iterable[ItemRecord]) -> None:
    """Add records to the end of the file, whole lines in one write. Creates the file and its folder."""
    text = "".join(json.dumps(dataclasses.asdict(record), ensure_ascii=False) + "\n" for record in records)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> list[ItemRecord]:
    """All records, in the order they were written. A last line that was cut off by a crash is left out.

    Raises:
        ValueError: a whole line is not a record.
    """
    records = []
    for number, line in enumerate(_whole_lines(path), 1):
        try:
            records.append(ItemRecord(**json.loads(line)))
        except (json.JSONDecodeError, TypeError) as error:
            raise ValueError(f"{path}, line {number} is no evaluation record ({error}): remove that line") from error
    return records


def drop_after(path: Path, step: int) -> None:
    """Remove the records of later steps, and a cut-off last line, so that a resumed run can write them again."""
    if not path.exists():
        return
    kept = [line for line in _whole_lines(path) if json.loads(line)["step"] <= step]
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.writelines(line + "\n" for line in kept)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _whole_lines(path: Path) -> list[str]:
    *lines, _ = path.read_bytes().split(b"\n")  # a crash can leave half a letter
    return [line.decode("utf-8") for line in lines]
