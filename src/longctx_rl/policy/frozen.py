"""Frozen scorers: the teacher, and the policy's initial weights as reference."""

import torch
from torch import Tensor

from longctx_rl.objective.spec import Estimator
from longctx_rl.policy.policy import Policy
from longctx_rl.policy.scoring import log_softmax, num_pieces
from longctx_rl.types import HiddenSignal, PackedGroups, SampledSignal, TeacherSignal, TopKSignal


class FrozenScorer(Policy):
    """A model that is never updated and computes what an estimator needs for packed tokens."""

    def freeze(self) -> "FrozenScorer":
        """Disable gradients and dropout; return self."""
        self.requires_grad_(False)
        self.eval()
        return self

    @torch.no_grad()
    def forward(  # type: ignore[override]
        self, packed: PackedGroups, *, estimator: Estimator, temperature: float, top_k: int, head: Tensor | None
    ) -> TeacherSignal:
        """Return the signal for ``estimator``.

        Args:
            estimator: ``exact`` returns hidden states and head, ``topk`` ids and log-probabilities of the K most
                likely tokens, ``k1``, ``k2`` and ``k3`` the log-probability of each target token.
            temperature: divides the logits in every log-probability.
            top_k: K of ``topk``.
            head: [V, H] full output weights, passed through with the hidden states; used by ``exact`` only.

        Raises:
            ValueError: ``exact``, and the model's head has a bias, which the signal does not carry.
        """
        hidden = self.hidden(packed)
        if estimator == "exact":
            assert head is not None
            if getattr(self.head, "bias", None) is not None:
                raise ValueError(
                    f"the head of {type(self.model).__name__} has a bias, which estimator=exact would ignore: "
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
