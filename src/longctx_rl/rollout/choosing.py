"""What ``generate`` asks at each step: which token comes next, and whether to stop."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteria


class TokenDraw(LogitsProcessor):
    """Chooses each sequence's next token, records its log-probability, and leaves ``generate`` no other choice."""

    def __init__(self, uniforms: Tensor | None, temperature: float, vocabulary: int | None) -> None:
        self.uniforms = uniforms  # [B, max_new_tokens]; None: the most likely token
        self.temperature = temperature or 1.0
        self.vocabulary = vocabulary
        self.logprobs: list[Tensor] = []  # [B] per step

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """[B, V] logits to [B, V] scores that are zero at the chosen token and -inf elsewhere."""
        logprobs = torch.log_softmax(scores[:, : self.vocabulary].float() / self.temperature, -1)
        if self.uniforms is None:
            token = logprobs.argmax(-1, keepdim=True)
        else:
            step = len(self.logprobs)
            cumulative = logprobs.double().exp().cumsum(-1)
            # A uniform number is at most 1 - 2^-53, so the product stays below the total; nan alone needs the clamp.
            point = self.uniforms[:, step : step + 1] * cumulative[:, -1:]
            token = torch.searchsorted(cumulative, point, right=True).clamp_(max=logprobs.shape[1] - 1)
        self.logprobs.append(logprobs.gather(1, token)[:, 0])
        return torch.full_like(logprobs, -torch.inf).scatter_(1, token, 0.0)


class HalfEnded(StoppingCriteria):
    """Stops ``generate`` once half of its sequences have ended, so that they can leave the batch.

    Args:
        eos_ids: tokens that end a sequence.
        limits: [B] tokens after which each sequence ends without one.
    """

    def __init__(self, eos_ids: Sequence[int], limits: Tensor) -> None:
        self.eos_ids, self.limits = eos_ids, limits
        self.steps = 0
        self.ended: Tensor | None = None  # [B]

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:
        """[B] boolean, all alike."""
        self.steps += 1
        ends = torch.isin(input_ids[:, -1], torch.tensor(self.eos_ids, device=input_ids.device))
        ends |= self.limits <= self.steps
        self.ended = ends if self.ended is None else self.ended | ends
        return (2 * self.ended.sum() >= len(self.ended)).expand(len(self.ended))
