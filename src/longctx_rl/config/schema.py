"""The configuration as frozen dataclasses. ``load`` converts composed YAML into it once; below, nobody sees OmegaConf.

An unknown key, a wrong type or an impossible combination is refused before a model is loaded.
"""

from dataclasses import dataclass
from typing import Literal

from longctx_rl.config.data import DataConfig, TaskConfig
from longctx_rl.config.eval import EvalConfig
from longctx_rl.config.logging import LoggingConfig
from longctx_rl.config.model import ModelConfig
from longctx_rl.config.reward import RewardConfig
from longctx_rl.objective.spec import Objective

ALGORITHMS = ("sft", "kd", "grpo", "opd", "dgrpo")
SMALL_MODEL_NUMEL = 20_000_000
"""ZeRO-3 keeps all weights of models up to this size on every rank: sharding them costs more time than it saves memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlgoConfig(Objective):
    """One method: where its tokens come from, and the objective that they are trained with. See docs/algorithms.md."""

    name: str
    source: Literal["dataset", "policy"]
    """Who writes the tokens that are trained on."""
    group_size: int
    """G, completions per prompt."""
    updates_per_rollout: int
    """Optimizer steps on each batch of rollouts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    name: Literal["zero3", "local"]
    """``zero3``: DeepSpeed ZeRO-3. ``local``: plain torch, one process."""
    num_processes: int
    """Processes on this machine."""
    num_nodes: int
    rendezvous: str | None
    """``host:port`` of the first node, for num_nodes > 1."""
    device: Literal["auto", "cpu", "cuda"]
    threads: int | None
    """CPU threads per process; none: torch's default."""
    offload_optimizer: bool
    """ZeRO-3 on GPU: keep optimizer states in host memory."""
    frozen_weights: Literal["auto", "replicated", "sharded"]
    """Teacher and reference on several ranks: replicated on each, which gathers nothing, or sharded like the policy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimConfig:
    lr: float
    schedule: Literal["cosine", "constant"]
    warmup_steps: int
    min_lr_ratio: float
    """Where the cosine ends, as a share of lr."""
    betas: tuple[float, ...]
    eps: float
    weight_decay: float
    max_grad_norm: float
    max_skipped: int
    """Non-finite gradients in a row that end the run."""
    pg_kd_cosine_every: int  # steps between measurements of grad/pg_kd_cosine; 0: none


@dataclass(frozen=True, slots=True, kw_only=True)
class UntilConfig:
    metric: str
    """A recorded metric, such as eval/heldout/mean."""
    at_least: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetConfig:
    steps: int | None
    trained_tokens: int | None
    flops: float | None
    seconds: float | None
    until: UntilConfig | None
    """Stop early once a metric reaches a value. The run ends at the first budget that is spent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchConfig:
    prompts_per_step: int  # documents, for data-set methods; over all ranks
    micro_batch_tokens: int
    """Tokens of a packed row; one group may exceed it."""
    backward: Literal["auto", "packed", "one_at_a_time"]
    """Gradient of a group: all completions at once, or one at a time with the memory of one. ``auto``: what fits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutConfig:
    name: Literal["hf"]
    temperature: float
    """Divides the logits in every log-probability: sampler, policy, reference and teacher."""
    max_new_tokens: int
    batch_tokens: int  # prompts once, and completions, whose keys and values are held together
    gather_weights: bool
    """ZeRO-3: hold full weights while sampling (fast); false: gather layer by layer (small)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointConfig:
    every: int
    """Steps between checkpoints; 0: only at the end and when interrupted."""
    keep: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepConfig:
    """How the runs of a sweep are started. Of no consequence to any of them."""

    jobs: int = 1
    """Runs at a time."""
    plan: bool = False
    """Print what the sweep would do and cost, and start nothing."""


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
    """Isolation of generated code that is graded by running it."""
    seed: int
    experiment_name: str
    runs_root: str
    run_dir: str
    resume: bool
    sweep: SweepConfig = SweepConfig()

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
    def needs_reference(self) -> bool:
        return self.algo.weights.ref != 0.0


@dataclass(frozen=True, slots=True)
class RunRequest:
    """A run that a command line requests: its configuration, or why it has none."""

    command: str
    """What a user would type to start this run alone."""
    config: Config | None
    problem: ValueError | None = None
