"""What a method is: the coefficients of the one objective and how its terms are formed.

The configuration's ``algo`` group is an ``Objective`` with a few keys more, so a weight is declared here, used in
``terms.py`` and documented in docs/algorithms.md. This file imports nothing, torch least of all.
"""

from dataclasses import dataclass, fields, replace
from typing import Literal

Direction = Literal["reverse", "forward", "js", "entropy"]
Estimator = Literal["exact", "topk", "k1", "k2", "k3"]
Placement = Literal["loss", "advantage"]
Aggregate = Literal["sequence", "token", "constant"]
Baseline = Literal["mean", "leave_one_out"]
Ratio = Literal["token", "sequence"]
Surrogate = Literal["clip", "cispo"]

ANCHORS = ("kd", "ref")
"""Weights that belong to a divergence: to the teacher, and to the student's initial weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """The coefficients of the one objective; each method is a point in this space."""

    ce: float = 0.0
    """Cross-entropy of the recorded tokens."""
    pg: float = 0.0
    """Clipped policy gradient of the group-relative advantage."""
    kd: float = 0.0
    """Divergence between student and teacher. dGRPO's beta."""
    ref: float = 0.0
    """Divergence between the student and its own initial weights."""
    unlikely: float = 0.0
    """Constant negative advantage of sampled tokens whose probability is below ``unlikely_below``; needs no teacher."""

    def only(self, *names: str) -> "Weights":
        """These weights with all others set to zero."""
        return replace(self, **{field.name: 0.0 for field in fields(self) if field.name not in names})


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """How the distance between two next-token distributions is measured and estimated."""

    direction: Direction = "reverse"
    """``reverse``: KL(student || anchor). ``forward``: KL(anchor || student). ``js``: Jensen-Shannon. ``entropy``: per
    token a mixture of forward and reverse, with more of forward the less certain the anchor is."""
    estimator: Estimator = "exact"
    """``exact``: the whole vocabulary. ``topk``: the anchor's K most likely tokens, and one bucket for the rest.
    ``k1``, ``k2``, ``k3``: the sampled token alone."""
    placement: Placement = "loss"
    """``loss``: differentiated directly. ``advantage``: subtracted, detached, from each token's advantage (k1 only)."""
    top_k: int = 64
    js_mixture: float = 0.5
    """Weight of the anchor in Jensen-Shannon's mixture."""
    entropy_scale: float = 1.0
    """Entropy of the anchor in nats from which ``entropy`` is the forward divergence alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """One method: a vector of coefficients and how its terms are formed."""

    weights: Weights = Weights()
    kd: Divergence = Divergence()
    ref: Divergence = Divergence()
    aggregate: Aggregate = "sequence"
    """Mean over each sequence, then over all sequences; mean over all tokens; or sum / (sequences x max_length)."""
    baseline: Baseline = "mean"
    """What a reward is compared with inside its group."""
    normalize_std: bool = True
    """Divide advantages by the group's standard deviation."""
    ratio: Ratio = "token"
    """What the policy gradient compares with the policy before the update: each token's probability, or the geometric
    mean over its sequence (GSPO)."""
    surrogate: Surrogate = "clip"
    """``clip``: PPO's, whose gradient vanishes where the ratio is clipped. ``cispo``: the ratio, at most
    1 + clip_high, is a constant weight, so every token keeps a gradient."""
    clip_low: float = 0.2
    """The probability ratio is clipped to [1 - clip_low, 1 + clip_high]."""
    clip_high: float = 0.2
    importance_cap: float | None = None
    """Cap of the truncated importance weight between the policy before the update and the sampler; None: no
    correction."""
    importance_mask: float | None = None
    """Sequences get no policy gradient if the geometric mean of their tokens' probability ratios between the policy
    before the update and the sampler, or its inverse, is above it; None: no mask."""
    unlikely_below: float = 0.1
    """Probability below which ``weights.unlikely`` applies."""

    def weight(self, anchor: str) -> float:
        """The coefficient of the divergence to ``kd`` or ``ref``."""
        value: float = getattr(self.weights, anchor)
        return value

    def divergence(self, anchor: str) -> Divergence:
        """The divergence to ``kd`` or ``ref``."""
        value: Divergence = getattr(self, anchor)
        return value

    def in_advantage(self, anchor: str) -> bool:
        """Whether the divergence to ``kd`` or ``ref`` enters the advantage instead of being differentiated."""
        return bool(self.weight(anchor)) and self.divergence(anchor).placement == "advantage"

    def split(self) -> "tuple[Objective, ...]":
        """Objectives that add up to this one: the policy gradient, the divergence to the teacher, and the rest.

        Returns only itself unless both of the first two exist as separate terms: the clip acts on everything that is in
        the advantage together.
        """
        weights = self.weights
        if not (weights.pg and weights.kd) or weights.unlikely or any(map(self.in_advantage, ANCHORS)):
            return (self,)
        rest = replace(weights, pg=0.0, kd=0.0)
        parts = [weights.only("pg"), weights.only("kd"), *([rest] if rest != Weights() else [])]
        return tuple(replace(self, weights=part) for part in parts)
