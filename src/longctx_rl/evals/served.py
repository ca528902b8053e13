"""The vLLM servers that answer for an evaluated checkpoint: one that starts here, or those that run already."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers import PreTrainedModel

from longctx_rl.config.eval import EvaluateConfig
from longctx_rl.evals.preconditions import check_lengths
from longctx_rl.policy.loading import context_length
from longctx_rl.policy.weights import local_folder, weights_hash
from longctx_rl.rollout.server import Connections, Server
from longctx_rl.rollout.serving import ServerProcess

LOADED = "default"
"""The version of weights that a server was started with."""


class CheckpointServers(Connections):
    """The servers of an evaluated checkpoint. One that is started here starts when the first answer is needed.

    Args:
        model: the checkpoint, whose weights need not be loaded.
        weights: hash of its weights; None: they are not on this disk.
        cpu: a server runs on a CPU.
    """

    def __init__(self, config: EvaluateConfig, model: PreTrainedModel, weights: str | None, cpu: bool) -> None:
        super().__init__(config.rollout)
        self._config, self._model, self._weights, self._cpu = config, model, weights, cpu
        self._process: ServerProcess | None = None
        self._ready = False
        self.log = Path(config.out) / "vllm.log"

    def sync(self) -> str:
        """Wait until all servers are ready, and return the version of their weights.

        Raises:
            ValueError: a server does not start, does not reply, or serves another model or too short a context.
        """
        if not self._ready:
            if not self.servers:
                self._process = self._start()
                self.servers = self.at([self._process.url])
                self._process.wait()
            self.run(lambda server, client: server.describe(client))
            for server in self.servers:
                self._check(server)
            self._ready = True
        return LOADED

    def close(self) -> None:
        """End the server that was started here, if any."""
        if self._process is not None:
            self._process.close()

    def _start(self) -> ServerProcess:
        config, settings = self._config, self._model.config
        folder = local_folder(config.checkpoint)
        assert folder is not None and self._weights is not None
        stretch = {
            "rope_parameters": getattr(settings, "rope_parameters", None),
            "max_position_embeddings": settings.max_position_embeddings,
        }
        return ServerProcess(
            config.rollout,
            folder,
            self.log,
            dtype=config.dtype,
            context=context_length(self._model),
            cpu=self._cpu,
            arguments=() if config.yarn is None else ("--hf-overrides", json.dumps(stretch)),
        )

    def _check(self, server: Server) -> None:
        """Raise ValueError for a context that is too short, or a folder on this disk with other weights."""
        check_lengths(self._config, server.context, server.url)
        root = Path(server.root)
        comparable = self._process is None and self._weights is not None and server.root and root.is_dir()
        if comparable and weights_hash(root) not in (None, self._weights):
            raise ValueError(
                f"{server.url} serves {root}, which has other weights than {self._config.checkpoint}: give the address "
                "of a server of this checkpoint, or rollout.server=auto"
            )


@contextmanager
def served(
    config: EvaluateConfig, model: PreTrainedModel, weights: str | None, cpu: bool
) -> Iterator[CheckpointServers | None]:
    """Yield the servers of rollout=vllm, else None; end what was started. Its log is kept after a failure only."""
    if config.rollout.name == "hf":
        yield None
        return
    servers = CheckpointServers(config, model, weights, cpu)
    try:
        yield servers
    finally:
        servers.close()
    servers.log.unlink(missing_ok=True)
