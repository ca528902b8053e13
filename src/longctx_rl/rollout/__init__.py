"""Rollouts: prompts in, completions with their sampling log-probabilities out."""

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from transformers import PreTrainedModel

from longctx_rl.types import Completion


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """One prompt, and how many completions of it are wanted.

    Example: ``SampleRequest(prompt_ids, seeds=tuple(sample_seed(0, step, prompt, i) for i in range(8)))``.
    """

    prompt_ids: tuple[int, ...]
    """[P], at least one token."""
    seeds: tuple[int, ...]
    """[G], one per completion. Two requests with the same prompt and seed get the same completion."""
    prefix_len: int = 0
    """Leading tokens that other requests of the same call may share (a document): computed once for all of them."""
    max_new_tokens: int | None = None
    """Length limit of its completions, below the sampler's; None: the sampler's."""


class Sampler(Protocol):
    """Draws completions from a model."""

    def sample(self, model: PreTrainedModel, requests: Sequence[SampleRequest]) -> list[tuple[Completion, ...]]:
        """Completions of each request, in the order of the requests and of their seeds.

        A completion depends on its prompt, its seed and the weights alone: not on the other requests, their order or
        the number of ranks. With several ranks every rank makes the same number of calls; the requests, and their
        number, may differ and may be none.
        """


def sample_seed(run_seed: int, step: int, prompt_index: int, sample_index: int) -> int:
    """A 63-bit seed that is the same on every machine, in every process and after every resume.

    Args:
        prompt_index: the prompt's place among those of all ranks, so that sharding does not matter.
        sample_index: the completion's place in its group.
    """
    packed = struct.pack("<4q", run_seed, step, prompt_index, sample_index)
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "little") >> 1
