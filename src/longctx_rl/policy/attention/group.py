"""Exact attention of a packed row, without a mask and without a copy of the prompt: on a CPU. See flex_attention.py.

Every token attends to its own segment causally, and a completion's tokens to their prompt besides. So a row is two
kinds of parts: *segments* (prompts, completions, whole sequences), causal each in itself, of which those of similar
length run as one batch; and *crossings*, a group's completions as one block of queries against its prompt, with nothing
masked. A token that is in both gets their outputs merged by log-sum-exp. For a group of G completions of C tokens that
is P² / 2 + G C P + G C² / 2 pairs, the fewest that exactness allows; in the last layer, where of each prompt only the
last token is read, P² / 2 less.

See partial_attention.py for how parts are merged, and why their gradients need not be.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from longctx_rl.policy.attention.flex import flex_group_attention
from longctx_rl.policy.attention.partial import attention_part, merge, part_backward
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
    """Consecutive tokens, all of which attend to all of some tokens before them."""

    read: slice
    asking: slice


@lru_cache(maxsize=64)
def parts(spans: tuple[GroupSpan, ...], answers_only: bool = False) -> tuple[list[list[Segment]], list[Crossing]]:
    """Batches of segments, and crossings, of a packed row. See ``group_attention``."""
    segments: list[Segment] = []
    crossings: list[Crossing] = []
    for span in spans:
        start, middle = span.start, span.completions_start
        lens = [length for length in span.completion_lens if length]
        if answers_only and span.prompt_len:
            # The last prompt token reads the whole prompt, as every completion's tokens do.
            crossings.append(Crossing(slice(start, middle), slice(middle - 1, span.end)))
            start = middle
        elif len(lens) <= 1:  # continues its prompt: a plain sequence
            lens = [span.prompt_len + sum(lens)]
        else:
            lens = [span.prompt_len, *lens]
            if span.prompt_len:
                crossings.append(Crossing(slice(start, middle), slice(middle, span.end)))
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
    query: Tensor,
    key: Tensor,
    value: Tensor,
    spans: tuple[GroupSpan, ...],
    scale: float | None,
    *,
    answers_only: bool = False,
) -> Tensor:
    """Attention of a packed row.

    Args:
        query: [1, heads, L, d].
        key, value: [1, kv_heads, L, d].
        scale: of the scores; None: 1 / sqrt(d).
        answers_only: of each prompt only the last token is needed: the rest gets zeros, or what costs nothing.

    Returns:
        [1, heads, L, d], differentiable once.
    """
    if query.device.type != "cpu":
        return flex_group_attention(query, key, value, spans, scale)
    output: Tensor = _GroupAttention.apply(query, key, value, spans, scale, answers_only)  # type: ignore[no-untyped-call]
    return output


class _GroupAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        spans: tuple[GroupSpan, ...],
        scale: float | None,
        answers_only: bool,
    ) -> Tensor:
        ctx.parts, ctx.scale = parts(spans, answers_only), scale
        batches, crossings = ctx.parts
        output = torch.zeros_like(query)
        lse = query.new_full(query.shape[:3], -torch.inf, dtype=torch.promote_types(query.dtype, torch.float32))
        for batch in batches:
            queries, keys, values = (_padded(x, batch) for x in (query, key, value))
            own, own_lse = attention_part(queries, keys, values, scale=scale, causal=True)
            _scatter(output, own, batch)
            _scatter(lse, own_lse, batch)
        for crossing in crossings:
            asking, read = crossing.asking, crossing.read
            other, other_lse = attention_part(
                query[:, :, asking], key[:, :, read], value[:, :, read], scale=scale, causal=False
            )
            output[:, :, asking], lse[:, :, asking] = merge(output[:, :, asking], lse[:, :, asking], other, other_lse)
        ctx.save_for_backward(query, key, value, output, lse)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, lse = ctx.saved_tensors
        (grad,) = grads
        batches, crossings = ctx.parts
        results = tuple(torch.zeros_like(x) for x in (query, key, value))
        for batch in batches:
            asked = tuple(_padded(x, batch) for x in (grad, query, output, lse))
            found = part_backward(asked, _padded(key, batch), _padded(value, batch), scale=ctx.scale, causal=True)
            for result, part in zip(results, found, strict=True):
                _scatter(result, part, batch)
        for crossing in crossings:
            asking, read = crossing.asking, crossing.read
            asked = tuple(x[:, :, asking] for x in (grad, query, output, lse))
            found = part_backward(asked, key[:, :, read], value[:, :, read], scale=ctx.scale, causal=False)
            for result, where, part in zip(results, (asking, read, read), found, strict=True):
                result[:, :, where] += part
        return *results, None, None, None


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
