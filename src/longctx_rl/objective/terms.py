"""The terms of the objective and their weighted sum."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from longctx_rl.objective.aggregation import token_weights
from longctx_rl.objective.spec import ANCHORS, Objective
from longctx_rl.types import Denominators, PackedGroups, TokenScores


@dataclass(frozen=True, slots=True)
class LossOutput:
    """A loss and its metrics: over micro-batches and ranks, loss and ``sums`` are summed, ``maxima`` are maximised."""

    loss: Tensor
    sums: dict[str, Tensor]
    maxima: dict[str, Tensor]


def policy_gradient(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    spec: Objective,
    sequences: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The policy-gradient loss of each token.

    With ``surrogate="clip"`` PPO's clipped surrogate, negated (arXiv 1707.06347, eq. 7; DAPO's clip-higher is
    ``clip_high > clip_low``); with ``cispo`` -log p(token) times advantage and the ratio, capped at 1 + clip_high and
    constant (MiniMax-M1, arXiv 2506.13585; like its experiments without a lower clip). With ``ratio="sequence"`` all
    tokens of a sequence share the geometric mean of their ratios, in the form that allows an advantage for each token
    (GSPO-token, arXiv 2507.18071, eq. 13).
    Where each rollout is used once, ratios are 1 and all four have the gradient -advantage * grad log p.

    Args:
        logprobs: [T] log-probabilities under the policy being updated.
        old_logprobs: [T] log-probabilities under the policy before the update; detached.
        advantages: [T].
        sequences: [T] index of each token's sequence and [S] tokens of each sequence, for ``ratio="sequence"``.

    Returns:
        Loss, ratio, and whether the clip acts, which removes the gradient (``clip``) or lowers its weight (``cispo``);
        [T] each.
    """
    log_ratio = logprobs - old_logprobs
    if spec.ratio == "sequence":
        assert sequences is not None
        shared = sequence_means(log_ratio.detach(), *sequences)
        log_ratio = shared + logprobs - logprobs.detach()
    ratio = torch.exp(log_ratio)
    low, high = 1.0 - spec.clip_low, 1.0 + spec.clip_high
    if spec.surrogate == "cispo":
        return -ratio.detach().clamp(max=high) * advantages * logprobs, ratio, ratio > high
    clipped = ratio.clamp(low, high)
    removed = ((advantages > 0) & (ratio > high)) | ((advantages < 0) & (ratio < low))
    return -torch.minimum(ratio * advantages, clipped * advantages), ratio, removed


def sequence_means(values: Tensor, sequence_ids: Tensor, sequence_lens: Tensor) -> Tensor:
    """Return for each token the mean of ``values`` over its sequence, [T]."""
    sums = values.new_zeros(len(sequence_lens)).index_add(0, sequence_ids, values)
    return (sums / sequence_lens)[sequence_ids]


def objective(
    spec: Objective, scores: TokenScores, packed: PackedGroups, denominators: Denominators, *, max_length: int
) -> LossOutput:
    """Return one packed row's share of the objective, which is a global mean.

    Args:
        scores: the policy's scores, with ``divergences`` for every anchor that has a weight in ``spec``.
        denominators: global counts of the optimizer step.
        max_length: the constant length of ``aggregate="constant"``, in tokens.

    Returns:
        A loss whose sum over micro-batches and ranks is the objective, and metrics normalised in the same way.
    """
    logprobs = scores.logprobs
    weights = token_weights(
        packed.sequence_ids,
        packed.sequence_lens,
        aggregate=spec.aggregate,
        denominators=denominators,
        max_length=max_length,
    ).to(logprobs.dtype)
    per_token = 1.0 / denominators.num_tokens
    sums: dict[str, Tensor] = {"policy/entropy": scores.entropy.sum() * per_token}
    maxima: dict[str, Tensor] = {}
    # An empty row must still reach every parameter, or a sharded backward pass would wait for it forever.
    loss = 0.0 * logprobs.sum()

    if spec.weights.ce:
        term = (weights * -logprobs).sum()
        sums["loss/ce"] = term.detach()
        loss = loss + spec.weights.ce * term
    for anchor in ANCHORS:
        if weight := spec.weight(anchor):
            term = (weights * scores.divergences[anchor]).sum()
            sums[f"loss/{anchor}"] = term.detach()
            if not spec.in_advantage(anchor):
                loss = loss + weight * term
    if packed.sampler_logprobs is not None:
        gap = sampler_gap(_old_logprobs(logprobs, packed), packed)
        sums["policy/sampler_mismatch"] = (torch.expm1(gap) - gap).sum() * per_token
        sums["policy/sampler_gap"] = gap.abs().sum() * per_token
    if spec.weights.pg or spec.weights.unlikely or any(map(spec.in_advantage, ANCHORS)):
        term, more, maxima = _pg_term(spec, scores, packed, weights, per_token)
        sums |= more
        loss = loss + term
    sums["loss/total"] = loss.detach()
    return LossOutput(loss, sums, maxima)


def sampler_gap(old_logprobs: Tensor, packed: PackedGroups) -> Tensor:
    """Return log p(policy before the update) - log p(sampler) of each token, [T]: zero if the two agree.

    Its k3 estimate of KL(sampler || policy), ``expm1(gap) - gap``, is ``policy/sampler_mismatch``.
    """
    assert packed.sampler_logprobs is not None
    return old_logprobs - packed.sampler_logprobs.to(old_logprobs.dtype)


def importance_weights(spec: Objective, old_logprobs: Tensor, packed: PackedGroups) -> tuple[Tensor, dict[str, Tensor]]:
    """Correct for a sampler that is not the policy before the update.

    With ``importance_cap`` the weight is the ratio of their probabilities, truncated at the cap (Yao et al., "Your
    efficient RL framework secretly brings you off-policy RL training", 2025); with ``importance_mask`` it is 0 for all
    tokens of a sequence whose geometric mean of ratios lies outside [1 / mask, mask] (NeMo-RL's ``seq-mask-tis``).

    Returns:
        The weights, and the tokens that each of them acts on, by metric; [T] each.
    """
    assert packed.sampler_logprobs is not None, "importance weights need the sampler's log-probabilities"
    gap = sampler_gap(old_logprobs, packed)
    weights, acts = torch.ones_like(gap), {}
    if spec.importance_cap is not None:
        ratio = torch.exp(gap)
        weights = ratio.clamp(max=spec.importance_cap)
        acts["policy/importance_capped_frac"] = ratio > spec.importance_cap
    if spec.importance_mask is not None:
        masked = sequence_means(gap, packed.sequence_ids, packed.sequence_lens).abs() > math.log(spec.importance_mask)
        weights = weights.masked_fill(masked, 0.0)
        acts["policy/importance_masked_frac"] = masked
    return weights, acts


def _old_logprobs(logprobs: Tensor, packed: PackedGroups) -> Tensor:
    """Log-probabilities, [T], before the update: recorded, or the current ones if there is one update per rollout."""
    return logprobs.detach() if packed.old_logprobs is None else packed.old_logprobs.to(logprobs.dtype)


def _pg_term(
    spec: Objective,
    scores: TokenScores,
    packed: PackedGroups,
    weights: Tensor,
    per_token: float,
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Return the policy-gradient term, and the sums and maxima of its metrics.

    The surrogate is linear in the advantage, so the coefficient is applied to the advantage.
    """
    logprobs = scores.logprobs
    old_logprobs = _old_logprobs(logprobs, packed)
    advantages = spec.weights.pg * packed.advantages.to(logprobs.dtype)
    # k1 of the policy that sampled the tokens: like the reward, it is constant over the updates on a rollout.
    since_rollout = logprobs.detach() - old_logprobs
    for anchor in filter(spec.in_advantage, ANCHORS):
        advantages = advantages - spec.weight(anchor) * (scores.divergences[anchor].detach() - since_rollout)
    if spec.weights.unlikely:
        unlikely = old_logprobs.exp() < spec.unlikely_below
        advantages = advantages - spec.weights.unlikely * unlikely
    losses, ratio, clipped = policy_gradient(
        logprobs, old_logprobs, advantages, spec, (packed.sequence_ids, packed.sequence_lens)
    )
    sums = {
        "policy/ratio_mean": ratio.detach().sum() * per_token,
        "policy/clip_frac": clipped.to(logprobs.dtype).sum() * per_token,
    }
    if (spec.importance_cap or spec.importance_mask) and packed.num_loss_tokens:
        importance, truncated = importance_weights(spec, old_logprobs, packed)
        losses = losses * importance
        sums |= {name: share.to(logprobs.dtype).sum() * per_token for name, share in truncated.items()}
    term = (weights * losses).sum()
    sums["loss/pg"] = term.detach()
    if spec.weights.unlikely:
        sums["policy/unlikely_frac"] = unlikely.to(logprobs.dtype).sum() * per_token
    maxima = {"policy/ratio_max": ratio.detach().max()} if ratio.numel() else {}
    return term, sums, maxima
