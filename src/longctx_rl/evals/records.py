"""One JSON line per evaluated item, in ``evals/<suite>.jsonl`` of a run or of an evaluation's folder."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longctx_rl.files import built, json_lines, write_text

EXCERPT = 400
"""Characters of a question and of its reference answer that a record keeps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemRecord:
    """A model's answer to one item after ``step`` optimizer steps, and its score."""

    step: int
    id: str
    family_id: str
    task: str
    length: int
    """Nominal prompt length in tokens; 0 if the prompt is not fitted to one."""
    prompt_tokens: int
    output: str
    score: float
    """In [0, 1]."""
    parts: Mapping[str, float]
    """The score's components."""
    truncated: bool
    """The answer reached the token limit."""
    tokens: int = 0
    """Length of the answer."""
    prompt_hash: str = ""
    """See ``prompt_hash``."""
    depth: float | None = None
    """Position of the first piece of evidence as a share of the document; None: no evidence."""
    floor: float | None = None
    """Score of always giving the most frequent answer; None: not multiple choice."""
    question: str = ""
    """The last ``EXCERPT`` characters of the question."""
    expected: str = ""
    """The first ``EXCERPT`` characters of the reference answer."""
    right: int | None = None
    """Number of right samples; None: a single sample. With several samples, ``score`` and ``parts`` are means,
    ``output`` is the first sample, ``tokens`` the total, and ``truncated`` holds if any sample is truncated."""
    more: Sequence[str] = ()
    """Outputs of the samples after the first."""

    @property
    def samples(self) -> int:
        """Number of samples."""
        return 1 + len(self.more)


def prompt_hash(ids: Sequence[int]) -> str:
    """A 64-bit hash of a prompt's tokens, in hexadecimal: it detects changed prompts."""
    return hashlib.blake2b(json.dumps(list(ids)).encode(), digest_size=8).hexdigest()


def seed_of(item: str, sample: int) -> int:
    """The seed of one sample of an item. It does not depend on the other items or on when the item is evaluated."""
    return int.from_bytes(hashlib.blake2b(f"{item} {sample}".encode(), digest_size=7).digest())


def append(path: Path, records: Iterable[ItemRecord]) -> None:
    """Append records to the file in one write, and flush it to disk. Creates the file and its folder."""
    text = "".join(json.dumps(dataclasses.asdict(record), ensure_ascii=False) + "\n" for record in records)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> list[ItemRecord]:
    """All records in the order in which they were written. An incomplete last line, left by a crash, is dropped.

    If an item has several records of one step, the last one counts.

    Raises:
        ValueError: a complete line is not a record.
    """
    return list({(record.step, record.id): record for _, record in _parsed(path)}.values())


def drop_after(path: Path, step: int) -> None:
    """Remove the records of later steps and an incomplete last line, so that a resumed run can write them again.

    Raises:
        ValueError: a complete line is not a record.
    """
    if not path.exists():
        return
    write_text(path, "".join(f"{line}\n" for line, record in _parsed(path) if record.step <= step))


def record_of(fields: Any) -> ItemRecord:
    """The record of a parsed line. Raises ValueError if it is not one, or its score or depth is outside [0, 1]."""
    record = built(ItemRecord, fields)
    if not (0 <= record.score <= 1 and 0 <= (record.depth or 0) <= 1):
        raise ValueError(f"it has a score of {record.score} or a depth of {record.depth}, outside 0 to 1")
    return record


def _parsed(path: Path) -> Iterator[tuple[str, ItemRecord]]:
    """Complete lines with their records."""
    for line in json_lines(path):
        if line.cut:
            return
        try:
            record = record_of(line.checked())
        except ValueError as error:
            raise ValueError(
                f"{path}, line {line.number} is not an evaluation record ({line.problem or error}): remove that line"
            ) from error
        yield line.raw.decode("utf-8"), record
