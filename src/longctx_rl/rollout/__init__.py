"""Rollouts: prompts in, completions with their sampling log-probabilities out."""

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from longctx_rl.types import Completion


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """A prompt and the seeds of its completions.

    Example: ``SampleRequest(prompt_ids, seeds=tuple(sample_seed(0, step, prompt, i) for i in range(8)))``.
    """

    prompt_ids: tuple[int, ...]
    """[P], at least one token."""
    seeds: tuple[int, ...]
    """[G], one per completion. Requests with the same prompt and seed get the same completion."""
    prefix_len: int = 0
    """Number of leading tokens that other requests of the same call may share, such as a document. A shared prefix is
    computed once."""
    max_new_tokens: int | None = None
    """Length limit of the completions, below the sampler's; None: the sampler's."""


class RolloutFailed(ValueError):
    """A server gives no completions, not those of the policy, or no signals of a teacher. The message says why, and
    what to do."""


class Sampler(Protocol):
    """Samples completions from one policy, always with its current weights."""

    def sample(self, requests: Sequence[SampleRequest]) -> list[tuple[Completion, ...]]:
        """Return the completions of each request, in the order of the requests and of their seeds.

        A completion depends only on its prompt, its seed and the weights: not on the other requests, their order or the
        number of ranks. All ranks make the same number of calls; their requests may differ in content and number, and a
        rank may have none. Raises RolloutFailed on all ranks.
        """


def sample_seed(run_seed: int, step: int, prompt_index: int, sample_index: int) -> int:
    """Return a 63-bit seed that is the same on every machine, in every process and after every resume.

    Args:
        prompt_index: index of the prompt among those of all ranks, so that the number of ranks does not matter.
        sample_index: index of the completion in its group.
    """
    packed = struct.pack("<4q", run_seed, step, prompt_index, sample_index)
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "little") >> 1
