"""vLLM servers that hold the policy's weights: started with the run or already running, and updated over HTTP.

The weights travel as safetensors files in shared memory, which ``reload_weights`` reads; then the prefix cache is reset
and the version is set, which every completion reports. Written for vLLM 0.32, whose development endpoints are used
(``vllm/entrypoints/rl``).
"""

import asyncio
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
from transformers import PreTrainedTokenizerBase

from longctx_rl.config.schema import RolloutConfig
from longctx_rl.engine import Engine, distributed
from longctx_rl.files import mismatch, parsed_json
from longctx_rl.rollout import RolloutFailed

SHARED_MEMORY = Path("/dev/shm")
NAME = "policy"
"""The name under which a server of one's own serves the policy."""
FLAGS = ("--enable-scale-out", "--skip-tokenizer-init", "--generation-config", "vllm")
PROCESSED = ("--logprobs-mode", "processed_logprobs")
PREFILLED = 8192
"""Tokens that a server on a CPU prefills at a time."""
RETRIES, PAUSE = 4, 0.5
"""Further attempts where a server refuses connections or is overloaded, and seconds before the first; each doubles."""
OVERLOADED = (429, 502, 503, 504)
NOTED_EVERY = 30.0
"""Seconds between messages that the server is not ready yet."""
TAIL = 2000
"""Characters of the server's log that are searched for the cause of a failed start."""


def cpu_flags(context: int) -> tuple[str, ...]:
    """Arguments of a server on a CPU.

    Prompts are prefilled whole: where one is split, vLLM 0.32 moves the seeded random generator of its request back,
    which generators on a CPU cannot do, and the server dies.
    """
    return "--enforce-eager", "--no-enable-chunked-prefill", "--max-num-batched-tokens", str(max(context, PREFILLED))


class Server:
    """One vLLM server.

    Args:
        needs: what it has to be started with, for messages.
    """

    def __init__(self, url: str, timeout: float, needs: str = "VLLM_SERVER_DEV_MODE=1 and --enable-scale-out") -> None:
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
            except httpx2.TimeoutException:
                raise RolloutFailed(
                    f"{self.url} did not answer {path} within {self._timeout:g} s: look at its log, or raise "
                    "rollout.timeout"
                ) from None
            except httpx2.TransportError as error:
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
            raise RolloutFailed(
                f"{self.url} refused {path} ({_one_line(words)}): look at its log, and start it with {self._needs}"
            )
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
        """Replace the weights by those in ``folder``, and make sure that nothing computed by the old ones is used."""
        await self.post(client, "/pause?mode=wait", {"status": str})
        arguments = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
        await self.post(client, "/collective_rpc", {"results": list[Any]}, json=arguments)
        reset = await self.post(client, "/reset_prefix_cache", {"success": bool})
        if not reset["success"]:
            raise RolloutFailed(f"{self.url} could not reset its prefix cache: let no other client use it")
        await self.post(client, "/update_weight_version", {"success": bool}, json={"new_version": version})
        await self.post(client, "/resume", {"status": str})
        info = await self.get(client, "/weight_info", {"weight_version": str})
        if info["weight_version"] != version:
            raise RolloutFailed(
                f"{self.url} has weights {info['weight_version']} instead of {version}: let no other run use it"
            )


class Servers:
    """The servers of a run. All ranks make one, and call its methods together.

    Args:
        run_dir: the run's directory, for the log of a server of one's own and, without shared memory, the weights.
        context: longest sequence in tokens.
    """

    def __init__(
        self, config: RolloutConfig, engine: Engine, tokenizer: PreTrainedTokenizerBase, run_dir: Path, context: int
    ) -> None:
        self.config, self._engine, self._tokenizer = config, engine, tokenizer
        self._run = distributed.broadcast(secrets.token_hex(4))
        self._log = run_dir / "vllm.log"
        self._folder = distributed.broadcast(self._choose_folder(run_dir))
        self._written: int | None = None
        self._synced: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._ready = False
        urls = [url.strip() for url in config.server.split(",")]
        if config.server == "auto":
            self._write()
            urls = [distributed.broadcast(self._start(context) if distributed.is_main() else "")]
        self.servers = [Server(url, config.timeout) for url in urls]

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

    def run(self, work: Callable[[Server, httpx2.AsyncClient], Any]) -> list[Any]:
        """Await ``work`` for each server at the same time, and return the results."""

        async def each() -> list[Any]:
            async with self.client() as client:
                return await gathered([work(server, client) for server in self.servers])

        return asyncio.run(each())

    def client(self) -> httpx2.AsyncClient:
        """See ``http_client``."""
        return http_client(self.config)

    def close(self) -> None:
        """End a server of one's own. The guard would do so, too, when this process ends."""
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(15)
            self._process = None
        elif distributed.is_main():
            shutil.rmtree(self._folder, ignore_errors=True)

    def _choose_folder(self, run_dir: Path) -> Path:
        """Where weights are written: shared memory, if all servers are on this machine and it has room for two copies.

        In a folder that only this user can enter, because its name can be guessed.
        """
        local = self.config.server == "auto" or all(
            url.split("//")[-1].startswith(("127.0.0.1", "localhost")) for url in self.config.server.split(",")
        )
        root = Path(self.config.weights_dir).expanduser() if self.config.weights_dir else None
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

    def _start(self, context: int) -> str:
        """Start a server of the weights in the folder; return its address."""
        config, dtype = self.config, str(self._engine.dtype).removeprefix("torch.")
        assert self._written is not None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        cpu = self._engine.device.type == "cpu"
        command = [
            config.python, "-m", "vllm.entrypoints.openai.api_server", "--model", self._weights(self._written),
            "--served-model-name", NAME, "--host", "127.0.0.1", "--port", port, "--dtype", dtype, "--max-model-len",
            context, *FLAGS, *PROCESSED, *(cpu_flags(context) if cpu else ()), *config.server_args,
        ]  # fmt: skip
        environment = os.environ | {
            "VLLM_SERVER_DEV_MODE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        # The ranks' own settings would make vLLM one of them.
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "PYTHONPATH"):
            environment.pop(name, None)
        if cpu:
            environment.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
        if config.devices is not None:
            environment["CUDA_VISIBLE_DEVICES"] = config.devices
        guard = [sys.executable, "-S", "-E", Path(__file__).with_name("guard.py"), 0, self._folder]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [str(part) for part in (*guard, *command)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        self._started = time.monotonic()
        return f"http://127.0.0.1:{port}"

    def _wait(self) -> None:
        """Wait until the server that this process started is ready."""
        if self._process is None:
            return
        noted = 0.0
        while not self._healthy():
            waited = time.monotonic() - self._started
            if self._process.poll() is not None or waited > self.config.start_timeout:
                self.close()
                raise RolloutFailed(f"vLLM did not start ({_cause(self._log)}): see {self._log}")
            if waited - noted > NOTED_EVERY:
                noted = waited
                print(f"vLLM is starting ({waited:.0f} s), see {self._log}", file=sys.stderr, flush=True)
            time.sleep(0.25)

    def _healthy(self) -> bool:
        with suppress(httpx2.TransportError):
            return httpx2.get(f"{self.servers[0].url}/health", timeout=5.0, trust_env=False).status_code == 200
        return False


def http_client(config: RolloutConfig) -> httpx2.AsyncClient:
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


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300] or "no reason given"


def _cause(log: Path) -> str:
    """The last error of a server's log, else its last line."""
    lines = log.read_text(encoding="utf-8", errors="replace")[-TAIL * 10 :].splitlines()
    errors = [line for line in lines if "Error: " in line or "error: " in line]
    text = (errors or [line for line in lines if line.strip()] or ["its log is empty"])[-1]
    return _one_line(text.partition("] ")[2] or text)
