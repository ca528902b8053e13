"""The frozen anchors of a run, teacher and reference: loading them, and what they say about a packed row."""

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
    """A frozen model and how the policy is compared with it."""

    scorer: nn.Module
    divergence: Divergence
    head: Tensor | None
    """[V, H] whole output weights, for the exact divergence."""
    shape: ModelShape


def load_frozen(config: Config, tokenizer: PreTrainedTokenizerBase, vocabulary: int | None) -> dict[str, FrozenScorer]:
    """Teacher (``kd``) and reference (``ref``), as far as they are asked."""
    models: dict[str, PreTrainedModel] = {}
    if config.needs_teacher and config.model.teacher_cache is None:
        assert config.model.teacher is not None
        models["kd"] = load_model(config.model.teacher, config.model.yarn)
    if config.needs_reference:
        models["ref"] = load_student(config, tokenizer)
    chunk = config.model.scoring_chunk
    return {name: FrozenScorer(model, chunk=chunk, vocabulary=vocabulary).freeze() for name, model in models.items()}


def load_student(config: Config, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The student as it is before training: pretrained, or random weights of a configured shape."""
    if config.model.architecture is not None:
        return fresh_model(config.model.architecture, tokenizer, config.seed)
    return load_model(config.model.student, config.model.yarn)


def freeze(config: Config, engine: Engine, name: str, scorer: FrozenScorer) -> FrozenAnchor:
    """A frozen model on the engine, with its replicated output weights if the exact divergence needs them."""
    divergence = config.algo.divergence(name)
    shape = ModelShape.of(scorer.model)
    wrapped = engine.freeze(scorer)
    head = None
    if divergence.estimator == "exact":
        head = engine.full_parameter(scorer.model.get_output_embeddings().weight)
    return FrozenAnchor(wrapped, divergence, head, shape)


def anchor_signal(anchor: FrozenAnchor, packed: PackedGroups, temperature: float) -> Anchor:
    """What a frozen model says about a packed row."""
    signal = anchor.scorer(
        packed,
        estimator=anchor.divergence.estimator,
        temperature=temperature,
        top_k=anchor.divergence.top_k,
        head=anchor.head,
    )
    return Anchor(anchor.divergence, signal)
