"""The part of the configuration that says which sampler is used, and how vLLM servers are started and reached."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """The sampler, and the servers of rollout=vllm."""

    name: Literal["hf", "vllm"]
    server: str = "auto"
    """vLLM: ``auto``, or the addresses of running servers, separated by commas."""
    python: str = ".venv-vllm/bin/python"
    """server=auto: an interpreter that has vLLM."""
    server_args: tuple[str, ...] = ()
    """server=auto: further arguments of vLLM."""
    devices: str | None = None
    """server=auto: CUDA_VISIBLE_DEVICES of the server; None: this process's."""
    concurrency: int = 256
    """Requests at a time of each rank."""
    timeout: float = 3600.0
    """Seconds until an answer to a request counts as lost."""
    start_timeout: float = 900.0
    """Seconds until a started server counts as failed."""

    @property
    def addresses(self) -> list[str]:
        """The addresses of running servers; empty for server=auto."""
        return [] if self.server == "auto" else [url.strip() for url in self.server.split(",")]
