"""Rows that read their prompts together attend as each would to its prompt and itself."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from longctx_rl.policy.attention.partial import attention_part, part_by_products
from longctx_rl.policy.attention.shared_prompts import RowsOfPrompts, SharedPrompts, attend

WIDTH = 16


@pytest.mark.parametrize("part", [attention_part, part_by_products])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_a_part_and_its_log_sum_exp(part: Callable[..., tuple[Tensor, Tensor]], scale: float | None) -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(3, 2, length, WIDTH) for length in (5, 70, 70))
    bias = torch.zeros(3, 1, 1, 70)
    bias[1, ..., 40:] = torch.finfo(torch.float32).min / 2
    output, lse = part(query, key, value, scale=scale, bias=bias)
    scores = query.double() @ key.double().transpose(2, 3) * (scale or WIDTH**-0.5) + bias
    torch.testing.assert_close(lse.double(), scores.logsumexp(-1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output.double(), scores.softmax(-1) @ value.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-12), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("lens, counts", [((9, 9), (2, 2)), ((40, 7, 0, 33), (1, 4, 2, 3)), ((5,), (6,))])
def test_rows_attend_to_their_prompt_and_themselves(
    lens: tuple[int, ...], counts: tuple[int, ...], kv_heads: int, dtype: torch.dtype, tolerance: float
) -> None:
    torch.manual_seed(0)
    heads, own, batch, longest = 4, 6, sum(counts), max(lens)
    query = torch.randn(batch, heads, 1, WIDTH, dtype=dtype)
    key, value = (torch.randn(batch, kv_heads, own, WIDTH, dtype=dtype) for _ in range(2))
    keys, values = (torch.zeros(len(lens), kv_heads, longest, WIDTH, dtype=dtype) for _ in range(2))
    bias = torch.full((len(lens), 1, 1, longest), torch.finfo(dtype).min / 2, dtype=dtype)
    for number, length in enumerate(lens):
        bias[number, ..., :length] = 0
        for room in (keys, values):
            room[number, :, :length] = torch.randn(kv_heads, length, WIDTH, dtype=dtype)
    rows = RowsOfPrompts.of(counts, torch.device("cpu"))
    prompts = SharedPrompts(keys, values, None if min(lens) == longest else bias, rows)
    found = attend(query, key, value, prompts, None)
    assert found.shape == (batch, 1, heads, WIDTH) and found.dtype == dtype
    owners = [number for number, count in enumerate(counts) for _ in range(count)]
    for row, number in enumerate(owners):
        whole_key = torch.cat([keys[number, :, : lens[number]], key[row]], 1).double()
        whole_value = torch.cat([values[number, :, : lens[number]], value[row]], 1).double()
        for head in range(heads):
            of = head // (heads // kv_heads)
            weights = (whole_key[of] @ query[row, head, 0].double() * WIDTH**-0.5).softmax(0)
            expected = weights @ whole_value[of]
            torch.testing.assert_close(found[row, 0, head].double(), expected, rtol=tolerance, atol=tolerance)
