"""Startup of a rank and choice of its engine: the only file that knows both engines by name. Order of use::

startup.init(config)
with startup.loading(config):
    policy = ...                       # from_pretrained; on several ranks, parameters are sharded from here on
trainer = startup.build(config, policy, total_steps)
teacher = trainer.freeze(teacher_module)
"""

import os
import random
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist
from torch import nn

from longctx_rl.config.schema import Config
from longctx_rl.engine import Engine, distributed


def init(config: Config) -> None:
    """Start this rank: threads, seeds and, if the run needs one, the process group (NCCL on GPU, gloo on CPU).

    Ranks are read from torchrun's environment variables. A single process gets a process group only for ZeRO-3. A
    second call only resets the seeds. Raises ValueError, before any other work, if a requirement of the engine is
    missing on this machine, or if the ranks in the environment do not match the configuration.
    """
    where = distributed.device(config)
    if config.engine.name == "zero3":
        from longctx_rl.engine import zero3

        zero3.check_requirements()
    if config.engine.threads is not None:
        torch.set_num_threads(config.engine.threads)
    if where.type == "cuda":
        torch.cuda.set_device(where)
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if ranks != config.world_size or ("RANK" in os.environ) != ("WORLD_SIZE" in os.environ):
        raise ValueError(
            f"RANK and WORLD_SIZE={ranks} in the environment do not match a run with {config.world_size} processes: "
            "unset them, and set engine.num_processes instead of starting torchrun"
        )
    if not dist.is_initialized():
        backend = "nccl" if where.type == "cuda" else "gloo"
        if "RANK" in os.environ:
            dist.init_process_group(backend)
        elif config.engine.name == "zero3":
            os.environ.setdefault("LOCAL_RANK", "0")
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    if config.engine.name == "zero3":
        zero3.start(where)
    random.seed(config.seed)
    torch.manual_seed(config.seed)


def loading(config: Config) -> AbstractContextManager[None]:
    """Return the context in which from_pretrained shards its model. With ZeRO-3, each rank keeps only its own shard.

    A parameter is then an empty placeholder: its shape is ``parameter.ds_shape``, its value ``Engine.full_parameter``.
    """
    if config.engine.name == "zero3":
        from longctx_rl.engine import zero3

        return zero3.loading(config)
    return nullcontext()


def build(config: Config, module: nn.Module, total_steps: int | None) -> Engine:
    """Return the engine that config.engine names, around a policy module whose ``model`` is the causal language model.

    ``total_steps`` is the length of the cosine schedule; None: another budget determines it. Call ``init`` first.
    """
    if config.engine.name == "zero3":
        from longctx_rl.engine.zero3 import Zero3Engine

        return Zero3Engine(config, module, total_steps)
    from longctx_rl.engine.local import LocalEngine

    return LocalEngine(config, module, total_steps)
