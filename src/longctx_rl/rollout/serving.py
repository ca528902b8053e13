"""A vLLM server that this process starts: its interpreter, its arguments, the wait until it is ready, and its end.

Imports neither torch nor transformers, so that a command can refuse an interpreter at once.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2

from longctx_rl.config.rollout import ServerConfig
from longctx_rl.rollout import RolloutFailed

LEAST = (0, 32)
"""The oldest version of vLLM whose endpoints are known."""
NAME = "policy"
"""The name under which the server serves its model."""
FLAGS = ("--enable-scale-out", "--skip-tokenizer-init", "--generation-config", "vllm")
PROCESSED = ("--logprobs-mode", "processed_logprobs")
PREFILLED = 8192
"""Tokens that a server on a CPU prefills at a time."""
RANKS = ("RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_", "PYTHONPATH")
"""Beginnings of the variables that are for this process alone."""
NOTED_EVERY = 30.0
"""Seconds between messages that the server is not ready yet."""


def check_vllm(python: str) -> None:
    """Raise ValueError for an interpreter without a vLLM that can be used."""
    look = "from importlib.metadata import version, packages_distributions as p; print(version(p()['vllm'][0]))"
    fix = "run make vllm, set rollout.python=<an interpreter that has vLLM>, or rollout.server=<address>"
    try:
        found = subprocess.run([python, "-c", look], capture_output=True, text=True, check=False)
    except OSError as error:
        raise ValueError(f"rollout.python={python} cannot be run ({error.strerror}): {fix}") from error
    version = found.stdout.strip()
    if found.returncode != 0:
        raise ValueError(f"rollout.python={python} has no vLLM: {fix}")
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < LEAST:
        raise ValueError(f"rollout.python={python} has vLLM {version}, but 0.32 or newer is needed: {fix}")


def cpu_flags(context: int) -> tuple[str, ...]:
    """Arguments of a server on a CPU.

    Prompts are prefilled whole: where one is split, vLLM 0.32 moves the seeded random generator of its request back,
    which generators on a CPU cannot do, and the server dies.
    """
    return "--enforce-eager", "--no-enable-chunked-prefill", "--max-num-batched-tokens", str(max(context, PREFILLED))


def guarded(folder: Path | None, command: Sequence[str] = (), **settings: Any) -> subprocess.Popen[bytes]:
    """Start a command that ends with this process, and remove ``folder`` then, however this process ends.

    Args:
        command: empty to remove the folder alone.
        settings: passed to ``subprocess.Popen``.
    """
    guard = [sys.executable, "-S", "-E", str(Path(__file__).with_name("guard.py")), "0", str(folder or "")]
    return subprocess.Popen([*guard, *command], stdin=subprocess.PIPE, start_new_session=True, **settings)


def release(guard: subprocess.Popen[bytes]) -> None:
    """End what a guard watches, and wait for it."""
    assert guard.stdin is not None
    guard.stdin.close()
    with suppress(subprocess.TimeoutExpired):
        guard.wait(15)


class ServerProcess:
    """A vLLM server that ends with this process, however this process ends (see ``guard.py``).

    Args:
        model: the folder of the model.
        log: the file of the server's output.
        dtype: number type of the weights, such as float32.
        context: longest sequence in tokens.
        cpu: the server runs on a CPU.
        arguments: further arguments of vLLM, before those of the configuration.
    """

    def __init__(
        self,
        config: ServerConfig,
        model: Path,
        log: Path,
        *,
        dtype: str,
        context: int,
        cpu: bool,
        arguments: Sequence[str] = (),
    ) -> None:
        self._config, self._log = config, log
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [
            config.python, "-m", "vllm.entrypoints.openai.api_server", "--model", model,
            "--served-model-name", NAME, "--host", "127.0.0.1", "--port", port, "--dtype", dtype, "--max-model-len",
            context, *FLAGS, *PROCESSED, *(cpu_flags(context) if cpu else ()), *arguments, *config.server_args,
        ]  # fmt: skip
        environment = os.environ | {
            "VLLM_SERVER_DEV_MODE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        # The ranks' own settings would make vLLM one of them.
        environment = {name: value for name, value in environment.items() if not name.startswith(RANKS)}
        if cpu:
            environment.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
        if config.devices is not None:
            environment["CUDA_VISIBLE_DEVICES"] = config.devices
        with log.open("ab") as output:
            self.guard = guarded(None, list(map(str, command)), stdout=output, stderr=output, env=environment)
        self._started = time.monotonic()
        self.url = f"http://127.0.0.1:{port}"

    def wait(self) -> None:
        """Wait until the server is ready.

        Raises:
            RolloutFailed: it ended, or is not ready in time; it is closed then.
        """
        noted = 0.0
        while not self._healthy():
            waited = time.monotonic() - self._started
            if self.guard.poll() is not None or waited > self._config.start_timeout:
                self.close()
                kept = Path(tempfile.mkdtemp(prefix="longctx_rl-")) / self._log.name  # the run directory may go
                shutil.copy(self._log, kept)
                raise RolloutFailed(f"vLLM did not start ({_cause(kept)}): see {kept}")
            if waited - noted > NOTED_EVERY:
                noted = waited
                print(f"vLLM is starting ({waited:.0f} s), see {self._log}", file=sys.stderr, flush=True)
            time.sleep(0.25)

    def close(self) -> None:
        """End the server."""
        release(self.guard)

    def _healthy(self) -> bool:
        with suppress(httpx2.TransportError):
            return httpx2.get(f"{self.url}/health", timeout=5.0, trust_env=False).status_code == 200
        return False


def one_line(text: str) -> str:
    """A text of a server in one line for the parentheses of a message."""
    return " ".join(text.split())[:300] or "no reason given"


def _cause(log: Path) -> str:
    """The last error of a server's log that is no consequence of another one, else its last line."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [line for line in lines if re.search(r"(Error|error): ", line) and "WARNING" not in line]
    first_hand = [line for line in errors if "nitialization failed" not in line]
    text = (first_hand or errors or [line for line in lines if line.strip()] or ["its log is empty"])[-1]
    return one_line(text.partition("] ")[2] or text)
