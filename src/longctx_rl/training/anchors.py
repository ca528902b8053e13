"""The anchors of a run, teacher and reference: loading them, and scoring packed rows with them.

A teacher is another model, or the student itself: its initial weights, an average of its weights, or the weights that
are being trained. The reference is the student's initial weights.
"""

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from longctx_rl.config.schema import Config
from longctx_rl.engine import Engine
from longctx_rl.objective.spec import Divergence
from longctx_rl.policy.frozen import FrozenScorer
from longctx_rl.policy.loading import fresh_model, load_model
from longctx_rl.policy.policy import Policy, SignalRequest
from longctx_rl.policy.scoring import Anchor
from longctx_rl.policy.shape import ModelShape
from longctx_rl.types import PackedGroups

INITIAL = "initial"
"""Key of the student's initial weights, which the teacher and the reference can share."""


class LivePolicy(nn.Module):
    """The policy that is being trained, as its own anchor; it holds no weights."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self._engine = engine

    def forward(self, packed: PackedGroups, *, temperature: float, **request: Any) -> Any:
        return self._engine.forward(packed, temperature=temperature, signal=SignalRequest(**request))


@dataclass(frozen=True, slots=True)
class FrozenAnchor:
    """A model that is not differentiated, and the divergence that compares the policy with it."""

    scorer: nn.Module
    """The frozen model as the engine wraps it, a ``LivePolicy``, a cache of signals, or a ``ServedScorer``."""
    divergence: Divergence
    head: Tensor | None
    """Replicated output weights, [V, H], for the exact divergence."""
    shape: ModelShape | None
    """For counting FLOPs. None: the model is behind a server, which does not tell."""
    moving: Tensor | None = None
    """The parameter that ``head`` is the full value of, where it changes with every update."""
    average: nn.Module | None = None
    """The module, if its weights are the average of the policy's."""


def load_frozen(config: Config, tokenizer: PreTrainedTokenizerBase, vocabulary: int | None) -> dict[str, FrozenScorer]:
    """Load the models that the anchors need beside the policy: ``external``, ``initial``, ``ema``."""
    models: dict[str, PreTrainedModel] = {}
    teacher = config.algo.kd.teacher
    if config.loaded_teacher is not None:
        models["external"] = load_model(config.loaded_teacher, config.model.yarn)
    if config.needs_reference or (config.needs_teacher and teacher == INITIAL):
        models[INITIAL] = load_student(config, tokenizer)
    if config.needs_teacher and teacher == "ema":
        models["ema"] = load_student(config, tokenizer)
    chunk = config.model.scoring_chunk
    return {name: FrozenScorer(model, chunk=chunk, vocabulary=vocabulary).freeze() for name, model in models.items()}


def load_student(config: Config, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Load the student as it is before training: pretrained, or randomly initialised in the configured shape."""
    if config.model.architecture is not None:
        return fresh_model(config.model.architecture, tokenizer, config.seed)
    return load_model(config.model.student, config.model.yarn)


def build_anchors(
    config: Config, engine: Engine, policy: Policy, frozen: dict[str, FrozenScorer]
) -> dict[str, FrozenAnchor]:
    """Place the frozen models on the engine, and return the teacher (``kd``) and the reference (``ref``)."""
    wrapped = {name: engine.freeze(scorer) for name, scorer in frozen.items()}

    def anchor(name: str, divergence: Divergence) -> FrozenAnchor:
        scorer = policy if name == "policy" else frozen[name]
        weight = scorer.model.get_output_embeddings().weight
        head = engine.full_parameter(weight) if divergence.estimator == "exact" else None
        moving = weight if head is not None and name in ("policy", "ema") else None
        module = LivePolicy(engine) if name == "policy" else wrapped[name]
        average = scorer if name == "ema" else None
        return FrozenAnchor(module, divergence, head, ModelShape.of(scorer.model), moving, average)

    anchors = {}
    if config.needs_teacher and (config.algo.kd.itself or config.loaded_teacher is not None):
        anchors["kd"] = anchor(config.algo.kd.teacher, config.algo.kd)
    if config.needs_reference:
        anchors["ref"] = anchor(INITIAL, config.algo.ref)
    return anchors


def refreshed(anchor: FrozenAnchor, engine: Engine) -> FrozenAnchor:
    """Return the anchor with the current weights, where they change with every update. All ranks call this."""
    if anchor.average is not None:
        engine.write_average(anchor.average)
    return anchor if anchor.moving is None else replace(anchor, head=engine.full_parameter(anchor.moving))


def anchor_signal(anchor: FrozenAnchor, packed: PackedGroups, temperature: float) -> Anchor:
    """Score a packed row with an anchor's model."""
    signal = anchor.scorer(
        packed,
        estimator=anchor.divergence.estimator,
        temperature=temperature,
        top_k=anchor.divergence.top_k,
        head=anchor.head,
    )
    return Anchor(anchor.divergence, signal)
