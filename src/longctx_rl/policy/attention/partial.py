"""Attention over some of the keys, and how such parts are merged into attention over all of them.

A part is its output and the log-sum-exp of its scores. Merging two parts is exact up to rounding, and so is the
gradient of each: flash attention's backward pass recomputes the attention weights from the log-sum-exp, so given the
*merged* output and log-sum-exp, they are the weights of the softmax over all keys.
"""

import torch
from torch import Tensor


def attention_part(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float | None, causal: bool = False, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Compute attention, and the log-sum-exp of its scores.

    Args:
        query: [N, heads, M, d].
        key, value: [N, kv_heads, S, d].
        scale: factor of the scores; None: 1 / sqrt(d).
        causal: query i attends to keys 0 to i.
        bias: [N, 1, 1, S], added to the scores; requires kv_heads == heads.

    Returns:
        Output [N, heads, M, d], and log-sum-exp [N, heads, M] in float32 or wider.
    """
    shape = query.shape
    if query.device.type != "cpu":
        assert not causal and key.shape[1] == shape[1]
        return part_by_products(query, key, value, scale=scale, bias=bias)
    if bias is not None:
        bias = bias.expand(-1, -1, shape[2], -1)
    query, key, value = _grouped(query, key, value)
    # What scaled_dot_product_attention calls on a CPU; only this operator returns the log-sum-exp.
    output, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, is_causal=causal, attn_mask=bias, scale=scale
    )
    return output.reshape(shape), lse.reshape(shape[:3])


def part_by_products(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float | None, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """``attention_part`` without a kernel that returns the log-sum-exp: all scores, of few queries, are in memory."""
    if query.is_cuda and query.element_size() == 2:  # scores must not be rounded to 16 bits before the softmax
        scores = torch.bmm(query.flatten(0, 1), key.flatten(0, 1).transpose(1, 2), out_dtype=torch.float32)
        scores = scores.view(*query.shape[:3], -1)
    else:
        scores = (query @ key.transpose(2, 3)).float()
    scores = scores * (scale or query.shape[3] ** -0.5)
    if bias is not None:
        scores = scores + bias
    lse = scores.logsumexp(3)
    return (scores - lse[..., None]).exp().to(value.dtype) @ value, lse


def merge(output: Tensor, lse: Tensor, other: Tensor, other_lse: Tensor) -> tuple[Tensor, Tensor]:
    """Merge outputs [..., d] and log-sum-exps [...] of attention over two disjoint sets of keys."""
    weight = torch.sigmoid(other_lse - lse)[..., None]
    merged = torch.lerp(output.to(lse.dtype), other.to(lse.dtype), weight).to(output.dtype)
    return merged, torch.logaddexp(lse, other_lse)


def part_backward(
    by_query: tuple[Tensor, ...], key: Tensor, value: Tensor, *, scale: float | None, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of query, key and value of one part, on a CPU.

    Args:
        by_query: gradient of the merged output, query, merged output, merged log-sum-exp.
    """
    kv_heads = key.shape[1]
    grad, query, output, lse = (_by_kv_head(x, kv_heads) for x in by_query)
    _, keys, values = _grouped(by_query[1], key, value)
    of_query, of_key, of_value = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad, query, keys, values, output, lse.contiguous(), 0.0, causal, scale=scale
    )
    if by_query[1].shape[1] != kv_heads:  # heads that share keys and values
        of_key, of_value = of_key.sum(1), of_value.sum(1)
    return of_query.reshape(by_query[1].shape), of_key.reshape(key.shape), of_value.reshape(value.shape)


def _by_kv_head(x: Tensor, kv_heads: int) -> Tensor:
    """[N, heads, ...] to [N * kv_heads, heads / kv_heads, ...]; unchanged if each head has its own keys."""
    return x if x.shape[1] == kv_heads else x.reshape(x.shape[0] * kv_heads, -1, *x.shape[2:])


def _grouped(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Move key-value heads into the batch, each with the query heads that share it: nothing is copied."""
    kv_heads = key.shape[1]
    if query.shape[1] == kv_heads:
        return query, key, value
    query = _by_kv_head(query, kv_heads)
    key, value = (x.reshape(-1, 1, *x.shape[2:]).expand(-1, query.shape[1], -1, -1) for x in (key, value))
    return query, key, value
