"""The terms of the objective and their weighted sum."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from longctx_rl.objective.aggregation import Aggregate, token_weights
from longctx_rl.types import Denominators, PackedGroups, TokenScores


@dataclass(frozen=True, slots=True)
class Objective:
    """One method: a vector of coefficients and how its terms are formed."""

    ce: float = 0.0
    pg: float = 0.0
    kd: float = 0.0
    ref: float = 0.0
    kd_in_advantage: bool = False
    """The student-teacher log-ratio is subtracted from each token's advantage instead of being differentiated."""
    ref_in_advantage: bool = False
    aggregate: Aggregate = "sequence"
    clip_low: float = 0.2
    clip_high: float = 0.2
    importance_cap: float | None = None
    """Cap of the truncated importance weight between the policy before the update and the sampler."""
    max_length: int = 1
    """Tokens, for ``aggregate="constant"``."""

    def split(self) -> tuple["Objective", ...]:
        """Objectives that add up to this one: policy gradient, divergence to the teacher, and what is left.

        Only itself where there are not those two: the clip does not let a divergence in the advantage be told apart.
        """
        if not (self.pg and self.kd) or self.kd_in_advantage or self.ref_in_advantage:
            return (self,)
        parts = (replace(self, ce=0.0, kd=0.0, ref=0.0), replace(self, ce=0.0, pg=0.0, ref=0.0))
        return (*parts, replace(self, pg=0.0, kd=0.0)) if self.ce or self.ref else parts


@dataclass(frozen=True, slots=True)
class LossOutput:
    """A loss and what it is made of; to be added over micro-batches and ranks (maxima: to be maximised)."""

    loss: Tensor
    sums: dict[str, Tensor]
    maxima: dict[str, Tensor]


def policy_gradient(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip_low: float, clip_high: float
) -> tuple[Tensor, Tensor, Tensor]:
    """PPO's clipped surrogate, negated (arXiv 1707.06347, eq. 7; DAPO's clip-higher is ``clip_high > clip_low``).

    Args:
        logprobs: [T] of the policy being updated.
        old_logprobs: [T] of the policy before the update; detached.
        advantages: [T].

    Returns:
        loss, ratio and whether the clip removed the gradient; [T] each.
    """
    ratio = torch.exp(logprobs - old_logprobs)
    clipped = ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    surrogate = torch.minimum(ratio * advantages, clipped * advantages)
    removed = ((advantages > 0) & (ratio > 1.0 + clip_high)) | ((advantages < 0) & (ratio < 1.0 - clip_low))
    return -surrogate, ratio, removed


def objective(spec: Objective, scores: TokenScores, packed: PackedGroups, denominators: Denominators) -> LossOutput:
    """The objective over one packed row, as this row's share of the global mean.

    Args:
        scores: the policy's, with ``divergences`` for every anchor that ``spec`` weighs.
        denominators: global counts of the optimizer step.

    Returns:
        A loss whose sum over micro-batches and ranks is the objective, and metrics on the same footing.
    """
    logprobs = scores.logprobs
    weights = token_weights(
        packed.sequence_ids,
        packed.sequence_lens,
        aggregate=spec.aggregate,
        denominators=denominators,
        max_length=spec.max_length,
    ).to(logprobs.dtype)
    per_token = 1.0 / denominators.num_tokens
    sums: dict[str, Tensor] = {"policy/entropy": scores.entropy.sum() * per_token}
    maxima: dict[str, Tensor] = {}
    # An empty row must still reach every parameter, or a sharded backward would wait for it forever.
    loss = 0.0 * logprobs.sum()

    if spec.ce:
        term = (weights * -logprobs).sum()
        sums["loss/ce"] = term.detach()
        loss = loss + spec.ce * term
    for name, weight, in_advantage in (
        ("kd", spec.kd, spec.kd_in_advantage),
        ("ref", spec.ref, spec.ref_in_advantage),
    ):
        if weight:
            term = (weights * scores.divergences[name]).sum()
            sums[f"loss/{name}"] = term.detach()
            if not in_advantage:
                loss = loss + weight * term
    if packed.sampler_logprobs is not None:
        sums["policy/sampler_mismatch"] = sampler_mismatch(_old_logprobs(logprobs, packed), packed).sum() * per_token
    if spec.pg or spec.kd_in_advantage or spec.ref_in_advantage:
        term = _pg_term(spec, scores, packed, weights, per_token, sums, maxima)
        loss = loss + term
    sums["loss/total"] = loss.detach()
    return LossOutput(loss, sums, maxima)


def sampler_mismatch(old_logprobs: Tensor, packed: PackedGroups) -> Tensor:
    """k3 estimate of KL(sampler || policy before the update) at each token, [T]: zero when the two agree."""
    assert packed.sampler_logprobs is not None
    gap = old_logprobs - packed.sampler_logprobs.to(old_logprobs.dtype)
    return torch.expm1(gap) - gap


def _old_logprobs(logprobs: Tensor, packed: PackedGroups) -> Tensor:
    """[T] of the policy before the update: recorded, or this very policy when it makes one update per rollout."""
    return logprobs.detach() if packed.old_logprobs is None else packed.old_logprobs.to(logprobs.dtype)


def _pg_term(
    spec: Objective,
    scores: TokenScores,
    packed: PackedGroups,
    weights: Tensor,
    per_token: float,
    sums: dict[str, Tensor],
    maxima: dict[str, Tensor],
) -> Tensor:
    """The policy-gradient term with its coefficient, and its metrics. The surrogate is linear in the advantage."""
    logprobs = scores.logprobs
    old_logprobs = _old_logprobs(logprobs, packed)
    advantages = spec.pg * packed.advantages.to(logprobs.dtype)
    # k1 of the policy that drew the tokens: like the reward, it does not change while the policy is updated.
    since_rollout = logprobs.detach() - old_logprobs
    if spec.kd_in_advantage:
        advantages = advantages - spec.kd * (scores.divergences["kd"].detach() - since_rollout)
    if spec.ref_in_advantage:
        advantages = advantages - spec.ref * (scores.divergences["ref"].detach() - since_rollout)
    losses, ratio, removed = policy_gradient(logprobs, old_logprobs, advantages, spec.clip_low, spec.clip_high)
    if spec.importance_cap is not None and packed.num_loss_tokens:
        assert packed.sampler_logprobs is not None, "truncated importance weights need the sampler's log-probs"
        importance = torch.exp(old_logprobs - packed.sampler_logprobs.to(logprobs.dtype))
        losses = losses * importance.clamp(max=spec.importance_cap)
    term = (weights * losses).sum()
    sums["loss/pg"] = term.detach()
    sums["policy/ratio_mean"] = ratio.detach().sum() * per_token
    sums["policy/clip_frac"] = removed.to(logprobs.dtype).sum() * per_token
    if ratio.numel():
        maxima["policy/ratio_max"] = ratio.detach().max()
    return term
