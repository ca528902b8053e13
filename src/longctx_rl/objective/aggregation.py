"""Token weights: how a sum over tokens is normalised.

Every count is global: over micro-batches, gradient accumulation steps and ranks.
"""

import torch
from torch import Tensor

from longctx_rl.objective.spec import Aggregate
from longctx_rl.types import Denominators


def token_weights(
    sequence_ids: Tensor,
    sequence_lens: Tensor,
    *,
    aggregate: Aggregate,
    denominators: Denominators,
    max_length: int,
) -> Tensor:
    """Return each loss token's weight: the loss is ``(weights * term).sum()``, summed over micro-batches and ranks.

    ``sequence`` is 1/S sum_i 1/|o_i| sum_t (GRPO, arXiv 2402.03300, and dGRPO, arXiv 2605.12227); ``token`` is
    1/sum_i |o_i| (DAPO, arXiv 2503.14476); ``constant`` is 1/(S max_length) (Dr. GRPO, arXiv 2503.20783).

    Args:
        sequence_ids: [T] index of each loss token's sequence.
        sequence_lens: [S] number of loss tokens in each sequence.
        denominators: global counts, not those of this micro-batch.
        max_length: the constant length of ``constant``, in tokens.

    Returns:
        [T] float32.
    """
    if aggregate == "sequence":
        per_sequence = 1.0 / (denominators.num_sequences * sequence_lens.clamp(min=1).to(torch.float32))
        return per_sequence[sequence_ids]
    total = denominators.num_tokens if aggregate == "token" else denominators.num_sequences * max_length
    return torch.full(sequence_ids.shape, 1.0 / total, dtype=torch.float32, device=sequence_ids.device)
