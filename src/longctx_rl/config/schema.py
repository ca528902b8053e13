"""The configuration: frozen dataclasses, converted once from composed YAML. Below this file nobody sees OmegaConf.

An unknown key, a wrong type or an impossible combination fails before a model is loaded.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from longctx_rl.config import checks, convert
from longctx_rl.config.data import DataConfig, TaskConfig
from longctx_rl.config.eval import EvalConfig
from longctx_rl.config.logging import LoggingConfig
from longctx_rl.config.model import ModelConfig
from longctx_rl.config.reward import RewardConfig

ALGORITHMS = ("sft", "kd", "grpo", "opd", "dgrpo")


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """The coefficients of the one objective; each method is a point in this space."""

    ce: float
    """Cross-entropy of the recorded tokens."""
    pg: float
    """Clipped policy gradient of the group-relative advantage."""
    kd: float
    """Divergence between student and teacher. dGRPO's beta."""
    ref: float
    """Divergence between student and its own initial weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DivergenceConfig:
    """How far two next-token distributions are apart, and how that is estimated."""

    direction: Literal["reverse", "forward", "js"]
    """``reverse``: KL(student || anchor). ``forward``: KL(anchor || student). ``js``: Jensen-Shannon."""
    estimator: Literal["exact", "topk", "k1", "k2", "k3"]
    """``exact``: whole vocabulary. ``topk``: the anchor's K best, the rest as one bucket. k1, k2, k3: drawn token."""
    placement: Literal["loss", "advantage"] = "loss"
    """``loss``: differentiated directly. ``advantage``: subtracted, detached, from each token's advantage (k1 only)."""
    top_k: int = 64
    js_mixture: float = 0.5
    """Weight of the anchor in Jensen-Shannon's mixture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlgoConfig:
    """One method: where tokens come from and what each of them is told. See docs/algorithms.md."""

    name: str
    source: Literal["dataset", "policy"]
    """Who writes the tokens that are trained on."""
    group_size: int
    """G, completions per prompt."""
    weights: Weights
    kd: DivergenceConfig
    ref: DivergenceConfig
    aggregate: Literal["sequence", "token", "constant"]
    """Mean over each sequence, then over all; over all tokens; or sum / (sequences x max_new_tokens)."""
    baseline: Literal["mean", "leave_one_out"]
    """What a reward is compared with inside its group."""
    normalize_std: bool
    """Divide advantages by the group's standard deviation."""
    clip_low: float
    """The ratio is clipped to [1 - clip_low, 1 + clip_high]."""
    clip_high: float
    updates_per_rollout: int
    """Optimizer steps on each batch of rollouts."""
    importance_cap: float | None
    """Cap of the truncated importance weight policy / sampler; none: no correction."""


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
    frozen_weights: Literal["auto", "whole", "sharded"]
    """Teacher and reference on several ranks: whole on each, which gathers nothing, or sharded like the policy."""


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
    backward: Literal["auto", "packed", "scheduled"]
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


def load(composed: DictConfig) -> Config:
    """Convert a composed configuration. Raises ValueError with one friendly sentence."""
    if OmegaConf.is_missing(composed, "algo"):
        raise ValueError(f"choose an algorithm: +algo={'|'.join(ALGORITHMS)}")
    try:
        plain = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ValueError(f"a value is missing or cannot be resolved: {str(error).splitlines()[0]}") from error
    config = convert.convert(Config, plain)
    config = replace(config, eval=config.eval.asked())
    checks.check(config)
    return config


def read(path: Path) -> Config:
    """Read a run's config.yaml. Raises ValueError if it is not one."""
    try:
        loaded = OmegaConf.load(path)
    except (OSError, YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise ValueError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(loaded, DictConfig) or "algo" not in loaded:
        raise ValueError(f"{path} is not a run's config.yaml")
    return load(loaded)


def dump(config: Config) -> str:
    """The configuration as YAML text; ``read`` gives it back."""
    return OmegaConf.to_yaml(OmegaConf.create(convert.plain(config)))
