"""Attention of a packed row on a GPU: FlexAttention, whose block mask skips blocks in which no token may attend.

The kernel is compiled once per shape; rows are padded to a few lengths, so that shapes recur. The mask is built once
per row and serves all layers of policy and teacher. Neither kernel nor mask allocates anything of size L x L.
"""

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.nn.functional import pad

from longctx_rl.types import GroupSpan

BLOCK = 128
"""Side of a mask block, in tokens."""


def flex_group_attention(
    query: Tensor, key: Tensor, value: Tensor, spans: tuple[GroupSpan, ...], scale: float | None
) -> Tensor:
    """Compute attention for a packed row. See ``group_attention``."""
    length = query.shape[2]
    padded = padded_length(length)
    mask = block_mask(spans, padded, query.device)
    query, key, value = (pad(x, (0, 0, 0, padded - length)) for x in (query, key, value))
    grouped = query.shape[1] != key.shape[1]
    output: Tensor = _kernel(query.device.type)(query, key, value, block_mask=mask, scale=scale, enable_gqa=grouped)
    return output[:, :, :length]


def padded_length(length: int) -> int:
    """Round a length up to one of a few, all multiples of a block: at most an eighth, or one block, is added."""
    step = max(BLOCK, 1 << max(0, (length - 1).bit_length() - 4))
    return -(-max(length, 1) // step) * step


@lru_cache(maxsize=8)
def block_mask(spans: tuple[GroupSpan, ...], padded: int, device: torch.device) -> BlockMask:
    """Return the mask of which token may attend to which, for a row of these groups and the padding after them."""
    groups = torch.full((padded,), -1, device=device)
    segments = torch.zeros(padded, dtype=torch.int64, device=device)
    for number, span in enumerate(spans):
        groups[span.start : span.end] = number
        start = span.completions_start
        for segment, size in enumerate(span.completion_lens, 1):
            segments[start : start + size] = segment
            start += size

    def allowed(batch: Tensor, head: Tensor, asking: Tensor, read: Tensor) -> Tensor:
        own = segments[asking] == segments[read]
        return (read <= asking) & (groups[asking] == groups[read]) & (own | (segments[read] == 0))

    mask: BlockMask = _compiled(create_block_mask, device.type)(
        allowed, None, None, padded, padded, device=device, BLOCK_SIZE=BLOCK
    )
    return mask


def _kernel(device_type: str) -> Callable[..., Any]:
    return _compiled(flex_attention, device_type)


@cache
def _compiled(function: Callable[..., Any], device_type: str) -> Callable[..., Any]:
    """Compile a function for a GPU. On a CPU, which only tests use, it stays uncompiled and has no gradient."""
    if device_type == "cpu":
        return function
    # One compilation per length, grad mode and head count. Beyond its limit, dynamo would fall back to the uncompiled
    # reference, which allocates all scores; fullgraph makes that an error.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 256)
    return torch.compile(function, dynamic=False, fullgraph=True)
