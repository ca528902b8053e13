"""The part of the configuration that says what is trained on. See config/schema.py."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskConfig:
    """The mixture of tasks."""

    name: str
    mixture: dict[str, float]
    """Task name to share of the prompts. To drop a task from a mixture: ``~task.mixture.<name>``, or a share of 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratedShortConfig:
    """Short prompts among the long ones of LongBlocks-mini; ``ShortConfig`` is the same for LongBlocks."""

    share: float
    """Share of all prompts, on average."""
    lengths: tuple[int, ...]
    """Prompt lengths in tokens, drawn uniformly. 0: the shortest prompt that the task allows."""
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
    """Exact share of all prompts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LongBlocksConfig:
    """Where LongBlocks' rows come from, and which of them are used."""

    path: str
    """A Hub id, or a folder or file of .parquet or .jsonl with the same columns."""
    revision: str | None
    """Commit of the data set. None: the newest when the data set is prepared, which the run then records."""
    split: str
    streaming: bool
    """Hub only. True: read row by row over the network instead of downloading everything first."""
    cache: str
    """Folder of cleaned and measured rows, with one folder for each data set and tokenizer."""
    books: str | None
    """Local folder with the Parquet files of Institutional Books, from which rows without a document get theirs back.
    None: such rows are dropped and counted."""
    sources: tuple[str, ...] | None
    """Values of the source column to keep. None: all."""
    languages: tuple[str, ...] | None
    """Values of the language column to keep. None: all."""
    min_tokens: int
    """Shortest prompt in tokens of the student's tokenizer, template and question included."""
    max_tokens: int
    """Longest prompt in tokens of the student's tokenizer, template and question included."""
    overlong: Literal["drop", "ends", "ends_and_answer"]
    """Treatment of longer prompts. ``drop``: they are dropped. ``ends``: the middle of the document is cut out, with
    whatever it contains. ``ends_and_answer``: the same, but the surroundings of a reference answer that the document
    contains word for word are kept."""
    target: str
    """What is imitated: ``answer``, or a column such as response_Qwen3.5-27B. Rows without it are dropped and
    counted."""
    instruction: str
    """Appended to every question, so that rules can grade the last line."""
    answer_form: str
    """The form that the instruction requests, with {answer}; what is imitated where target is ``answer``."""
    validation: float
    """Share of the documents held out for validation, chosen by a hash of the document."""
    test: float
    """Share of the documents held out for testing, chosen by a hash of the document."""
    bucket_steps: int
    """Steps whose prompts are sorted by length together, so that the ranks of a step get prompts of similar length.
    0: none."""
    short: ShortConfig | None
    """Short prompts among the long ones. None: none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """Generated data, or the rows of a data set."""

    name: str
    longblocks: LongBlocksConfig | None
    """Rows of a data set. None: prompts are generated from the other settings."""
    lengths: tuple[int, ...]
    """Prompt lengths in tokens, drawn uniformly. 0: the facts of the question and their near-duplicates, no filler."""
    short: GeneratedShortConfig | None = None
    """Short prompts of other tasks among the long ones. None: none."""
    families: int | None
    """Size of the training set in item families. None: endless, so every prompt is new."""
    questions_per_document: int
    """Data-set methods only: questions with recorded answers that share one document, all in one packed row."""

    @property
    def longest(self) -> int:
        """Length of the longest prompt in tokens, without those of ``short``, which are meant to be shorter."""
        return max(self.lengths) if self.longblocks is None else self.longblocks.max_tokens
