"""Signals of an anchor for packed tokens: of the teacher, of the policy's initial weights, of the policy itself."""

from torch import Tensor

from longctx_rl.objective.spec import Estimator
from longctx_rl.policy.policy import Policy, SignalRequest
from longctx_rl.types import PackedGroups, TeacherSignal


class FrozenScorer(Policy):
    """A model that the optimizer never updates and that computes what an estimator needs for packed tokens."""

    def freeze(self) -> "FrozenScorer":
        """Disable gradients and dropout; return self."""
        self.requires_grad_(False)
        self.eval()
        return self

    def forward(  # type: ignore[override]
        self, packed: PackedGroups, *, estimator: Estimator, temperature: float, top_k: int, head: Tensor | None
    ) -> TeacherSignal:
        """Return the signal for ``estimator``; see ``Policy.signal``."""
        return self.signal(packed, temperature, SignalRequest(estimator, top_k, head))
