"""One line per evaluated item: ``evals/<suite>.jsonl`` of a run."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

EXCERPT = 400
"""Letters of a question and of its reference answer that are kept."""


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
    floor: float | None = None
    """Score of whoever always gives the most frequent answer; None: there is no such answer."""
    question: str = ""
    """Its end."""
    expected: str = ""
    """The reference answer, from its start."""
    right: int | None = None
    """How many of several samples are right; ``score`` and ``parts`` are their means then, ``output`` is the first,
    ``tokens`` is of all, ``truncated`` of any. None: there is one."""
    more: Sequence[str] = ()
    """The outputs of the other samples."""

    @property
    def samples(self) -> int:
        return 1 + len(self.more)


def prompt_hash(ids: Sequence[int]) -> str:
    """A short hash of a prompt's tokens: equal hashes, equal prompts."""
    return hashlib.blake2b(json.dumps(list(ids)).encode(), digest_size=8).hexdigest()


def seed_of(item: str, sample: int) -> int:
    """Of an item's sample: the same whenever and beside whatever it is drawn."""
    return int.from_bytes(hashlib.blake2b(f"{item} {sample}".encode(), digest_size=7).digest())


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
    return [record for _, record in _parsed(path)]


def drop_after(path: Path, step: int) -> None:
    """Remove the records of later steps, and a cut-off last line, so that a resumed run can write them again.

    Raises:
        ValueError: a whole line is not a record.
    """
    if not path.exists():
        return
    kept = [line for line, record in _parsed(path) if record.step <= step]
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.writelines(line + "\n" for line in kept)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _parsed(path: Path) -> Iterator[tuple[str, ItemRecord]]:
    """Whole lines with their records."""
    *lines, _ = path.read_bytes().split(b"\n")  # a crash can leave half a letter
    for number, raw in enumerate(lines, 1):
        try:
            line = raw.decode("utf-8")
            fields = json.loads(line)
            record = ItemRecord(**fields | {"more": tuple(fields.get("more", ()))})
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}, line {number} is no evaluation record ({error}): remove that line") from error
        yield line, record
