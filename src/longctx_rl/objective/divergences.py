"""Divergences between the policy and an anchor (teacher or reference), exact and estimated.

Directions, with p the student and q the anchor: ``reverse`` KL(p || q), ``forward`` KL(q || p), ``js`` the generalised
Jensen-Shannon divergence m KL(q || M) + (1 - m) KL(p || M) with mixture M = m q + (1 - m) p (GKD, arXiv 2306.13649),
``entropy`` w KL(q || p) + (1 - w) KL(p || q) with w = min(1, H(q) / entropy_scale) for each token: a smooth form of
entropy-aware distillation (arXiv 2603.07079), which adds the forward divergence where H(q) exceeds a threshold.

Estimators: ``exact`` sums over the vocabulary. ``topk`` sums over the anchor's K most likely tokens and one bucket that
holds all the rest; nothing is renormalised, so it is a lower bound of the exact value (data-processing inequality;
not of ``entropy``, whose weight w is smaller, too, if outcomes are merged).
``k1``, ``k2``, ``k3`` use the sampled token alone (Schulman, "Approximating KL divergence", 2020) and estimate the
reverse KL if the token was sampled from the student. As losses their gradients differ: in expectation k2's is that of
the reverse KL and k3's that of the forward KL; k1's does not depend on the anchor, so k1 enters advantages only.
"""

import torch
from torch import Tensor

from longctx_rl.objective.spec import Divergence, Estimator
from longctx_rl.types import HiddenSignal, SampledSignal, TeacherSignal, TopKSignal


def categorical(logp: Tensor, logq: Tensor, divergence: Divergence) -> Tensor:
    """Return the divergence of two categorical distributions, given by all their log-probabilities.

    Args:
        logp: [..., V] log-probabilities of the student.
        logq: [..., V] log-probabilities of the anchor.

    Returns:
        [...], nonnegative up to rounding.
    """
    if divergence.direction == "reverse":
        return (logp.exp() * (logp - logq)).sum(-1)
    if divergence.direction == "forward":
        return (logq.exp() * (logq - logp)).sum(-1)
    if divergence.direction == "entropy":
        share = (entropy(logq) / divergence.entropy_scale).clamp(max=1.0)
        reverse, forward = ((logp.exp() * (logp - logq)).sum(-1), (logq.exp() * (logq - logp)).sum(-1))
        return share * forward + (1.0 - share) * reverse
    mixture = divergence.js_mixture
    q_share = torch.log(torch.tensor(mixture, dtype=logp.dtype, device=logp.device))
    p_share = torch.log1p(torch.tensor(-mixture, dtype=logp.dtype, device=logp.device))
    logm = torch.logaddexp(logq + q_share, logp + p_share)
    kl_q = (logq.exp() * (logq - logm)).sum(-1)
    kl_p = (logp.exp() * (logp - logm)).sum(-1)
    return mixture * kl_q + (1.0 - mixture) * kl_p


def entropy(logprobs: Tensor) -> Tensor:
    """Return the entropy in nats, [...], of distributions given by all their log-probabilities, [..., V]."""
    return -(logprobs.exp() * logprobs).sum(-1)


def sampled(logp: Tensor, logq: Tensor, estimator: Estimator) -> Tensor:
    """Return k1, k2 or k3, [T], from the sampled tokens' log-probabilities, [T] each; ``logp`` is the student's."""
    gap = logp - logq
    if estimator == "k1":
        return gap
    if estimator == "k2":
        return 0.5 * gap.square()
    return torch.expm1(-gap) + gap


def with_tail(logprobs: Tensor) -> Tensor:
    """Append the log of the probability mass outside the K listed tokens. [..., K] -> [..., K + 1]."""
    tiny = torch.finfo(logprobs.dtype).eps
    tail = torch.log((-torch.expm1(torch.logsumexp(logprobs, -1, keepdim=True))).clamp(min=tiny))
    return torch.cat([logprobs, tail], -1)


def anchor_distributions(logp: Tensor, signal: TeacherSignal, temperature: float) -> tuple[Tensor, Tensor] | None:
    """Return student and anchor over the same outcomes: the vocabulary, or K tokens and the tail.

    Args:
        logp: [T, V] log-probabilities of the student.
        signal: the anchor's signal for the same T tokens.
        temperature: divides the anchor's logits, as it divided the student's.

    Returns:
        Two [T, V] or [T, K + 1] tensors of log-probabilities, or None for a sampled signal, which is no distribution.
    """
    if isinstance(signal, HiddenSignal):
        logits = (signal.hidden @ signal.head.T)[..., : logp.shape[-1]].to(logp.dtype)
        return logp, torch.log_softmax(logits / temperature, -1)
    if isinstance(signal, TopKSignal):
        return with_tail(logp.gather(-1, signal.ids)), with_tail(signal.logprobs.to(logp.dtype))
    return None


def divergence_of(
    divergence: Divergence,
    pair: tuple[Tensor, Tensor] | None,
    logprobs: Tensor,
    signal: TeacherSignal,
) -> Tensor:
    """Return the configured divergence of T tokens, [T]; ``pair`` is the result of ``anchor_distributions``."""
    if divergence.estimator in ("exact", "topk"):
        assert pair is not None, "exact and topk need a distribution of the anchor"
        return categorical(*pair, divergence)
    assert isinstance(signal, SampledSignal)
    return sampled(logprobs, signal.logprobs.to(logprobs.dtype), divergence.estimator)
