"""The parts of the configuration that say what is evaluated. See config.py."""

from dataclasses import dataclass, replace
from typing import Literal

from longctx_rl.config.data import DataConfig
from longctx_rl.config.logging import LoggingConfig
from longctx_rl.config.model import YarnConfig
from longctx_rl.config.reward import RewardConfig

FILES = ("humaneval", "mbpp")
"""Suites that are asked only where the file of their problems is given."""


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
    samples: int = 1
    """Answers to each item, drawn at ``temperature``; the score is their mean. Only for ``longctx_rl.evaluate``."""
    temperature: float = 0.0
    """0: greedy."""
    shared_items: bool = False
    """``eval.items`` is the number of a length's items, which are divided among the labels, and not of each label's."""
    mode: Literal["call", "inline"] = "call"
    """Of code: whether an answer can import the helpers, or has to do what they do."""
    level: int = 0
    """Difficulty of code: 0 for the mini models, up to 2."""
    essays: str | None = None
    """Of ruler, and so are the next two: local files that it is made from instead of generated text. See
    data/generators/ruler_sources.py."""
    squad: str | None = None
    hotpot: str | None = None
    path: str | None = None
    """Of suites whose items are read: a file, a folder or a Hub id. none, of humaneval and mbpp: they are not asked."""
    revision: str | None = None
    """Commit of a Hub id; none: the one that was downloaded as its main branch."""
    without: tuple[str, ...] = ()
    """Problems of a file that are left out, by id."""
    data: DataConfig | None = None
    """Of longblocks: the data set and its held-out share, as in training."""
    reward: RewardConfig | None = None
    """Of longblocks: the reward's graders."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalConfig:
    name: str
    every: int
    """Steps between evaluations during training; 0: none."""
    at_start: bool
    at_end: bool
    items: int
    """Items per label and length; of suites with ``shared_items``, per length."""
    during_items: int
    """The same for evaluations during training."""
    first: int  # number of the first held-out family
    suites: dict[str, SuiteConfig]
    times: int = 0
    """Evaluations at 1/times, 2/times ... of the budget that ends the run, instead of ``every``; 0: none."""

    @property
    def during(self) -> bool:
        """Whether there are evaluations during training."""
        return bool(self.every or self.times)

    def asked(self) -> "EvalConfig":
        """Without the suites whose file is not given."""
        suites = {name: suite for name, suite in self.suites.items() if name not in FILES or suite.path is not None}
        return replace(self, suites=suites)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswersConfig:
    """How a checkpoint answers."""

    max_new_tokens: int
    """Of suites whose files take it from here."""
    batch_tokens: int
    """Prompts and answers whose keys and values are held together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KLConfig:
    """How far a checkpoint has moved from another one on short prompts. See evals/kl.py."""

    base: str | None
    """A directory, a Hub id, or the name of a shipped model; none: not measured."""
    items: int
    """Prompts of each task."""
    length: int
    """Of the prompts, in tokens."""
    max_new_tokens: int
    """Of the base's answers."""
    chunk: int
    """Tokens whose vocabulary distribution exists at one time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluatedCheckpointConfig:
    """A model that is asked, and where."""

    checkpoint: str
    """A directory, a Hub id, or the name of a shipped model."""
    tokenizer: str | None  # none: the checkpoint's own
    yarn: YarnConfig | None
    """How far its context is stretched; none: as far as its configuration says."""
    out: str
    """Folder of the results."""
    device: Literal["auto", "cpu", "cuda"]
    dtype: Literal["float32", "bfloat16"]
    threads: int | None
    """CPU threads of each process; none: torch's default, shared by the processes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HarnessConfig(EvaluatedCheckpointConfig):
    """``python -m longctx_rl.harness``."""

    tasks: tuple[str, ...]
    """Names of lm_eval's tasks and groups, or of those in ``include``."""
    include: str | None
    """Folder of further task files."""
    limit: int | None
    """Documents of each task; none: all."""
    fewshot: int | None
    """Examples before each question; none: what the task says."""
    lengths: tuple[int, ...]
    """Of RULER's prompts, in tokens."""
    chat: bool
    """Prompts are rendered through the chat template."""
    unsafe: tuple[str, ...]
    """Tasks that may run what the model writes, outside of any sandbox."""
    max_new_tokens: int
    """Of answers whose task sets no limit."""
    batch_tokens: int
    """Prompts and answers whose keys and values are held together."""
    chunk: int
    """Tokens whose vocabulary distribution exists at one time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateConfig(EvaluatedCheckpointConfig):
    """``python -m longctx_rl.evaluate``."""

    processes: int
    """That share the items."""
    sandbox: Literal["auto", "bwrap", "rlimit"]
    """Isolation of generated code that is graded by running it."""
    logging: LoggingConfig
    """Of its results, to stand beside those of trainings."""
    rollout: AnswersConfig
    kl: KLConfig
    eval: EvalConfig
