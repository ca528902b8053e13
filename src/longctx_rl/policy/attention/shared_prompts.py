"""Decoding against shared prompts: each is stored once and read once per step for all of its rows.

A decoding step is bound by memory bandwidth: one query per row reads every key and value of the row's prompt. Here the
rows of one prompt are queries of one attention, so the prompt is stored once and read once for all of them (Hydragen,
Juravsky et al., arXiv 2402.05099). A second attention covers each row's own tokens so far, and the two are merged by
their log-sum-exps: exact up to rounding.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from longctx_rl.policy.attention.partial import attention_part, merge


@dataclass(frozen=True, slots=True)
class RowsOfPrompts:
    """Which rows of a decode batch continue which prompt; rows of one prompt are adjacent."""

    counts: tuple[int, ...]
    """[N] number of rows of each prompt, at least one."""
    rows: Tensor
    """[N * most] row in each place; a prompt has ``most`` places, and those beyond its count repeat its last row."""
    places: Tensor
    """[B] place of each row."""

    @classmethod
    def of(cls, counts: Sequence[int], device: torch.device) -> "RowsOfPrompts":
        most = max(counts)
        rows, places, start = [], [], 0
        for number, count in enumerate(counts):
            rows += [start + min(place, count - 1) for place in range(most)]
            places += [number * most + place for place in range(count)]
            start += count
        return cls(tuple(counts), torch.tensor(rows, device=device), torch.tensor(places, device=device))


@dataclass(frozen=True, slots=True)
class SharedPrompts:
    """Keys and values of N prompts in one layer, and which rows read them."""

    keys: Tensor
    """[N, kv_heads, P, d]; prompts shorter than P are padded at the end."""
    values: Tensor
    """[N, kv_heads, P, d]"""
    bias: Tensor | None
    """[N, 1, 1, P] added to the scores: very negative after a prompt's end. None: all prompts have P tokens."""
    rows: RowsOfPrompts


def attend(query: Tensor, key: Tensor, value: Tensor, prompts: SharedPrompts, scale: float | None) -> Tensor:
    """Compute attention of each row's next token to the row's prompt and to its own tokens.

    Args:
        query: [B, heads, 1, d].
        key, value: [B, kv_heads, S, d] of the rows' own tokens, the next one included.

    Returns:
        [B, 1, heads, d].
    """
    batch, heads, _, width = query.shape
    count, kv_heads = prompts.keys.shape[:2]
    same = heads // kv_heads
    grouped = query.reshape(batch, kv_heads, same, width)
    own, own_lse = attention_part(grouped, key, value, scale=scale)
    # [B, kv, same, d] -> [N, kv, rows of a prompt * same, d]: rows and heads that read the same keys become queries.
    placed = grouped[prompts.rows.rows].view(count, -1, kv_heads, same, width).transpose(1, 2).flatten(2, 3)
    parts = attention_part(placed, prompts.keys, prompts.values, scale=scale, bias=prompts.bias)
    shared, shared_lse = (
        x.reshape(count, kv_heads, -1, same, *x.shape[3:]).transpose(1, 2).flatten(0, 1)[prompts.rows.places]
        for x in parts
    )
    return merge(own, own_lse, shared, shared_lse)[0].reshape(batch, 1, heads, width)


_PROMPTS: ContextVar[Sequence[SharedPrompts] | None] = ContextVar("shared prompts of each layer", default=None)


@contextmanager
def reading(prompts: Sequence[SharedPrompts]) -> Iterator[None]:
    """Within this context, layer i of a model decodes against ``prompts[i]``; empty: rows have no prompt."""
    token = _PROMPTS.set(prompts or None)
    try:
        yield
    finally:
        _PROMPTS.reset(token)


def prompts_of(module: nn.Module) -> SharedPrompts | None:
    """Return the shared prompts that this attention module reads, or None outside of ``reading``."""
    prompts = _PROMPTS.get()
    if prompts is None:
        return None
    index = module.layer_idx
    assert isinstance(index, int)
    return prompts[index]
