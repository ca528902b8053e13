"""Chunked scoring: what a head says about each loss token, without a [T, vocabulary] tensor.

A chunk's distribution is made, read and dropped; the backward pass makes it again. Every factor is applied outside, to
[T] tensors, so weights and denominators reach body and head alike.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from longctx_rl.objective.divergences import Divergence, anchor_distributions, categorical, divergence_of
from longctx_rl.types import HiddenSignal, SampledSignal, TeacherSignal, TokenScores, TopKSignal

Head = Callable[[Tensor], Tensor]
"""[t, H] -> logits [t, V]."""


@dataclass(frozen=True, slots=True)
class Anchor:
    """A distribution that the policy is compared with."""

    divergence: Divergence
    signal: TeacherSignal


def log_softmax(head: Head, hidden: Tensor, temperature: float, vocabulary: int | None) -> Tensor:
    """Log-probabilities [t, V] in float32 (float64 stays), of the first ``vocabulary`` rows when given."""
    logits = head(hidden)[..., :vocabulary]
    return torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature, -1)


def num_pieces(num_tokens: int, chunk: int) -> int:
    """Pieces of at most ``chunk`` tokens; at least one, so that the head is called on every rank."""
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
        head: the output projection; called as given, so that sharded weights are gathered by its hooks.
        hidden: [T, H] hidden state that predicts each token.
        target_ids: [T].
        temperature: divides student and anchor logits alike.
        anchors: ``kd`` and ``ref`` as far as they are weighed.
        pieces: number of calls of the head, some on no tokens; None: as many as ``chunk`` makes necessary.

    Returns:
        [T] tensors, differentiable in ``hidden`` and the head.
    """
    names = tuple(anchors)

    def score(hidden: Tensor, targets: Tensor, *signal_tensors: Tensor) -> tuple[Tensor, ...]:
        logp = log_softmax(head, hidden, temperature, vocabulary)
        # Not gather, which keeps all of logp for its backward pass, for ever if no loss reads the drawn tokens.
        logprobs = logp[torch.arange(len(targets), device=targets.device), targets]
        entropy = -(logp.detach().exp() * logp.detach()).sum(-1)
        divergences, diagnostics = [], []
        remaining = list(signal_tensors)
        for name in names:
            signal = _rebuild(anchors[name].signal, remaining)
            pair = anchor_distributions(logp, signal, temperature)
            divergences.append(divergence_of(anchors[name].divergence, pair, logprobs, signal))
            if name == "kd":
                known: dict[str, Tensor] = {anchors[name].divergence.direction: divergences[-1].detach()}
                diagnostics = _diagnostics(logp, pair, logprobs, targets, signal, known)
        return (logprobs, entropy, *divergences, *diagnostics)

    signals = [tensor for anchor in anchors.values() for tensor in _per_token(anchor.signal)]
    pieces = pieces or num_pieces(len(target_ids), chunk)
    columns = [torch.tensor_split(tensor, pieces) for tensor in (hidden, target_ids, *signals)]
    several = pieces > 1 and torch.is_grad_enabled()
    results = []
    for arguments in zip(*columns, strict=True):
        results.append(checkpoint(score, *arguments, use_reentrant=False) if several else score(*arguments))
    logprobs, entropy, *rest = [torch.cat(column) for column in zip(*results, strict=True)]
    return TokenScores(
        logprobs=logprobs,
        entropy=entropy,
        divergences=dict(zip(names, rest[: len(names)], strict=True)),
        diagnostics=dict(zip(_known(anchors), rest[len(names) :], strict=True)),
    )


def _known(anchors: Mapping[str, Anchor]) -> tuple[str, ...]:
    """Names of the diagnostics that the teacher's signal allows; the drawn token alone allows two of them."""
    if "kd" not in anchors:
        return ()
    if isinstance(anchors["kd"].signal, SampledSignal):
        return ("kl_reverse", "logprob_gap")
    return ("kl_reverse", "kl_forward", "agree_top1", "logprob_gap")


@torch.no_grad()
def _diagnostics(
    logp: Tensor,
    pair: tuple[Tensor, Tensor] | None,
    logprobs: Tensor,
    targets: Tensor,
    signal: TeacherSignal,
    known: Mapping[str, Tensor],
) -> list[Tensor]:
    """Student against teacher, [t] each, in the order of ``_known``.

    With a distribution the two KLs are sums over its outcomes: the vocabulary, or K tokens and the tail. With the drawn
    token alone the reverse KL is k3. In top-k a drawn token that is not listed counts with the tail's whole mass, so
    ``logprob_gap`` is an upper bound there. ``known``: the divergence that was computed already, by direction.
    """
    logprobs = logprobs.detach()
    if pair is None:
        assert isinstance(signal, SampledSignal)
        gap = signal.logprobs.to(logprobs.dtype) - logprobs
        return [torch.expm1(gap) - gap, gap]
    student, anchor = pair[0].detach(), pair[1]
    reverse = known["reverse"] if "reverse" in known else categorical(student, anchor, Divergence("reverse"))
    forward = known["forward"] if "forward" in known else categorical(student, anchor, Divergence("forward"))
    if isinstance(signal, TopKSignal):
        best = signal.ids[:, 0]
        hit = signal.ids == targets[:, None]
        listed = torch.where(hit, signal.logprobs.to(logprobs.dtype), 0.0).sum(-1)
        drawn = torch.where(hit.any(-1), listed, anchor[:, -1])
    else:
        best = anchor.argmax(-1)
        drawn = anchor.gather(-1, targets[:, None])[:, 0]
    agree = (logp.argmax(-1) == best).to(logprobs.dtype)
    return [reverse, forward, agree, drawn - logprobs]


def _per_token(signal: TeacherSignal) -> list[Tensor]:
    """The tensors of a signal whose first axis is T."""
    if isinstance(signal, HiddenSignal):
        return [signal.hidden]
    return [signal.ids, signal.logprobs] if isinstance(signal, TopKSignal) else [signal.logprobs]


def part_of(signal: TeacherSignal, tokens: slice) -> TeacherSignal:
    """The signal of some of its tokens."""
    return _rebuild(signal, [tensor[tokens] for tensor in _per_token(signal)])


def _rebuild(signal: TeacherSignal, tensors: list[Tensor]) -> TeacherSignal:
    """The signal of one chunk; takes its tensors from the front of ``tensors``."""
    if isinstance(signal, HiddenSignal):
        return HiddenSignal(tensors.pop(0), signal.head)
    if isinstance(signal, TopKSignal):
        return TopKSignal(tensors.pop(0), tensors.pop(0))
    return SampledSignal(tensors.pop(0))
