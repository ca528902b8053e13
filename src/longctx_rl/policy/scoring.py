"""Chunked scoring: log-probability, entropy and divergences of each loss token, without a [T, vocabulary] tensor.

A chunk's distribution is computed, reduced and freed; the backward pass recomputes it. Weights and denominators are
applied outside, to [T] tensors, so they scale the gradients of body and head alike.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from longctx_rl.objective.divergences import anchor_distributions, categorical, divergence_of, entropy
from longctx_rl.objective.spec import Divergence
from longctx_rl.types import HiddenSignal, SampledSignal, TeacherSignal, TokenScores, TopKSignal

Head = Callable[[Tensor], Tensor]
"""[t, H] -> logits [t, V]."""


@dataclass(frozen=True, slots=True)
class Anchor:
    """A model that the policy is compared with: its signal, and the divergence to measure."""

    divergence: Divergence
    signal: TeacherSignal


def log_softmax(head: Head, hidden: Tensor, temperature: float, vocabulary: int | None) -> Tensor:
    """Return log-probabilities [t, V] in float32 (float64 stays), over the first ``vocabulary`` entries if given."""
    logits = head(hidden)[..., :vocabulary]
    return torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature, -1)


def num_pieces(num_tokens: int, chunk: int) -> int:
    """Return the number of pieces of at most ``chunk`` tokens; at least 1, so that every rank calls the head."""
    return max(1, -(-num_tokens // chunk))


def score_tokens(
    head: Head,
    hidden: Tensor,
    target_ids: Tensor,
    *,
    temperature: float,
    chunk: int,
    anchors: Mapping[str, Anchor],
    vocabulary: int | None = None,
    pieces: int | None = None,
) -> TokenScores:
    """Score T loss tokens, at most ``chunk`` at a time.

    Args:
        head: the output projection; called as a module, so that its hooks gather sharded weights.
        hidden: [T, H] hidden states that predict each token.
        target_ids: [T].
        temperature: divides the logits of student and anchors.
        anchors: ``kd`` and ``ref``, those with a weight.
        vocabulary: number of vocabulary entries to score over; None: all.
        pieces: number of calls of the head, some possibly on no tokens; None: as few as ``chunk`` allows.

    Returns:
        [T] tensors, differentiable in ``hidden`` and the head.
    """
    names = tuple(anchors)

    def score(hidden: Tensor, targets: Tensor, *signal_tensors: Tensor) -> tuple[Tensor, ...]:
        logp = log_softmax(head, hidden, temperature, vocabulary)
        # gather would keep all of logp for its backward pass, and never free it if no loss reads these log-probs.
        logprobs = logp[torch.arange(len(targets), device=targets.device), targets]
        spread = entropy(logp.detach())
        divergences, diagnostics = [], []
        remaining = list(signal_tensors)
        for name in names:
            signal = _rebuild(anchors[name].signal, remaining)
            pair = anchor_distributions(logp, signal, temperature)
            divergences.append(divergence_of(anchors[name].divergence, pair, logprobs, signal))
            if name == "kd":
                known: dict[str, Tensor] = {anchors[name].divergence.direction: divergences[-1].detach()}
                diagnostics = _diagnostics(logp, pair, logprobs, targets, signal, known)
        return (logprobs, spread, *divergences, *diagnostics)

    signals = [tensor for anchor in anchors.values() for tensor in _per_token(anchor.signal)]
    pieces = pieces or num_pieces(len(target_ids), chunk)
    columns = [torch.tensor_split(tensor, pieces) for tensor in (hidden, target_ids, *signals)]
    several = pieces > 1 and torch.is_grad_enabled()
    results = []
    for arguments in zip(*columns, strict=True):
        results.append(checkpoint(score, *arguments, use_reentrant=False) if several else score(*arguments))
    logprobs, spread, *rest = [torch.cat(column) for column in zip(*results, strict=True)]
    return TokenScores(
        logprobs=logprobs,
        entropy=spread,
        divergences=dict(zip(names, rest[: len(names)], strict=True)),
        diagnostics=dict(zip(_known(anchors), rest[len(names) :], strict=True)),
    )


def _known(anchors: Mapping[str, Anchor]) -> tuple[str, ...]:
    """Names of the diagnostics that the teacher's signal allows; a signal of the sampled token alone allows two."""
    if "kd" not in anchors:
        return ()
    if isinstance(anchors["kd"].signal, SampledSignal):
        return ("kl_reverse", "logprob_gap")
    return ("kl_reverse", "kl_forward", "agree_top1", "entropy", "logprob_gap")


@torch.no_grad()
def _diagnostics(
    logp: Tensor,
    pair: tuple[Tensor, Tensor] | None,
    logprobs: Tensor,
    targets: Tensor,
    signal: TeacherSignal,
    known: Mapping[str, Tensor],
) -> list[Tensor]:
    """Compare student and teacher; returns [t] tensors in the order of ``_known``.

    If the signal is a distribution, the two KLs and the teacher's entropy are sums over its outcomes: the vocabulary,
    or K tokens and the tail. If it is the sampled token alone, the reverse KL is k3. In top-k, a sampled token outside
    the K gets the whole mass of the tail, so ``logprob_gap`` is an upper bound there. ``known``: the divergence already
    computed, by direction.
    """
    logprobs = logprobs.detach()
    if pair is None:
        assert isinstance(signal, SampledSignal)
        gap = signal.logprobs.to(logprobs.dtype) - logprobs
        return [torch.expm1(gap) - gap, gap]
    student, anchor = pair[0].detach(), pair[1]
    reverse = known["reverse"] if "reverse" in known else categorical(student, anchor, Divergence(direction="reverse"))
    forward = known["forward"] if "forward" in known else categorical(student, anchor, Divergence(direction="forward"))
    if isinstance(signal, TopKSignal):
        best = signal.ids[:, 0]
        hit = signal.ids == targets[:, None]
        listed = torch.where(hit, signal.logprobs.to(logprobs.dtype), 0.0).sum(-1)
        drawn = torch.where(hit.any(-1), listed, anchor[:, -1])
    else:
        best = anchor.argmax(-1)
        drawn = anchor.gather(-1, targets[:, None])[:, 0]
    agree = (logp.argmax(-1) == best).to(logprobs.dtype)
    return [reverse, forward, agree, entropy(anchor), drawn - logprobs]


def _per_token(signal: TeacherSignal) -> list[Tensor]:
    """Return the tensors of a signal whose first axis is T."""
    if isinstance(signal, HiddenSignal):
        return [signal.hidden]
    return [signal.ids, signal.logprobs] if isinstance(signal, TopKSignal) else [signal.logprobs]


def part_of(signal: TeacherSignal, tokens: slice) -> TeacherSignal:
    """Return the signal restricted to some of its tokens."""
    return _rebuild(signal, [tensor[tokens] for tensor in _per_token(signal)])


def _rebuild(signal: TeacherSignal, tensors: list[Tensor]) -> TeacherSignal:
    """Return the signal of one chunk, built from tensors that are popped from the front of ``tensors``."""
    if isinstance(signal, HiddenSignal):
        return HiddenSignal(tensors.pop(0), signal.head)
    if isinstance(signal, TopKSignal):
        return TopKSignal(tensors.pop(0), tensors.pop(0))
    return SampledSignal(tensors.pop(0))
