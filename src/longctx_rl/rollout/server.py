"""Connections to vLLM servers, and those that hold a policy's weights: updated over HTTP.

The weights travel as safetensors files in shared memory, which ``reload_weights`` reads; then the prefix cache is reset
and the version is set, which every completion reports. Written for vLLM 0.32, whose development endpoints are used
(``vllm/entrypoints/rl``).
"""

import asyncio
import secrets
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
from transformers import PreTrainedTokenizerBase

from longctx_rl.config.rollout import ServerConfig
from longctx_rl.config.schema import RolloutConfig
from longctx_rl.engine import Engine, distributed
from longctx_rl.files import mismatch, parsed_json
from longctx_rl.rollout import RolloutFailed
from longctx_rl.rollout.serving import ServerProcess, guarded, one_line, release

SHARED_MEMORY = Path("/dev/shm")
LOCAL = ("127.0.0.1", "localhost", "::1")
RETRIES, PAUSE = 4, 0.5
"""Further attempts where a server refuses connections or is overloaded, and seconds before the first; each doubles."""
NEEDS = "VLLM_SERVER_DEV_MODE=1 and --enable-scale-out"
"""What a server of a policy has to be started with."""
OVERLOADED = (429, 502, 503, 504)


class Server:
    """One vLLM server.

    Args:
        needs: what it has to be started with, for messages.
    """

    def __init__(self, url: str, timeout: float, needs: str = NEEDS) -> None:
        self.url, self._timeout, self._needs = url.rstrip("/"), timeout, needs
        self.model, self.context, self.root = "", 0, ""

    async def post(self, client: httpx2.AsyncClient, path: str, kind: Any, **content: Any) -> Any:
        """Return the JSON reply to a request, which has the type ``kind`` (see ``files.mismatch``).

        Raises:
            RolloutFailed: no reply after some retries, or one that says why the request was refused.
        """
        return await self._reply(client.build_request("POST", f"{self.url}{path}", **content), client, kind)

    async def get(self, client: httpx2.AsyncClient, path: str, kind: Any) -> Any:
        """Like ``post``."""
        return await self._reply(client.build_request("GET", f"{self.url}{path}"), client, kind)

    async def _reply(self, request: httpx2.Request, client: httpx2.AsyncClient, kind: Any) -> Any:
        path = request.url.path
        for attempt in range(RETRIES + 1):
            if attempt:
                await asyncio.sleep(PAUSE * 2 ** (attempt - 1))
            try:
                response = await client.send(request)
            except (httpx2.ReadTimeout, httpx2.WriteTimeout):
                raise RolloutFailed(
                    f"{self.url} did not answer {path} within {self._timeout:g} s: look at its log, or raise "
                    "rollout.timeout"
                ) from None
            except httpx2.RequestError as error:  # a connect timeout, too
                problem = str(error) or type(error).__name__
                continue
            if response.status_code not in OVERLOADED:
                break
            problem = f"status {response.status_code}"
        else:
            raise RolloutFailed(f"{self.url} cannot be reached ({problem}): look at its log, and start it again")
        value, problem = parsed_json(response.content)
        if response.status_code == 404 or (response.status_code == 403 and path.startswith("/inference")):
            raise RolloutFailed(
                f"{self.url} has no {path}: give the address of vLLM 0.32 or newer, started with {self._needs}"
            )
        if response.status_code != 200:
            words = response.text if mismatch(value, {"error": {"message": str}}) else value["error"]["message"]
            fix = "look at its log" if self._needs == NEEDS else f"look at its log, or start it with {self._needs}"
            raise RolloutFailed(f"{self.url} refused {path} ({one_line(words)}): {fix}")
        if problem := problem or mismatch(value, kind):
            raise RolloutFailed(f"the reply of {self.url} to {path} is {problem}: use vLLM 0.32")
        return value

    async def describe(self, client: httpx2.AsyncClient) -> None:
        """Learn the served name, the context length and where the weights come from."""
        served = {"id": str, "max_model_len": int, "root": str | None}
        models = (await self.get(client, "/v1/models", {"data": [served]}))["data"]
        if len(models) != 1:
            raise RolloutFailed(f"{self.url} serves {len(models)} models: serve the one alone that the run uses")
        self.model, self.context = models[0]["id"], models[0]["max_model_len"]
        self.root = models[0].get("root") or ""

    async def load(self, client: httpx2.AsyncClient, folder: Path, version: str) -> None:
        """Replace the weights by those in ``folder``, and make sure that nothing computed by the old ones is used.

        No request may be under way.
        """
        arguments = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
        await self.post(client, "/collective_rpc", {"results": list[Any]}, json=arguments)
        reset = await self.post(client, "/reset_prefix_cache", {"success": bool})
        if not reset["success"]:
            raise RolloutFailed(f"{self.url} could not reset its prefix cache: let no other client use it")
        await self.post(client, "/update_weight_version", {"success": bool}, json={"new_version": version})
        info = await self.get(client, "/weight_info", {"weight_version": str})
        if info["weight_version"] != version:
            raise RolloutFailed(
                f"{self.url} has weights {info['weight_version']} instead of {version}: let no other run use it"
            )


class Connections(ABC):
    """Servers of one model, which share the prompts."""

    def __init__(self, config: ServerConfig) -> None:
        self._settings = config
        self.servers = self.at(config.addresses)

    @abstractmethod
    def sync(self) -> str:
        """Prepare all servers for requests, and return the version of the weights that completions must report."""

    @property
    def context(self) -> int:
        """Longest sequence in tokens that all servers take, once they are ready."""
        return min(server.context for server in self.servers)

    def at(self, urls: Sequence[str]) -> list[Server]:
        """The servers at these addresses."""
        return [Server(url, self._settings.timeout) for url in urls]

    def run(self, work: Callable[[Server, httpx2.AsyncClient], Any]) -> list[Any]:
        """Await ``work`` for each server at the same time, and return the results."""

        async def each() -> list[Any]:
            async with self.client() as client:
                return await gathered([work(server, client) for server in self.servers])

        return asyncio.run(each())

    def client(self) -> httpx2.AsyncClient:
        """See ``http_client``."""
        return http_client(self._settings)


class Servers(Connections):
    """The servers of a run. All ranks make one, and call its methods together.

    Args:
        run_dir: the run's directory, for the log of a server of one's own and, without shared memory, the weights.
        context: longest sequence in tokens.
    """

    def __init__(
        self, config: RolloutConfig, engine: Engine, tokenizer: PreTrainedTokenizerBase, run_dir: Path, context: int
    ) -> None:
        super().__init__(config)
        self._config, self._engine, self._tokenizer = config, engine, tokenizer
        self._run = distributed.broadcast(secrets.token_hex(4))
        self._folder = distributed.broadcast(self._choose_folder(run_dir))
        self._written: int | None = None
        self._synced: int | None = None
        self._process: ServerProcess | None = None
        self._ready = False
        self._guard = guarded(self._folder) if distributed.is_main() else None
        if config.server == "auto":
            self._write()
            if distributed.is_main():
                self._process = ServerProcess(
                    config,
                    self._weights(engine.updates),
                    run_dir / "vllm.log",
                    dtype=str(engine.dtype).removeprefix("torch."),
                    context=context,
                    cpu=engine.device.type == "cpu",
                )
            self.servers = self.at([distributed.broadcast("" if self._process is None else self._process.url)])

    def sync(self) -> str:
        """Give all servers the policy's current weights, and return their version. All ranks call this.

        Raises:
            RolloutFailed: on every rank, if a server does not take them.
        """
        updates = self._engine.updates
        version = f"{self._run}:{updates}"
        if not self._ready:
            distributed.together(self._wait, RolloutFailed)
            distributed.together(lambda: self.run(lambda server, client: server.describe(client)), RolloutFailed)
            self._ready = True
        if self._synced != updates:
            if self._written != updates:
                self._write()
            folder = self._weights(updates)

            def load() -> None:
                if distributed.is_main():
                    self.run(lambda server, client: server.load(client, folder, version))

            distributed.together(load, RolloutFailed)
            self._synced = updates
        return version

    def _wait(self) -> None:
        if self._process is not None:
            self._process.wait()

    def close(self) -> None:
        """End a server of one's own, which the end of this process would do, too, and remove the weights."""
        if self._process is not None:
            self._process.close()
        if self._guard is not None:
            release(self._guard)
        self._process = self._guard = None

    def _choose_folder(self, run_dir: Path) -> Path:
        """Where weights are written: shared memory, if all servers are on this machine, or the run directory."""
        local = all(urlsplit(url).hostname in LOCAL for url in self._config.addresses)
        root = Path(self._config.weights_dir).expanduser() if self._config.weights_dir else None
        if root is None and local and SHARED_MEMORY.is_dir():
            root = SHARED_MEMORY
        return (root or run_dir) / f"longctx_rl-{self._run}"

    def _weights(self, updates: int) -> Path:
        return self._folder / f"weights-{updates}"

    def _write(self) -> None:
        """Write the policy's weights into a new folder, and remove the folder before it. All ranks call this."""
        updates = self._engine.updates
        try:
            distributed.on_main(lambda: self._folder.mkdir(mode=0o700, parents=True, exist_ok=True))
            self._engine.export(self._weights(updates), self._tokenizer, untied=True)
        except (OSError, ValueError) as error:
            raise RolloutFailed(
                f"the weights cannot be written to {self._folder} ({error}): set rollout.weights_dir=FOLDER"
            ) from error
        if distributed.is_main() and self._written is not None:
            shutil.rmtree(self._weights(self._written), ignore_errors=True)
        self._written = updates


def http_client(config: ServerConfig) -> httpx2.AsyncClient:
    """An HTTP client for ``rollout.concurrency`` requests at a time, to be used in ``async with``."""
    limits = httpx2.Limits(max_connections=config.concurrency, max_keepalive_connections=None)
    timeout = httpx2.Timeout(config.timeout, connect=10.0, pool=None)
    return httpx2.AsyncClient(limits=limits, timeout=timeout, trust_env=False)


async def gathered(work: Sequence[Any]) -> list[Any]:
    """Await all at the same time. The first failure cancels the others and is raised."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
