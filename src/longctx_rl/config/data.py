"""The part of the configuration that says what is trained on. See config.py."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskConfig:
    name: str
    mixture: dict[str, float]
    """Task name to share of the prompts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratedShortConfig:
    """Short prompts among the long ones of LongBlocks-mini, as ``ShortConfig`` are among LongBlocks'."""

    share: float
    """Of all prompts, on average."""
    lengths: tuple[int, ...]
    """Prompt lengths in tokens, drawn from uniformly; 0: as short as the task can be put."""
    mixture: dict[str, float]
    """Task name to share of the short prompts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShortConfig:
    """Short prompts among the long ones: a chat data set, or rows in LongBlocks' columns."""

    path: str
    revision: str | None
    split: str
    streaming: bool
    share: float
    """Of all prompts, exactly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LongBlocksConfig:
    """Where LongBlocks' rows come from, and which of them are used."""

    path: str
    """A Hub id, or a folder or file of .parquet or .jsonl in the same columns."""
    revision: str | None
    split: str
    streaming: bool
    cache: str
    """Folder of prepared rows."""
    books: str | None
    """Local copy of Institutional Books, for rows without a document; none: those rows are dropped."""
    sources: tuple[str, ...] | None
    languages: tuple[str, ...] | None
    min_tokens: int
    """Prompts, template and question included."""
    max_tokens: int
    overlong: Literal["drop", "ends", "ends_and_answer"]
    target: str
    """``answer``, or the response_* column that is imitated."""
    instruction: str
    """Appended to every question."""
    answer_form: str
    """Of what is imitated where target is ``answer``, with {answer}."""
    validation: float
    """Share of documents."""
    test: float
    bucket_steps: int
    """Steps whose prompts are sorted by length together; 0: none."""
    short: ShortConfig | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    name: str
    longblocks: LongBlocksConfig | None
    """Rows of a data set; none: generated, as the settings below say."""
    lengths: tuple[int, ...]
    """Prompt lengths in tokens, drawn from uniformly."""
    short: GeneratedShortConfig | None = None
    """Prompts of other tasks among them; none: all are of the task's mixture."""
    families: int | None
    """Size of the training set in item families; none: endless, generated as needed."""
    questions_per_document: int
    """Data-set methods only: recorded answers that share one document."""

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt; short ones aside, which are meant to be shorter."""
        return max(self.lengths) if self.longblocks is None else self.longblocks.max_tokens
