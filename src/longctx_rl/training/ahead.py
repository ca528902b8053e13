"""Rollouts of the next step, drawn on the servers while this step trains (``rollout.ahead=1``).

Step k trains on completions that were drawn with the weights before update k - 1, so the policy is one update further
than the sampler, and ``algo.importance_cap`` corrects for it. Checkpoints hold the completions that are drawn but not
trained on, so that a resumed run trains on the same tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch

from longctx_rl.config.schema import Config
from longctx_rl.data.packing import pack
from longctx_rl.engine import Engine, distributed
from longctx_rl.rollout import RolloutFailed, SampleRequest
from longctx_rl.rollout.agreement import EXAMPLE
from longctx_rl.rollout.vllm import VllmSampler
from longctx_rl.types import Completion, RolloutGroup

PROBED_PROMPT, PROBED_TOKENS = 512, 16
"""Longest prompt and completion of the probe."""
Group = tuple[Completion, ...]


class Ahead:
    """The completions of the next step, or those that are being drawn. All ranks call its methods together."""

    def __init__(self, sampler: VllmSampler, engine: Engine, config: Config) -> None:
        self._sampler, self._engine, self._config = sampler, engine, config
        self._drawn: dict[int, Group] = {}
        self._wait: Callable[[], dict[int, Group]] | None = None

    def sample(self, now: Sequence[SampleRequest], then: Sequence[SampleRequest] | None, step: int) -> list[Group]:
        """Return the completions of ``now``, which were drawn ahead if possible, and start to draw those of ``then``.

        Args:
            now, then: this rank's requests of this step and of the next one, each with seeds of its own; None on all
                ranks if there is no next step.
            step: number of steps taken so far, which completions carry as their policy's version.

        Raises:
            RolloutFailed: on every rank, if the servers fail or do not have the policy's weights.
        """
        self._finish()
        if distributed.any_rank(any(request.seeds[0] not in self._drawn for request in now)):
            self._start(now, step)
            self._finish()
        groups = [self._drawn[request.seeds[0]] for request in now]
        if then is None:
            self._drawn = {}
        else:
            self._start(then, step)
            self._probe(then)
        return groups

    def state(self) -> list[dict[str, Any]]:
        """Wait for the completions and return those of all ranks as plain data."""
        self._finish()
        return distributed.gather(
            [{"seed": seed, "group": list(map(asdict, group))} for seed, group in self._drawn.items()]
        )

    def restore(self, state: Sequence[dict[str, Any]]) -> None:
        """Continue with what ``state`` returned, on any number of ranks."""
        self._drawn = {kept["seed"]: tuple(map(_completion, kept["group"])) for kept in state}

    def _start(self, requests: Sequence[SampleRequest], step: int) -> None:
        wait = self._sampler.start(requests)

        def completions() -> dict[int, Group]:
            return {
                request.seeds[0]: tuple(replace(completion, policy_version=step) for completion in group)
                for request, group in zip(requests, wait(), strict=True)
            }

        self._wait = completions

    def _finish(self) -> None:
        wait, self._wait = self._wait, None
        if wait is not None:
            self._drawn = wait()

    def _probe(self, requests: Sequence[SampleRequest]) -> None:
        """Compare the servers with the policy, while their weights are the same, on a short completion of each rank.

        Later, differences are also those of the update between them.
        """
        (ids, seeds), *_ = [*((each.prompt_ids, each.seeds) for each in requests), ((0,), (0,))]
        request = SampleRequest(ids[-PROBED_PROMPT:], seeds[:1], max_new_tokens=PROBED_TOKENS)
        ((completion,),) = self._sampler.sample([request])
        row = pack([RolloutGroup(EXAMPLE, request.prompt_ids, (completion,))], self._engine.device)
        with torch.no_grad():
            own = self._engine.forward(row, temperature=self._config.rollout.temperature).logprobs
        drawn = own.new_tensor(completion.sampler_logprobs)
        gap = distributed.all_reduce_max({"gap": float((own - drawn).abs().mean())})["gap"]
        check_gap(gap, self._config.largest_gap)


def _completion(saved: dict[str, Any]) -> Completion:
    lists = {name: tuple(value) for name, value in saved.items() if isinstance(value, list)}
    return Completion(**{**saved, **lists})


def check_gap(gap: float, largest: float) -> None:
    """Raise RolloutFailed if tokens were drawn with other probabilities than the policy's, by more than rounding.

    Args:
        gap: mean absolute difference of their log-probabilities, in nats.
    """
    if not gap <= largest:
        raise RolloutFailed(
            f"the server's log-probabilities differ from the policy's by {gap:.2g} nats a token, more than "
            f"{largest:g} (rollout.max_gap): it has other weights, another dtype, or was started without "
            "--logprobs-mode processed_logprobs"
        )
