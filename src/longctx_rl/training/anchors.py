"""The frozen anchors of a run, teacher and reference: loading them, and scoring packed rows with them."""

from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from longctx_rl.config.schema import Config
from longctx_rl.engine import Engine
from longctx_rl.objective.spec import Divergence
from longctx_rl.policy.frozen import FrozenScorer
from longctx_rl.policy.loading import fresh_model, load_model
from longctx_rl.policy.scoring import Anchor
from longctx_rl.policy.shape import ModelShape
from longctx_rl.types import PackedGroups


@dataclass(frozen=True, slots=True)
class FrozenAnchor:
    """A frozen model and the divergence that compares the policy with it."""

    scorer: nn.Module
    divergence: Divergence
    head: Tensor | None
    """Replicated output weights, [V, H], for the exact divergence."""
    shape: ModelShape


def load_frozen(config: Config, tokenizer: PreTrainedTokenizerBase, vocabulary: int | None) -> dict[str, FrozenScorer]:
    """Load the teacher (``kd``) and the reference (``ref``), if the method needs them."""
    models: dict[str, PreTrainedModel] = {}
    if config.needs_teacher and config.model.teacher_cache is None:
        assert config.model.teacher is not None
        models["kd"] = load_model(config.model.teacher, config.model.yarn)
    if config.needs_reference:
        models["ref"] = load_student(config, tokenizer)
    chunk = config.model.scoring_chunk
    return {name: FrozenScorer(model, chunk=chunk, vocabulary=vocabulary).freeze() for name, model in models.items()}


def load_student(config: Config, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Load the student as it is before training: pretrained, or randomly initialised in the configured shape."""
    if config.model.architecture is not None:
        return fresh_model(config.model.architecture, tokenizer, config.seed)
    return load_model(config.model.student, config.model.yarn)


def freeze(config: Config, engine: Engine, name: str, scorer: FrozenScorer) -> FrozenAnchor:
    """Place a frozen model on the engine, with replicated output weights if the exact divergence needs them."""
    divergence = config.algo.divergence(name)
    shape = ModelShape.of(scorer.model)
    wrapped = engine.freeze(scorer)
    head = None
    if divergence.estimator == "exact":
        head = engine.full_parameter(scorer.model.get_output_embeddings().weight)
    return FrozenAnchor(wrapped, divergence, head, shape)


def anchor_signal(anchor: FrozenAnchor, packed: PackedGroups, temperature: float) -> Anchor:
    """Score a packed row with a frozen model."""
    signal = anchor.scorer(
        packed,
        estimator=anchor.divergence.estimator,
        temperature=temperature,
        top_k=anchor.divergence.top_k,
        head=anchor.head,
    )
    return Anchor(anchor.divergence, signal)
