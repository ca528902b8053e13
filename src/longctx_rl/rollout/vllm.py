"""Sampling on vLLM servers: token ids go out; tokens come back with the log-probabilities that they were drawn with.

A rank sends its own prompts; several servers share them evenly. A prompt is one request, whatever the size of its
group, so that it is sent once and prefilled once.
"""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Generator, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any

import httpx2
from transformers import PreTrainedTokenizerBase

from longctx_rl.engine import distributed
from longctx_rl.rollout import RolloutFailed, SampleRequest
from longctx_rl.rollout.server import Connections, Server, gathered
from longctx_rl.types import Completion

UNDEFINED = -9999.0
"""vLLM's log-probability where the real one is not finite."""
CHOICE = {
    "index": int,
    "finish_reason": str | None,
    "token_ids": list[int],
    "weight_versions": [{"version": str, "start": int, "end": int}],
    "logprobs": {"content": [{"token_id": int, "logprob": float}]},
}


class VllmSampler:
    """Samples completions on vLLM servers, once ``Connections.sync`` has prepared them. See ``Sampler``.

    The completions of a request are drawn with the seeds s, s + 1, ..., where s is derived from its first seed, so a
    completion depends on its place in the group instead of its own seed. The last digits of logits, and with them now
    and then a token, depend on the requests that are decoded at the same time.

    Args:
        tokenizer: decodes completions.
        temperature: divides the logits. 0: greedy decoding, whose log-probabilities are those at temperature 1.
        max_new_tokens: length limit of a completion; a request can set a lower one.
        eos_ids: tokens that end a completion.
        rows: rows of the model's head.
        vocabulary: number of leading rows of the head that can be drawn; None: all.
    """

    def __init__(
        self,
        servers: Connections,
        tokenizer: PreTrainedTokenizerBase,
        *,
        temperature: float,
        max_new_tokens: int,
        eos_ids: Sequence[int],
        rows: int,
        vocabulary: int | None = None,
    ) -> None:
        self._servers, self._tokenizer, self._rows = servers, tokenizer, rows
        self._max_new_tokens = max_new_tokens
        self._parameters: dict[str, Any] = {
            "temperature": temperature,
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "logprobs": 0,
            "ignore_eos": True,
            "stop_token_ids": list(eos_ids),
            "detokenize": False,
        }
        if vocabulary is not None and vocabulary < rows:
            self._parameters["allowed_token_ids"] = list(range(vocabulary))

    def sample(self, requests: Sequence[SampleRequest]) -> list[tuple[Completion, ...]]:
        """Return the completions of each request. Raises like ``start`` and the function that it returns."""
        return self.start(requests)()

    def start(self, requests: Sequence[SampleRequest]) -> Callable[[], list[tuple[Completion, ...]]]:
        """Update the servers' weights, send the requests, and return a function that waits for the completions.

        All ranks call both.

        Raises:
            RolloutFailed: on every rank, if a server fails, or completions were drawn with other weights.
            ValueError: a prompt is empty or leaves no room in the served context.
        """
        version = self._servers.sync()
        future: Future[list[tuple[Completion, ...]]] = Future()

        def draw() -> None:
            try:
                future.set_result(asyncio.run(self._all(requests, version)))
            except BaseException as error:  # raised where the result is awaited
                future.set_exception(error)

        threading.Thread(target=draw, daemon=True).start()
        return lambda: distributed.together(future.result, RolloutFailed)

    async def _all(self, requests: Sequence[SampleRequest], version: str) -> list[tuple[Completion, ...]]:
        servers = self._servers.servers
        async with self._servers.client() as client:
            return await gathered(
                [
                    self._one(client, servers[(distributed.rank() + number) % len(servers)], request, version)
                    for number, request in enumerate(requests)
                ]
            )

    def stream(
        self, requests: Sequence[SampleRequest], concurrency: int
    ) -> Generator[dict[int, tuple[Completion, ...]]]:
        """Yield the completions of requests by their index, as soon as there are any and whatever their order.

        The servers answer ``concurrency`` requests at a time, also while the caller is at work. For one rank.

        Raises:
            RolloutFailed, ValueError: see ``sample``; everything that arrived before has been yielded.
        """
        version, servers = self._servers.sync(), self._servers.servers
        arrived: SimpleQueue[tuple[int, tuple[Completion, ...]] | None] = SimpleQueue()
        waiting = iter(enumerate(requests))

        async def work(client: httpx2.AsyncClient) -> None:
            for number, request in waiting:
                arrived.put((number, await self._one(client, servers[number % len(servers)], request, version)))

        async def everything() -> None:
            async with self._servers.client() as client:
                await gathered([work(client) for _ in range(concurrency)])

        with _in_background(everything()) as running:
            running.add_done_callback(lambda _: arrived.put(None))
            ended = False
            while not ended:
                batch = [arrived.get()]
                while not arrived.empty():
                    batch.append(arrived.get())
                ended = batch[-1] is None
                if answered := dict(one for one in batch if one is not None):
                    yield answered
            running.result()

    async def _one(
        self, client: httpx2.AsyncClient, server: Server, request: SampleRequest, version: str
    ) -> tuple[Completion, ...]:
        limit = min(self._max_new_tokens, request.max_new_tokens or self._max_new_tokens)
        self._check(server, request, limit)
        parameters = self._parameters | {"n": len(request.seeds), "max_tokens": limit}
        if self._parameters["temperature"]:
            parameters["seed"] = request.seeds[0] >> 1  # the seeds that follow it must fit into 63 bits, too
        body = {
            "model": server.model,
            "token_ids": list(request.prompt_ids),
            "sampling_params": parameters,
            "cache_salt": version,
        }
        reply = await server.post(client, "/inference/v1/generate", {"choices": [CHOICE]}, json=body)
        choices = sorted(reply["choices"], key=lambda choice: choice["index"])
        if len(choices) != len(request.seeds):
            raise RolloutFailed(
                f"{server.url} returned {len(choices)} completions of {len(request.seeds)}: use vLLM 0.32"
            )
        return tuple(self._completion(server, choice, limit, version) for choice in choices)

    def _check(self, server: Server, request: SampleRequest, limit: int) -> None:
        tokens = len(request.prompt_ids)
        if not tokens:
            raise RolloutFailed("cannot sample from an empty prompt: give at least one token")
        if tokens + limit > server.context:
            raise RolloutFailed(
                f"a prompt of {tokens} tokens and max_new_tokens={limit} exceed the context of {server.context} that "
                f"{server.url} serves: use shorter prompts, fewer new tokens, or a larger --max-model-len"
            )
        if max(request.prompt_ids) >= self._rows:  # vLLM without a tokenizer does not check it, and dies
            raise RolloutFailed(f"token {max(request.prompt_ids)} is not in the model's vocabulary of {self._rows}")

    def _completion(self, server: Server, choice: dict[str, Any], limit: int, version: str) -> Completion:
        ids = tuple(choice["token_ids"])
        logprobs = tuple(token["logprob"] for token in choice["logprobs"]["content"])
        versions = {span["version"] for span in choice["weight_versions"]}
        if versions != {version}:
            raise RolloutFailed(
                f"{server.url} drew a completion with weights {', '.join(sorted(versions))} instead of {version}: let "
                "no other run use it"
            )
        reason = choice["finish_reason"]
        complete = reason == "stop" and ids[-1:] and ids[-1] in self._parameters["stop_token_ids"]
        if len(logprobs) != len(ids) or not (complete or (reason == "length" and len(ids) == limit)):
            raise RolloutFailed(
                f"{server.url} returned {len(ids)} tokens with {len(logprobs)} log-probabilities, ended by {reason}: "
                "look at its log"
            )
        if min(logprobs) <= UNDEFINED:
            raise RolloutFailed(
                "the policy's logits are not finite, so its weights are broken: start from an earlier checkpoint with "
                "a lower optim.lr"
            )
        text = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        assert isinstance(text, str)
        return Completion(ids, text, "stop" if complete else "length", logprobs)


@contextmanager
def _in_background(work: Coroutine[Any, Any, None]) -> Iterator[Future[None]]:
    """Await ``work`` in a thread of its own, and cancel what is left of it in the end."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="vllm", daemon=True)
    thread.start()
    running = asyncio.run_coroutine_threadsafe(work, loop)

    async def end() -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    try:
        yield running
    finally:
        asyncio.run_coroutine_threadsafe(end(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
