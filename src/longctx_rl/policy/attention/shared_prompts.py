"""Decoding against prompts that are kept once: each is read by all of its rows together.

A step of decoding is bound by memory: one query per row reads every key and value of the row's prompt. Rows of one
prompt are queries of one attention here, so the prompt is read once for all of them, and kept once (Hydragen, Juravsky
et al., arXiv 2402.05099). What a row attends to beside its prompt, its own tokens so far, is a second attention, and
the two are merged by their log-sum-exps: exact up to rounding.
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
    """Which rows of a decode batch continue which prompt, rows of one prompt side by side."""

    counts: tuple[int, ...]
    """[N], rows of each prompt, at least one."""
    rows: Tensor
    """[N * most] row in each of a prompt's places. Places beyond a prompt's count repeat one of its rows."""
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
    """[N, kv_heads, P, d], each prompt's at the front."""
    values: Tensor
    """[N, kv_heads, P, d]"""
    bias: Tensor | None
    """[N, 1, 1, P] added to the scores: very negative behind a prompt's end. None: all prompts have P tokens."""
    rows: RowsOfPrompts


def attend(query: Tensor, key: Tensor, value: Tensor, prompts: SharedPrompts, scale: float | None) -> Tensor:
    """Each row's next token attends to the row's prompt and to the row's own tokens.

    Args:
        query: [B, heads, 1, d].
        key, value: [B, kv_heads, S, d], the rows' own tokens, this one included.

    Returns:
        [B, 1, heads, d].
    """
    batch, heads, _, width = query.shape
    count, kv_heads = prompts.keys.shape[:2]
    same = heads // kv_heads
    grouped = query.reshape(batch, kv_heads, same, width)
    own, own_lse = attention_part(grouped, key, value, scale=scale)
    # [B, kv, same, d] -> [N, kv, rows of a prompt * same, d]: rows and heads that read the same keys are queries alike.
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
    """Within: attention layer i of a model decodes against ``prompts[i]``. None given: rows have no prompt."""
    token = _PROMPTS.set(prompts or None)
    try:
        yield
    finally:
        _PROMPTS.reset(token)


def prompts_of(module: nn.Module) -> SharedPrompts | None:
    """What the attention of this module reads beside its cache."""
    prompts = _PROMPTS.get()
    if prompts is None:
        return None
    index = module.layer_idx
    assert isinstance(index, int)
    return prompts[index]
