"""The parts of the configuration that say what is evaluated. See config/schema.py."""

from dataclasses import dataclass, replace
from typing import Literal

from longctx_rl.config.data import DataConfig
from longctx_rl.config.logging import LoggingConfig
from longctx_rl.config.model import YarnConfig
from longctx_rl.config.reward import RewardConfig
from longctx_rl.config.rollout import ServerConfig

FILES = ("humaneval", "mbpp")
"""Suites that are evaluated only if the file of their problems is given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteConfig:
    """The items of one suite, and how they are answered. See evals/suites.py."""

    labels: tuple[str, ...]
    """Tasks, forms or conditions: the rows of the suite's table."""
    lengths: tuple[int, ...]
    """Prompt lengths in tokens."""
    max_new_tokens: int
    """Longest answer in tokens."""
    answer_slack: int | None = None
    """Tokens allowed beyond those of the right answer. None: ``max_new_tokens`` alone is the limit."""
    samples: int = 1
    """Answers to each item, sampled at ``temperature``; the score is their mean. Only for ``longctx_rl.evaluate``."""
    temperature: float = 0.0
    """Temperature of the answers. 0: greedy."""
    shared_items: bool = False
    """True: ``eval.items`` is the number of items of a length, divided among the labels, rather than of each label."""
    mode: Literal["call", "inline"] = "call"
    """Code only. ``call``: an answer can import the helpers. ``inline``: it has to do what they do."""
    level: int = 0
    """Code only: difficulty, from 0 for the mini models to 2."""
    essays: str | None = None
    """RULER only, like the next two: a local folder of .txt files that essays are taken from. None: generated text. See
    data/generators/ruler_sources.py."""
    squad: str | None = None
    """Local dev-v2.0.json of SQuAD 2.0 that the questions of qa_1 are taken from. None: generated text."""
    hotpot: str | None = None
    """Local hotpot_dev_distractor_v1.json of HotpotQA that the questions of qa_2 are taken from. None: generated
    text."""
    path: str | None = None
    """Suites whose items are read: a file, a folder or a Hub id. None: humaneval and mbpp are not evaluated."""
    revision: str | None = None
    """Commit of a Hub id. None: the main branch as it was downloaded."""
    without: tuple[str, ...] = ()
    """Ids of problems in the file that are dropped."""
    data: DataConfig | None = None
    """LongBlocks only: the data set and its held-out share, as in training."""
    reward: RewardConfig | None = None
    """LongBlocks only: the reward whose graders are used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalConfig:
    """Suites, their size, and when they are evaluated."""

    name: str
    every: int
    """Steps between evaluations during training. 0: none."""
    at_start: bool
    """Evaluate before training."""
    at_end: bool
    """Evaluate after training."""
    items: int
    """Items of each label and length before and after training; with ``shared_items``, of each length over all
    labels."""
    during_items: int
    """The same during training."""
    first: int
    """Number of the first held-out item family. Report results on families that no decision was based on."""
    suites: dict[str, SuiteConfig]
    times: int = 0
    """Evaluations at 1/times, 2/times ... of whichever budget ends the run, instead of ``every``. 0: none."""

    @property
    def during(self) -> bool:
        """Whether there are evaluations during training."""
        return bool(self.every or self.times)

    def with_files(self) -> "EvalConfig":
        """This configuration without the suites in ``FILES`` whose file is not given."""
        suites = {name: suite for name, suite in self.suites.items() if name not in FILES or suite.path is not None}
        return replace(self, suites=suites)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswersConfig(ServerConfig):
    """Who answers for an evaluated checkpoint, and the limits of the answers."""

    max_new_tokens: int
    """Longest answer in tokens, for suites that take their limit from here."""
    batch_tokens: int
    """hf: tokens of prompts and answers whose keys and values are held together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KLConfig:
    """KL(checkpoint || base) in nats per token, over the base's answers to fixed short prompts. See evals/kl.py."""

    base: str | None
    """The model before training: a directory, a Hub id, mini-student or mini-teacher. None: the KL is not measured."""
    items: int
    """Prompts of each of five tasks."""
    length: int
    """Length of the prompts in tokens."""
    max_new_tokens: int
    """Longest answer of the base in tokens."""
    chunk: int
    """Tokens whose distribution over the vocabulary exists at one time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluatedCheckpointConfig:
    """A model that is evaluated, and the device and folder for it."""

    checkpoint: str
    """A directory with config.json and safetensors, such as the export/ of a run; a Hub id; mini-student;
    mini-teacher."""
    tokenizer: str | None
    """None: the checkpoint's own."""
    yarn: YarnConfig | None
    """YaRN stretches the checkpoint's positions. None: only as far as its own configuration says."""
    out: str
    """Folder of the results, one for each checkpoint."""
    device: Literal["auto", "cpu", "cuda"]
    dtype: Literal["float32", "bfloat16"]
    threads: int | None
    """CPU threads of each process. None: torch's default, divided among the processes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HarnessConfig(EvaluatedCheckpointConfig):
    """The configuration of ``python -m longctx_rl.harness``. Its defaults are in conf/harness.yaml."""

    tasks: tuple[str, ...]
    """Names of tasks and groups of lm_eval, or of those in ``include``."""
    include: str | None
    """Folder of further task files (.yaml)."""
    limit: int | None
    """Documents of each task. None: all."""
    fewshot: int | None
    """Examples before each question. None: as many as the task specifies."""
    lengths: tuple[int, ...]
    """Lengths of RULER's prompts in tokens."""
    chat: bool
    """True: prompts are rendered through the chat template."""
    unsafe: tuple[str, ...]
    """Tasks that may run generated code without any sandbox, such as humaneval; others of this kind are refused."""
    max_new_tokens: int
    """Longest answer in tokens, for tasks that set no limit."""
    batch_tokens: int
    """Tokens of prompts and answers whose keys and values are held together."""
    chunk: int
    """Tokens whose distribution over the vocabulary exists at one time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateConfig(EvaluatedCheckpointConfig):
    """The configuration of ``python -m longctx_rl.evaluate``. Its defaults are in conf/evaluate.yaml."""

    processes: int
    """Processes that share the items, each on a core or GPU of its own."""
    sandbox: Literal["auto", "bwrap", "rlimit"]
    """Isolation of generated code that is graded by running it. ``bwrap``: bubblewrap. ``rlimit``: resource limits
    alone. ``auto``: bwrap, and the evaluation is refused without it."""
    logging: LoggingConfig
    """``wandb``: results are mirrored beside those of the runs whose folders lie beside ``out``."""
    rollout: AnswersConfig
    kl: KLConfig
    eval: EvalConfig
