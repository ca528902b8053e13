"""What a sum over tokens is divided by. Every count is global: over micro-batches, accumulation steps and ranks."""

from typing import Literal

import torch
from torch import Tensor

from longctx_rl.types import Denominators

Aggregate = Literal["sequence", "token", "constant"]


def token_weights(
    sequence_ids: Tensor,
    sequence_lens: Tensor,
    *,
    aggregate: Aggregate,
    denominators: Denominators,
    max_length: int,
) -> Tensor:
    """Weight of each loss token, so that the loss is ``(weights * term).sum()`` summed over micro-batches and ranks.

    ``sequence`` is 1/S sum_i 1/|o_i| sum_t (GRPO, arXiv 2402.03300, and dGRPO, arXiv 2605.12227); ``token`` is
    1/sum_i |o_i| (DAPO, arXiv 2503.14476); ``constant`` is 1/(S max_length) (Dr. GRPO, arXiv 2503.20783).

    Args:
        sequence_ids: [T] sequence of each loss token.
        sequence_lens: [S] loss tokens of each sequence.
        denominators: global counts, not those of this micro-batch.
        max_length: tokens; the constant length of ``constant``.

    Returns:
        [T] float32.
    """
    if aggregate == "sequence":
        per_sequence = 1.0 / (denominators.num_sequences * sequence_lens.clamp(min=1).to(torch.float32))
        return per_sequence[sequence_ids]
    total = denominators.num_tokens if aggregate == "token" else denominators.num_sequences * max_length
    return torch.full(sequence_ids.shape, 1.0 / total, dtype=torch.float32, device=sequence_ids.device)
