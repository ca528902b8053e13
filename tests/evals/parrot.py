"""Stand-ins for a sampler and an engine, for evaluations that need no model's answers."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel

from longctx_rl.rollout import SampleRequest
from longctx_rl.types import Completion
from packed_builders import tiny_model


class Parrot:
    """A sampler that answers every prompt with the same text."""

    def __init__(self) -> None:
        self.text = "no idea"

    def sample(self, model: PreTrainedModel, requests: Sequence[SampleRequest]) -> list[tuple[Completion, ...]]:
        return [(Completion((1,), self.text, "stop"),) for _ in requests]


class Engine:
    """The part of an engine that an evaluation uses."""

    @contextmanager
    def full_weights(self) -> Iterator[nn.Module]:
        policy = nn.Module()
        policy.model = tiny_model(dtype=torch.float32)
        yield policy
