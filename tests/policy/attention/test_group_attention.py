"""Attention of packed rows against a naive masked softmax in float64."""

import pytest
import torch
from torch import Tensor

from longctx_rl.policy.attention.flex import flex_group_attention, padded_length
from longctx_rl.policy.attention.group import MAX_PADDING, group_attention, parts
from longctx_rl.policy.attention.partial import attention_part
from longctx_rl.types import GroupSpan

WIDTH = 8

ROWS = {
    "one group": [(9, (4, 7, 2))],
    "several groups": [(9, (4, 7, 2)), (3, (5,)), (12, (1, 6))],
    "plain sequences": [(8, (4,)), (9, (5,)), (1, (3,)), (70, (6,))],
    "prompts alone, and none": [(6, ()), (0, (5,)), (0, (3, 4)), (7, (0, 3)), (5, (2, 0, 2))],
    "longer than a kernel's block": [(600, (40, 300, 3, 45)), (90, (33, 64))],
}
rows = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())


def spans_of(row: list[tuple[int, tuple[int, ...]]]) -> tuple[GroupSpan, ...]:
    spans, start = [], 0
    for prompt, lens in row:
        spans.append(GroupSpan(start, prompt, lens))
        start = spans[-1].end
    return tuple(spans)


def inputs(spans: tuple[GroupSpan, ...], kv_heads: int, dtype: torch.dtype) -> list[Tensor]:
    """Query, key and value as a model hands them over: [1, heads, L, d] views of [1, L, heads, d]."""
    torch.manual_seed(0)
    return [
        torch.randn(1, spans[-1].end, heads, WIDTH, dtype=dtype).transpose(1, 2).requires_grad_()
        for heads in (4, kv_heads, kv_heads)
    ]


def naive(query: Tensor, key: Tensor, value: Tensor, spans: tuple[GroupSpan, ...], scale: float | None) -> Tensor:
    """One softmax under one mask, from the definition: token by token."""
    allowed = torch.zeros(query.shape[2], query.shape[2], dtype=torch.bool)
    for span in spans:
        start = span.completions_start
        for length in (None, *span.completion_lens):
            first, last = (span.start, start) if length is None else (start, start + length)
            for token in range(first, last):
                allowed[token, span.start : span.completions_start] = length is not None
                allowed[token, first : token + 1] = True
            start = last
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    scores = query @ key.transpose(2, 3) * (scale or query.shape[3] ** -0.5)
    return scores.masked_fill(~allowed, -torch.inf).softmax(-1) @ value


@rows
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize(
    "dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)], ids=str
)
def test_output_and_gradient(
    row: list[tuple[int, tuple[int, ...]]], kv_heads: int, dtype: torch.dtype, tolerance: float
) -> None:
    spans = spans_of(row)
    ours = inputs(spans, kv_heads, dtype)
    theirs = [x.detach().double().requires_grad_() for x in ours]
    output, expected = group_attention(*ours, spans, 0.4), naive(*theirs, spans, 0.4)
    assert output.dtype == dtype
    weights = torch.randn(expected.shape, dtype=torch.float64)
    found = torch.autograd.grad(output, ours, weights.to(dtype))
    wanted = torch.autograd.grad(expected, theirs, weights.to(dtype).double())
    for one, other in zip((output, *found), (expected, *wanted), strict=True):
        assert (one.double() - other).abs().max() <= tolerance * other.abs().max()


@rows
@pytest.mark.parametrize("kv_heads", [2, 4])
def test_where_prompts_are_read_at_their_end_alone(row: list[tuple[int, tuple[int, ...]]], kv_heads: int) -> None:
    spans = spans_of(row)
    ours = inputs(spans, kv_heads, torch.float64)
    theirs = [x.detach().requires_grad_() for x in ours]
    read = torch.zeros(spans[-1].end, dtype=torch.bool)
    for span in spans:
        read[max(span.start, span.completions_start - 1) : span.end] = True
    weights = torch.randn(1, 4, spans[-1].end, WIDTH, dtype=torch.float64) * read[:, None]
    output, expected = group_attention(*ours, spans, None, completions_only=True), naive(*theirs, spans, None)
    torch.testing.assert_close(output[:, :, read], expected[:, :, read], rtol=1e-10, atol=1e-10)
    found, wanted = torch.autograd.grad(output, ours, weights), torch.autograd.grad(expected, theirs, weights)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


@rows
@pytest.mark.parametrize("kv_heads", [2, 4])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_has_the_same_mask(row: list[tuple[int, tuple[int, ...]]], kv_heads: int) -> None:
    """Uncompiled, forward only: what a CPU can show of it."""
    spans = spans_of(row)
    query, key, value = (x.detach() for x in inputs(spans, kv_heads, torch.float32))
    expected = naive(query.double(), key.double(), value.double(), spans, None)
    found = flex_group_attention(query, key, value, spans, None)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_padded_lengths_are_few_and_near() -> None:
    lengths = range(1, 70_000, 37)
    found = [padded_length(length) for length in lengths]
    assert all(
        padded % 128 == 0 and 0 <= padded - length <= max(127, length / 8)
        for length, padded in zip(lengths, found, strict=True)
    )
    assert len(set(found)) < 80


def test_no_pair_of_tokens_is_computed_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A group's completions ask its prompt once, in one call, and their own tokens in few."""
    calls: list[tuple[int, int, int, bool]] = []

    def watched(query: Tensor, key: Tensor, value: Tensor, *, scale: float | None, causal: bool) -> tuple[Tensor, ...]:
        calls.append((query.shape[0], query.shape[2], key.shape[2], causal))
        return attention_part(query, key, value, scale=scale, causal=causal)

    monkeypatch.setattr("longctx_rl.policy.attention.group.attention_part", watched)
    spans = spans_of([(200, (20, 24, 30, 22))])
    group_attention(*inputs(spans, 2, torch.float32), spans, None)
    assert calls == [(1, 200, 200, True), (4, 30, 30, True), (1, 96, 200, False)]
    calls.clear()
    group_attention(*inputs(spans, 2, torch.float32), spans, None, completions_only=True)
    assert calls == [(4, 30, 30, True), (1, 97, 200, False)]


def test_segments_are_batched_unless_padding_is_wasteful() -> None:
    batches, crossings = parts(spans_of([(8, (4,)), (9, (5,)), (70, (6,)), (30, (9, 2, 14))]))
    assert [[segment.length for segment in batch] for batch in batches] == [[76], [30], [14, 14, 12], [9], [2]]
    assert all(batch[0].length <= MAX_PADDING * batch[-1].length for batch in batches)
    assert [(crossing.keys, crossing.queries) for crossing in crossings] == [(slice(102, 132), slice(132, 157))]
