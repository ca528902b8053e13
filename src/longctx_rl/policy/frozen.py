"""Frozen scorers: the teacher, and the policy's own initial weights as reference."""

from typing import Literal

import torch
from torch import Tensor

from longctx_rl.policy.policy import Policy
from longctx_rl.policy.scoring import log_softmax, num_pieces
from longctx_rl.types import HiddenSignal, PackedGroups, SampledSignal, TeacherSignal, TopKSignal

SignalKind = Literal["exact", "topk", "k1", "k2", "k3"]
"""The estimator that the signal is for."""


class FrozenScorer(Policy):
    """A model that is never updated and says, of packed tokens, what an estimator needs."""

    def freeze(self) -> "FrozenScorer":
        """No gradients, no dropout."""
        self.requires_grad_(False)
        self.eval()
        return self

    @torch.no_grad()
    def forward(  # type: ignore[override]
        self, packed: PackedGroups, *, estimator: SignalKind, temperature: float, top_k: int, head: Tensor | None
    ) -> TeacherSignal:
        """The signal for ``estimator``.

        Args:
            top_k: K of ``topk``.
            head: [V, H] whole output weights, handed on with the hidden states; needed by ``exact`` only.

        Raises:
            ValueError: ``exact`` of a model whose head has a bias, which the signal does not carry.
        """
        hidden = self.hidden(packed)
        if estimator == "exact":
            assert head is not None
            if getattr(self.head, "bias", None) is not None:
                raise ValueError(
                    f"the head of {type(self.model).__name__} has a bias, which estimator=exact would leave out: "
                    "set estimator=topk, or choose a teacher without one"
                )
            return HiddenSignal(hidden, head)
        ids, logprobs = [], []
        pieces = packed.score_pieces or num_pieces(packed.num_loss_tokens, self.chunk)
        for part, targets in zip(
            torch.tensor_split(hidden, pieces), torch.tensor_split(packed.target_ids, pieces), strict=True
        ):
            logq = log_softmax(self.head, part, temperature, self.vocabulary)
            if estimator == "topk":
                best = logq.topk(min(top_k, logq.shape[-1]))
                ids.append(best.indices)
                logprobs.append(best.values)
            else:
                logprobs.append(logq.gather(-1, targets[:, None])[:, 0])
        if estimator == "topk":
            return TopKSignal(torch.cat(ids), torch.cat(logprobs))
        return SampledSignal(torch.cat(logprobs))
