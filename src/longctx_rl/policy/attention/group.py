"""Exact attention of a packed row on a CPU, without a mask and without copies of the prompt. On a GPU see flex.py.

Every token attends causally within its own segment, and a completion's tokens attend to their prompt as well. So a row
consists of two kinds of parts: *segments* (prompts, completions, plain sequences), each causal in itself, where those
of similar length run as one batch; and *crossings*, a group's completions as one block of queries against its prompt,
unmasked. If a token is in both, their outputs are merged by log-sum-exp. For a prompt of P tokens and G completions of
C tokens, that is P² / 2 + G C P + G C² / 2 pairs of query and key, the minimum for exact attention; in the last layer,
where only the last token of each prompt is read, P² / 2 fewer.

partial.py says how parts are merged, and why their gradients need no merging.
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
"""Segments run as one batch if the longest is at most this many times as long as the shortest."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive tokens that attend causally to each other."""

    start: int
    length: int


@dataclass(frozen=True, slots=True)
class Crossing:
    """Consecutive tokens that all attend to every token of an earlier slice."""

    keys: slice
    queries: slice


@lru_cache(maxsize=64)
def parts(spans: tuple[GroupSpan, ...], completions_only: bool = False) -> tuple[list[list[Segment]], list[Crossing]]:
    """Return a packed row's batches of segments, and its crossings. See ``group_attention``."""
    segments: list[Segment] = []
    crossings: list[Crossing] = []
    for span in spans:
        start, middle = span.start, span.completions_start
        lens = [length for length in span.completion_lens if length]
        if completions_only and span.prompt_len:
            # The last prompt token attends to the whole prompt, as every completion's tokens do.
            crossings.append(Crossing(slice(start, middle), slice(middle - 1, span.end)))
            start = middle
        elif len(lens) <= 1:  # a single completion continues its prompt: a plain sequence
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
    completions_only: bool = False,
) -> Tensor:
    """Compute attention for a packed row.

    Args:
        query: [1, heads, L, d].
        key, value: [1, kv_heads, L, d].
        scale: factor of the scores; None: 1 / sqrt(d).
        completions_only: only completions and the last token of each prompt are needed; other outputs are zeros,
            or what they would be without it.

    Returns:
        [1, heads, L, d], differentiable once.
    """
    if query.device.type != "cpu":
        return flex_group_attention(query, key, value, spans, scale)
    output: Tensor = _GroupAttention.apply(query, key, value, spans, scale, completions_only)  # type: ignore[no-untyped-call]
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
        completions_only: bool,
    ) -> Tensor:
        ctx.parts, ctx.scale = parts(spans, completions_only), scale
        batches, crossings = ctx.parts
        output = torch.zeros_like(query)
        lse = query.new_full(query.shape[:3], -torch.inf, dtype=torch.promote_types(query.dtype, torch.float32))
        for batch in batches:
            queries, keys, values = (_padded(x, batch) for x in (query, key, value))
            own, own_lse = attention_part(queries, keys, values, scale=scale, causal=True)
            _scatter(output, own, batch)
            _scatter(lse, own_lse, batch)
        for crossing in crossings:
            rows, columns = crossing.queries, crossing.keys
            other, other_lse = attention_part(
                query[:, :, rows], key[:, :, columns], value[:, :, columns], scale=scale, causal=False
            )
            output[:, :, rows], lse[:, :, rows] = merge(output[:, :, rows], lse[:, :, rows], other, other_lse)
        ctx.save_for_backward(query, key, value, output, lse)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, lse = ctx.saved_tensors
        (grad,) = grads
        batches, crossings = ctx.parts
        results = tuple(torch.zeros_like(x) for x in (query, key, value))
        for batch in batches:
            by_query = tuple(_padded(x, batch) for x in (grad, query, output, lse))
            gradients = part_backward(
                by_query, _padded(key, batch), _padded(value, batch), scale=ctx.scale, causal=True
            )
            for result, part in zip(results, gradients, strict=True):
                _scatter(result, part, batch)
        for crossing in crossings:
            rows, columns = crossing.queries, crossing.keys
            by_query = tuple(x[:, :, rows] for x in (grad, query, output, lse))
            gradients = part_backward(by_query, key[:, :, columns], value[:, :, columns], scale=ctx.scale, causal=False)
            for result, where, part in zip(results, (rows, columns, columns), gradients, strict=True):
                result[:, :, where] += part
        return *results, None, None, None


def _padded(x: Tensor, batch: Sequence[Segment]) -> Tensor:
    """[1, heads, L, ...] to [N, heads, longest, ...]. Zeros after shorter segments are harmless under causality."""
    if len(batch) == 1:
        return x[:, :, batch[0].start : batch[0].start + batch[0].length]
    longest, ends = batch[0].length, (0, 0) * (x.dim() - 3)
    rows = (x[0, :, segment.start : segment.start + segment.length] for segment in batch)
    return torch.stack([functional.pad(row, (*ends, 0, longest - row.shape[1])) for row in rows])


def _scatter(into: Tensor, rows: Tensor, batch: Sequence[Segment]) -> None:
    """Write rows back to their segments: the inverse of ``_padded``."""
    for row, segment in zip(rows, batch, strict=True):
        into[0, :, segment.start : segment.start + segment.length] = row[:, : segment.length]
