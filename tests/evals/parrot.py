"""A stand-in for a sampler, for evaluations that need no model's answers."""

from collections.abc import Sequence

from longctx_rl.rollout import SampleRequest
from longctx_rl.types import Completion


class Parrot:
    """A sampler that answers every prompt with the same text."""

    def __init__(self) -> None:
        self.text = "no idea"

    def sample(self, requests: Sequence[SampleRequest]) -> list[tuple[Completion, ...]]:
        return [(Completion((1,), self.text, "stop"),) for _ in requests]
