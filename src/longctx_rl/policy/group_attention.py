"""Exact attention of a packed row, without a mask and without a copy of the prompt: on a CPU. See flex_attention.py.

Every token attends to its own segment causally, and a completion's tokens to their prompt besides. So a row is two
kinds of parts: *segments* (prompts, completions, whole sequences), causal each in itself, of which those of similar
length run as one batch; and *crossings*, a group's completions as one block of queries against its prompt, with nothing
masked. A token that is in a part of each kind gets their outputs merged by log-sum-exp. For a group of G completions of
C tokens that is P² / 2 + G C P + G C² / 2 pairs, the fewest that exactness allows.

Backward needs no merging: flash attention's gradient of one part is right once it is given the *merged* output and
log-sum-exp, because the weights it recomputes are then those of the whole softmax.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from longctx_rl.policy.flex_attention import flex_group_attention
from longctx_rl.types import GroupSpan

MAX_PADDING = 1.5
"""Segments run as one batch while the longest is at most this much longer than the shortest."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive tokens that attend to themselves causally."""

    start: int
    length: int


@dataclass(frozen=True, slots=True)
class Crossing:
    """A group's completions, all of which attend to all of its prompt."""

    prompt: slice
    completions: slice


def parts(spans: Sequence[GroupSpan]) -> tuple[list[list[Segment]], list[Crossing]]:
    """Batches of segments, and crossings, of a packed row."""
    segments, crossings = [], []
    for span in spans:
        lens = [length for length in span.completion_lens if length]
        if len(lens) <= 1:  # continues its prompt: a plain sequence
            lens = [span.prompt_len + sum(lens)]
        else:
            lens = [span.prompt_len, *lens]
            if span.prompt_len:
                asking = slice(span.completions_start, span.end)
                crossings.append(Crossing(slice(span.start, span.completions_start), asking))
        start = span.start
        for length in lens:
            if length:
                segments.append(Segment(start, length))
            start += length
    batches: list[list[Segment]] = []
    for segment in sorted(segments, key=lambda segment: -segment.length):
        if not batches or batches[-1][0].length > MAX_PADDING * segment.length:
            batches.append([])
        batches[-1].append(segment)
    return batches, crossings


def group_attention(
    query: Tensor, key: Tensor, value: Tensor, spans: tuple[GroupSpan, ...], scale: float | None
) -> Tensor:
    """Attention of a packed row.

    Args:
        query: [1, heads, L, d].
        key, value: [1, kv_heads, L, d].
        scale: of the scores; None: 1 / sqrt(d).

    Returns:
        [1, heads, L, d], differentiable once.
    """
    if query.device.type != "cpu":
        return flex_group_attention(query, key, value, spans, scale)
    output: Tensor = _GroupAttention.apply(query, key, value, spans, scale)  # type: ignore[no-untyped-call]
    return output


class _GroupAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, spans: tuple[GroupSpan, ...], scale: float | None
    ) -> Tensor:
        batches, crossings = parts(spans)
        output = torch.empty_like(query)
        lse = query.new_empty(query.shape[:3], dtype=torch.promote_types(query.dtype, torch.float32))
        for batch in batches:
            queries, keys, values = (_padded(x, batch) for x in (query, key, value))
            own, own_lse = flash(queries, keys, values, scale=scale, causal=True)
            _scatter(output, own, batch)
            _scatter(lse, own_lse, batch)
        for crossing in crossings:
            asking, read = crossing.completions, crossing.prompt
            other, other_lse = flash(query[:, :, asking], key[:, :, read], value[:, :, read], scale=scale, causal=False)
            output[:, :, asking], lse[:, :, asking] = merge(output[:, :, asking], lse[:, :, asking], other, other_lse)
        ctx.save_for_backward(query, key, value, output, lse)
        ctx.spans, ctx.scale = spans, scale
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, lse = ctx.saved_tensors
        (grad,) = grads
        batches, crossings = parts(ctx.spans)
        results = tuple(torch.empty_like(x) for x in (query, key, value))
        for batch in batches:
            asked = tuple(_padded(x, batch) for x in (grad, query, output, lse))
            found = flash_backward(asked, _padded(key, batch), _padded(value, batch), ctx.scale, causal=True)
            for result, part in zip(results, found, strict=True):
                _scatter(result, part, batch)
        for crossing in crossings:
            asking, read = crossing.completions, crossing.prompt
            asked = tuple(x[:, :, asking] for x in (grad, query, output, lse))
            found = flash_backward(asked, key[:, :, read], value[:, :, read], ctx.scale, causal=False)
            for result, where, part in zip(results, (asking, read, read), found, strict=True):
                result[:, :, where] += part
        return *results, None, None


def merge(output: Tensor, lse: Tensor, other: Tensor, other_lse: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs [..., d] and log-sum-exps [...] of attention over two sets of keys, to those over both."""
    weight = torch.sigmoid(other_lse - lse)[..., None]
    merged = torch.lerp(output.to(lse.dtype), other.to(lse.dtype), weight).to(output.dtype)
    return merged, torch.logaddexp(lse, other_lse)


def _padded(x: Tensor, batch: Sequence[Segment]) -> Tensor:
    """[1, heads, L, ...] to [N, heads, longest, ...], zeros behind the shorter segments: harmless, being causal."""
    if len(batch) == 1:
        return x[:, :, batch[0].start : batch[0].start + batch[0].length]
    longest, ends = batch[0].length, (0, 0) * (x.dim() - 3)
    rows = (x[0, :, segment.start : segment.start + segment.length] for segment in batch)
    return torch.stack([functional.pad(row, (*ends, 0, longest - row.shape[1])) for row in rows])


def _scatter(into: Tensor, rows: Tensor, batch: Sequence[Segment]) -> None:
    """The reverse of ``_padded``."""
    for row, segment in zip(rows, batch, strict=True):
        into[0, :, segment.start : segment.start + segment.length] = row[:, : segment.length]


def flash(query: Tensor, key: Tensor, value: Tensor, *, scale: float | None, causal: bool) -> tuple[Tensor, Tensor]:
    """Attention and the log-sum-exp of its scores.

    Args:
        query: [N, heads, M, d].
        key, value: [N, kv_heads, S, d].

    Returns:
        [N, heads, M, d] and [N, heads, M].
    """
    shape = query.shape
    query, key, value = _grouped(query, key, value)
    # What scaled_dot_product_attention calls on a CPU; it alone returns the log-sum-exp.
    output, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, is_causal=causal, scale=scale
    )
    return output.reshape(shape), lse.reshape(shape[:3])


def flash_backward(
    asked: tuple[Tensor, ...], key: Tensor, value: Tensor, scale: float | None, *, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value.

    Args:
        asked: gradient of the output, query, output and log-sum-exp, the last two of the whole softmax.
    """
    kv_heads = key.shape[1]
    grad, query, output, lse = (_by_kv_head(x, kv_heads) for x in asked)
    _, keys, values = _grouped(asked[1], key, value)
    of_query, of_key, of_value = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad, query, keys, values, output, lse.contiguous(), 0.0, causal, scale=scale
    )
    if query.shape[1] > 1:  # heads that share keys and values
        of_key, of_value = of_key.sum(1), of_value.sum(1)
    return of_query.reshape(asked[1].shape), of_key.reshape(key.shape), of_value.reshape(value.shape)


def _by_kv_head(x: Tensor, kv_heads: int) -> Tensor:
    """[N, heads, ...] to [N * kv_heads, heads / kv_heads, ...]."""
    return x.reshape(x.shape[0] * kv_heads, -1, *x.shape[2:])


def _grouped(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Key-value heads as batch, and the heads that share one beside each other: read as often, copied never."""
    kv_heads = key.shape[1]
    query, key, value = (_by_kv_head(x, kv_heads) for x in (query, key, value))
    repeats = (-1, query.shape[1], -1, -1)
    return query, key.expand(repeats), value.expand(repeats)
