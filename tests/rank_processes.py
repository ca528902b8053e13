"""Processes for the ranks of a test. A server imports the slow packages once, and every rank is forked from it.

The server has no process group, no threads and no state of the test process, so that its children are equivalent to new
interpreters but start in a fraction of the time.
"""

import gc
import multiprocessing
import os
from collections.abc import Callable

import torch
from torch.multiprocessing import start_processes

from longctx_rl import cli
from ports import free_port

PRELOADED = ["functorch.compile", "torch._inductor.compile_fx", "transformers.models.qwen3.modeling_qwen3"]
"""Without DeepSpeed, so that tests see what it prints and compiles on import."""


def run_ranks(work: Callable[..., None], *arguments: object, ranks: int = 2) -> None:
    """Call ``work(*arguments)`` in ``ranks`` processes, with torchrun's environment if there are several, and wait.

    An exception in a rank is raised here with its traceback. ``work`` is a function of an importable module.
    """
    multiprocessing.set_forkserver_preload(PRELOADED)
    size, port = str(ranks), str(free_port())
    group = {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    start_processes(
        _enter, (work, group if ranks > 1 else {}, arguments), nprocs=ranks, daemon=True, start_method="forkserver"
    )


def _enter(rank: int, work: Callable[..., None], environment: dict[str, str], arguments: tuple[object, ...]) -> None:
    torch.set_num_threads(1)
    if environment:
        os.environ |= environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    gc.freeze()  # DeepSpeed collects garbage whenever it builds an engine: half a second over all imported modules
    work(*arguments)
    cli.leave(0)
