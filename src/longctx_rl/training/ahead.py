"""Rollouts of the next step, drawn on the servers while this step trains (``rollout.ahead=1``).

Step k trains on completions that were drawn with the weights before step k - 1, so the policy is one step further than
the sampler, and ``algo.importance_cap`` corrects for it. Checkpoints hold the completions that are drawn but not
trained on, so that a resumed run trains on the same tokens.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

import torch

from longctx_rl.config.schema import Config
from longctx_rl.data.packing import pack
from longctx_rl.engine import Engine, distributed
from longctx_rl.policy.scoring import num_pieces
from longctx_rl.rollout import RolloutFailed, SampleRequest, agreement
from longctx_rl.rollout.vllm import VllmSampler
from longctx_rl.types import Completion, RolloutGroup

PROBED_PROMPT, PROBED_TOKENS = 512, 16
"""Longest prompt and completion of the probe."""
Group = tuple[Completion, ...]


class Ahead:
    """The completions of the next step, or those that are being drawn. All ranks call its methods together."""

    def __init__(self, sampler: VllmSampler, engine: Engine, config: Config) -> None:
        self._sampler, self._engine, self._config = sampler, engine, config
        self._step = -1
        self._now: dict[int, Group] = {}
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
        self.finish()
        if distributed.any_rank(any(request.seeds[0] not in self._drawn for request in now)):
            self._start(now, step)
            self.finish()
        self._step = step
        self._now = {request.seeds[0]: self._drawn[request.seeds[0]] for request in now}
        self._drawn = {}
        if then is not None:
            self._start(then, step)
            self._probe(then)
        return list(self._now.values())

    def finish(self) -> None:
        """Wait for the completions that are being drawn, so that the servers can get other weights.

        Raises:
            RolloutFailed: on every rank, if a server fails; the completions are lost then.
        """
        wait, self._wait = self._wait, None
        if wait is not None:
            self._drawn = wait()

    def state(self, steps: int) -> list[dict[str, Any]]:
        """Return all completions that are not trained on yet as plain data, those of all ranks.

        Waits for those that are being drawn, and does without them if a server fails.

        Args:
            steps: number of steps taken; the current step's completions are trained on if it is complete.
        """
        with suppress(RolloutFailed):
            self.finish()
        kept = (self._now if steps == self._step else {}) | self._drawn
        return distributed.gather([{"seed": seed, "group": list(map(asdict, group))} for seed, group in kept.items()])

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

    def _probe(self, requests: Sequence[SampleRequest]) -> None:
        """Compare the servers with the policy, while their weights are the same, on a short completion of each rank.

        Later, differences are also those of the update between them.
        """
        (ids, seeds), *_ = [*((each.prompt_ids, each.seeds) for each in requests), ((0,), (0,))]
        request = SampleRequest(ids[-PROBED_PROMPT:], seeds[:1], max_new_tokens=PROBED_TOKENS)
        ((completion,),) = self._sampler.sample([request])
        row = pack([RolloutGroup(agreement.EXAMPLE, request.prompt_ids, (completion,))], self._engine.device)
        row = replace(row, score_pieces=num_pieces(PROBED_TOKENS, self._config.model.scoring_chunk))
        with torch.no_grad():
            own = self._engine.forward(row, temperature=self._config.rollout.temperature).logprobs
        drawn = own.new_tensor(completion.sampler_logprobs)
        gap = distributed.all_reduce_max({"gap": float((own - drawn).abs().mean())})["gap"]
        agreement.check_gap(gap, self._config.largest_gap)


def _completion(saved: dict[str, Any]) -> Completion:
    lists = {name: tuple(value) for name, value in saved.items() if isinstance(value, list)}
    return Completion(**{**saved, **lists})
