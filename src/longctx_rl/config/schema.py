"""The configuration of a run as frozen dataclasses.

``config.load`` converts composed YAML into a ``Config`` once; the rest of the package never sees OmegaConf. An unknown
key, a wrong type or an impossible combination is refused before a model is loaded.
"""

from dataclasses import dataclass
from typing import Literal

from longctx_rl.config.data import DataConfig, TaskConfig
from longctx_rl.config.distillation import DistillationConfig
from longctx_rl.config.eval import EvalConfig
from longctx_rl.config.logging import LoggingConfig
from longctx_rl.config.model import ModelConfig
from longctx_rl.config.reward import RewardConfig
from longctx_rl.config.rollout import ServerConfig
from longctx_rl.objective.spec import Objective

ALGORITHMS = ("sft", "kd", "grpo", "opd", "dgrpo", "opsd", "dgrpo_self")
SMALL_MODEL_NUMEL = 20_000_000
"""Largest number of parameters that ZeRO-3 keeps in full on every rank: sharding smaller models costs time and saves
hardly any memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlgoConfig(Objective):
    """One method: who writes the tokens it trains on, and the objective it trains them with. See docs/algorithms.md."""

    name: str
    kd: DistillationConfig
    source: Literal["dataset", "policy"]
    """Who writes the tokens that are trained on: ``dataset`` or ``policy``."""
    group_size: int
    """G, the number of completions per prompt."""
    updates_per_rollout: int
    """Optimizer steps on each batch of rollouts."""
    draws: int = 1
    """Most prompts that are drawn for each place of a step until the rewards of a group differ (DAPO's dynamic
    sampling)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """The training engine, its processes and its devices."""

    name: Literal["zero3", "local"]
    """``zero3``: DeepSpeed ZeRO-3. ``local``: plain torch in one process."""
    num_processes: int
    """Processes on this machine, one for each GPU."""
    num_nodes: int
    """Machines, each of which runs the same command. See docs/multi-node.md."""
    rendezvous: str | None
    """``host:port`` of the first machine; required if num_nodes is above 1."""
    device: Literal["auto", "cpu", "cuda"]
    """``auto``: the GPU if torch detects one."""
    threads: int | None
    """CPU threads of each process. None: torch's default for one process, an equal share of the cores for several."""
    offload_optimizer: bool
    """ZeRO-3 on a GPU: keep optimizer states in host memory."""
    frozen_weights: Literal["auto", "replicated", "sharded"]
    """How several ranks hold teacher and reference. ``replicated``: in full on each rank, so nothing is gathered.
    ``sharded``: like the policy. ``auto``: replicated if the memory estimate fits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimConfig:
    """AdamW, its learning-rate schedule and its safeguards."""

    lr: float
    """Peak learning rate; the default is the model's for tokens from this source (``model.lr``, ``algo.source``)."""
    schedule: Literal["cosine", "constant"]
    """``cosine``: the learning rate falls to lr * min_lr_ratio as the budget is spent, whichever budget ends the run.
    ``constant``: it stays at lr."""
    warmup_steps: int
    """Steps of the linear rise to lr, which are part of the budget."""
    min_lr_ratio: float
    """Where the cosine ends, as a share of lr."""
    betas: tuple[float, ...]
    eps: float
    weight_decay: float
    max_grad_norm: float
    """Gradients with a larger norm are scaled down to it."""
    max_skipped: int
    """A step with a NaN or infinite gradient is skipped; this many in a row end the run with the cause."""
    pg_kd_cosine_every: int
    """Steps between measurements of the angle between the policy gradient and the teacher's (grad/pg_kd_cosine), for
    methods that have both. A measured step makes two passes over its rows. 0: never."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UntilConfig:
    """An early stop: the run ends once a metric reaches a value."""

    metric: str
    """A recorded metric, such as eval/heldout/mean."""
    at_least: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetConfig:
    """The run ends at the first budget that is spent. None: not limited."""

    steps: int | None
    """Steps: one batch of prompts and ``algo.updates_per_rollout`` optimizer steps each; also the schedule's length."""
    trained_tokens: int | None
    """Tokens that the loss was computed on."""
    flops: float | None
    """Floating-point operations of sampling, training and the teacher together."""
    seconds: float | None
    """Wall-clock time of training, without evaluations."""
    until: UntilConfig | None
    """Stop early once a metric reaches a value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchConfig:
    """Sizes of a step and of the rows that it is computed in."""

    prompts_per_step: int
    """Prompts per rollout over all processes, each with ``algo.group_size`` completions; documents for data-set
    methods."""
    micro_batch_tokens: int
    """Tokens of one packed row; a single group may exceed it. Memory and speed depend on it, gradients do not."""
    backward: Literal["auto", "packed", "one_at_a_time"]
    """How the gradient of a group is computed. ``packed``: all completions in one pass, the fastest. ``one_at_a_time``:
    one completion at a time, in the memory of one, at the price of a second pass over the prompt; for methods that
    sample. The gradient is the same. ``auto``: packed if the memory estimate fits (``python -m longctx_rl.doctor``
    shows it)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutConfig(ServerConfig):
    """How completions are sampled."""

    temperature: float
    """Divides the logits in every log-probability alike: sampler, policy, reference and teacher."""
    max_new_tokens: int
    """Longest completion in tokens."""
    batch_tokens: int
    """Tokens whose keys and values are held together while decoding: each prompt once, completions at their full
    length."""
    gather_weights: bool
    """ZeRO-3: hold the full weights while sampling (fast). False: gather them layer by layer (less memory)."""
    weights_dir: str | None = None
    """Folder for the weights on their way to the servers; None: shared memory, or the run directory."""
    ahead: int = 0
    """1: vLLM draws the next step's completions while this step trains."""
    importance_cap: float | None = None
    """Default of algo.importance_cap with this sampler."""
    max_gap: float | None = None
    """Largest mean difference of log-probabilities between sampler and policy, in nats; None: by dtype."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointConfig:
    """When checkpoints are written, and how many are kept."""

    every: int
    """Steps between checkpoints. 0: only at the end and when the run is interrupted."""
    keep: int
    """Number of checkpoints that are kept, newest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepConfig:
    """How the runs of a sweep (-m) are started, which does not affect any of them. See docs/grids.md."""

    jobs: int = 1
    """Number of runs at a time."""
    plan: bool = False
    """True: print what each run would do and cost, and start none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything a run depends on."""

    algo: AlgoConfig
    model: ModelConfig
    task: TaskConfig
    data: DataConfig
    engine: EngineConfig
    rollout: RolloutConfig
    reward: RewardConfig
    eval: EvalConfig
    logging: LoggingConfig
    optim: OptimConfig
    budget: BudgetConfig
    batch: BatchConfig
    checkpoint: CheckpointConfig
    sandbox: Literal["auto", "bwrap", "rlimit"]
    """Isolation of generated code that is graded by running it. ``bwrap``: bubblewrap, without network, files and other
    processes. ``rlimit``: resource limits alone, for code you trust. ``auto``: bwrap, and the run is refused without
    it."""
    seed: int
    """Seed of weights, data order and sampling. Repeat a comparison with several."""
    experiment_name: str
    """Runs of one experiment share a folder, a wandb group and a row of the tables."""
    runs_root: str
    run_dir: str
    resume: bool
    """True: continue the run in run_dir from its newest checkpoint, or start it if there is none."""
    sweep: SweepConfig = SweepConfig()

    @property
    def samples(self) -> bool:
        """Whether the run draws completions, to train on them or to evaluate."""
        return self.algo.source == "policy" or self.eval.at_start or self.eval.during or self.eval.at_end

    @property
    def served(self) -> bool:
        """Whether servers draw them."""
        return self.rollout.name == "vllm" and self.samples

    @property
    def largest_gap(self) -> float:
        """``rollout.max_gap``, or what rounding explains with this dtype, in nats."""
        return self.rollout.max_gap or (1e-4 if self.model.dtype == "float32" else 0.05)

    @property
    def world_size(self) -> int:
        return self.engine.num_processes * self.engine.num_nodes

    @property
    def schedule_steps(self) -> int | None:
        """Optimizer steps until ``budget.steps`` is spent; None if it is not set."""
        return None if self.budget.steps is None else self.budget.steps * self.algo.updates_per_rollout

    @property
    def needs_teacher(self) -> bool:
        return self.algo.weights.kd != 0.0

    @property
    def external_teacher(self) -> str | None:
        """The model that the run loads, or gets the signals of, as its teacher. None: there is none, or the student
        teaches itself."""
        return self.model.teacher if self.needs_teacher and not self.algo.kd.itself else None

    @property
    def teacher_server(self) -> str | None:
        """The address of the server that has the external teacher. None: there is no server."""
        name = self.external_teacher
        return name if name is not None and "://" in name else None

    @property
    def loaded_teacher(self) -> str | None:
        """The external teacher, if the run loads its weights: neither a server has them nor a cache its signals."""
        elsewhere = self.teacher_server is not None or self.model.teacher_cache is not None
        return None if elsewhere else self.external_teacher

    @property
    def needs_reference(self) -> bool:
        return self.algo.weights.ref != 0.0

    @property
    def average_half_life(self) -> float | None:
        """Half-life, in updates, of the average of the policy's weights that engines maintain. None: there is none."""
        return self.algo.kd.ema_half_life if self.needs_teacher and self.algo.kd.teacher == "ema" else None

    @property
    def viewed(self) -> bool:
        """Whether the teacher reads prompts of its own."""
        return self.needs_teacher and self.algo.kd.view != "document"


@dataclass(frozen=True, slots=True)
class RunRequest:
    """A run that a command line requests: its configuration, or the problem that leaves it without one."""

    command: str
    """The command that starts this run alone."""
    config: Config | None
    problem: ValueError | None = None
