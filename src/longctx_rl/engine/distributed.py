"""Ranks: starting and ending the process group, and the few collectives that a run needs.

Every function works without a process group too, where this process is the only rank.
"""

import os
import random
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist

from longctx_rl.config.schema import Config

T = TypeVar("T")


def device(config: Config) -> torch.device:
    """The device of this rank. Raises ValueError for engine.device=cuda without a GPU."""
    wanted = config.engine.device
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ValueError("engine.device=cuda, but torch sees no GPU: set engine.device=cpu, or install torch with CUDA")
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    index = int(os.environ.get("LOCAL_RANK", "0"))
    if index >= torch.cuda.device_count():
        raise ValueError(
            f"engine.num_processes={config.engine.num_processes}, but this machine has {torch.cuda.device_count()} "
            f"GPUs: set engine.num_processes={torch.cuda.device_count()}"
        )
    return torch.device("cuda", index)


def init(config: Config) -> None:
    """Start this rank: threads, seeds and, where the run needs one, the process group (NCCL on GPU, gloo on CPU).

    Ranks come from torchrun's environment variables. A single process gets a process group only if its engine is
    ZeRO-3. Calling it again changes nothing but the seeds. Raises ValueError, before any other work, if the engine's
    requirements are missing on this machine, or the ranks in the environment are not those of the configuration.
    """
    where = device(config)
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
            f"the environment's RANK and WORLD_SIZE={ranks} are not those of a run with {config.world_size} "
            "processes: unset them, and set engine.num_processes instead of starting torchrun"
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


def shutdown() -> None:
    """Leave the process group. The process cannot join another one afterwards."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """This process among all, over all machines."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes, over all machines."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local_rank() -> int:
    """This process among those of its machine."""
    return int(os.environ.get("LOCAL_RANK", "0")) if dist.is_initialized() else 0


def is_main() -> bool:
    """True on the one rank that writes files and talks to the user."""
    return rank() == 0


def barrier() -> None:
    """Wait until every rank is here."""
    if world_size() > 1:
        dist.barrier()


def gather(items: Sequence[T]) -> list[T]:
    """The items of all ranks, in rank order, on every rank. Items are numbers, text, lists or dictionaries."""
    if world_size() == 1:
        return list(items)
    parts: list[Sequence[T]] = [()] * world_size()
    dist.all_gather_object(parts, list(items))
    return [item for part in parts for item in part]


def all_reduce_sum(values: Mapping[str, float]) -> dict[str, float]:
    """Sum of each value over the ranks that have it, added in rank order."""
    totals: dict[str, float] = {}
    for part in gather([dict(values)]):
        for name, value in part.items():
            totals[name] = totals.get(name, 0.0) + value
    return totals


def all_reduce_max(values: Mapping[str, float]) -> dict[str, float]:
    """Largest of each value over the ranks that have it."""
    largest: dict[str, float] = {}
    for part in gather([dict(values)]):
        for name, value in part.items():
            largest[name] = max(largest.get(name, value), value)
    return largest


def broadcast(value: T) -> T:
    """The main rank's value, on every rank. Plain data only."""
    if world_size() == 1:
        return value
    box: list[T] = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def broadcast_flag(flag: bool) -> bool:
    """The main rank's flag, on every rank."""
    return broadcast(flag)


def any_rank(flag: bool) -> bool:
    """True on every rank if the flag is set on one of them."""
    return any(gather([flag]))


def together(work: Callable[[], T], failure: type[Exception]) -> T:
    """This rank's result of ``work``; if it raised ``failure`` on any rank, that is raised on every rank."""
    found: list[T] = []
    problems: list[str] = []
    try:
        found.append(work())
    except failure as error:
        problems.append(str(error))
    if everywhere := gather(problems):
        raise failure(everywhere[0])
    return found[0]


def on_main(action: Callable[[], None]) -> None:
    """Run ``action`` on the main rank while the others wait. Its OSError or ValueError is raised on every rank."""
    problem: OSError | ValueError | None = None
    if is_main():
        try:
            action()
        except (OSError, ValueError) as error:
            problem = error
    problem = broadcast(problem)
    if problem is not None:
        raise problem
