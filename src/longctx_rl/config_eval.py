"""The parts of the configuration that say what is evaluated. See config.py."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteConfig:
    """Items of one suite. See evals/suites.py."""

    labels: tuple[str, ...]
    """Tasks, forms or conditions: the rows of its table."""
    lengths: tuple[int, ...]
    """Prompt lengths in tokens."""
    max_new_tokens: int
    answer_slack: int | None = None
    """Tokens that an answer may take beyond the item's own; none: ``max_new_tokens`` alone is the limit."""
    level: int = 0
    """Difficulty of code: 0 for the mini models, up to 2."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalConfig:
    name: str
    every: int
    """Steps between evaluations during training; 0: none."""
    at_start: bool
    at_end: bool
    items: int
    """Items per label and length."""
    during_items: int
    """Items per label and length of evaluations during training."""
    first: int  # number of the first held-out family
    suites: dict[str, SuiteConfig]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswersConfig:
    """How a checkpoint answers."""

    max_new_tokens: int
    """Of suites whose files take it from here."""
    batch_tokens: int
    """Prompts and answers whose keys and values are held together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateConfig:
    """``python -m longctx_rl.evaluate``."""

    checkpoint: str
    """A directory, a Hub id, or the name of a shipped model."""
    tokenizer: str | None  # none: the checkpoint's own
    out: str
    """Folder of the results."""
    device: Literal["auto", "cpu", "cuda"]
    dtype: Literal["float32", "bfloat16"]
    threads: int | None
    """CPU threads of each process; none: torch's default, shared by the processes."""
    processes: int
    """That share the items."""
    sandbox: Literal["auto", "bwrap", "rlimit"]
    """Isolation of generated code that is graded by running it."""
    rollout: AnswersConfig
    eval: EvalConfig
