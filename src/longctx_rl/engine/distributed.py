"""This process's rank, and the few collectives that a run needs.

Without a process group, every function treats this process as the only rank.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist

from longctx_rl.config.schema import Config

T = TypeVar("T")


def device(config: Config) -> torch.device:
    """Return the device of this rank. Raises ValueError for engine.device=cuda without a GPU."""
    configured = config.engine.device
    if configured == "cuda" and not torch.cuda.is_available():
        raise ValueError("engine.device=cuda, but torch sees no GPU: set engine.device=cpu, or install torch with CUDA")
    if configured == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    index = int(os.environ.get("LOCAL_RANK", "0"))
    if index >= torch.cuda.device_count():
        raise ValueError(
            f"engine.num_processes={config.engine.num_processes}, but this machine has {torch.cuda.device_count()} "
            f"GPUs: set engine.num_processes={torch.cuda.device_count()}"
        )
    return torch.device("cuda", index)


def shutdown() -> None:
    """Leave the process group. The process cannot join another group afterwards."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """Return this process's global rank."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes over all machines."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is the one rank that writes files and prints messages."""
    return rank() == 0


def barrier() -> None:
    """Wait until every rank has called this function."""
    if world_size() > 1:
        dist.barrier()


def gather(items: Sequence[T]) -> list[T]:
    """Return the items of all ranks, in rank order, on every rank. Items are plain data."""
    if world_size() == 1:
        return list(items)
    parts: list[Sequence[T]] = [()] * world_size()
    dist.all_gather_object(parts, list(items))
    return [item for part in parts for item in part]


def all_reduce_sum(values: Mapping[str, float]) -> dict[str, float]:
    """Return the sum of each value over the ranks that have it, added in rank order."""
    totals: dict[str, float] = {}
    for part in gather([dict(values)]):
        for name, value in part.items():
            totals[name] = totals.get(name, 0.0) + value
    return totals


def all_reduce_max(values: Mapping[str, float]) -> dict[str, float]:
    """Return the maximum of each value over the ranks that have it."""
    largest: dict[str, float] = {}
    for part in gather([dict(values)]):
        for name, value in part.items():
            largest[name] = max(largest.get(name, value), value)
    return largest


def broadcast(value: T) -> T:
    """Return the main rank's value, which is plain data, on every rank."""
    if world_size() == 1:
        return value
    box: list[T] = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def broadcast_flag(flag: bool) -> bool:
    """Return the main rank's flag on every rank."""
    return broadcast(flag)


def any_rank(flag: bool) -> bool:
    """Return True on every rank if the flag is set on any of them."""
    return any(gather([flag]))


def together(work: Callable[[], T], failure: type[Exception]) -> T:
    """Return this rank's result of ``work``; if it raises ``failure`` on any rank, all ranks raise it."""
    results: list[T] = []
    problems: list[str] = []
    try:
        results.append(work())
    except failure as error:
        problems.append(str(error))
    if everywhere := gather(problems):
        raise failure(everywhere[0])
    return results[0]


def on_main(action: Callable[[], None]) -> None:
    """Run ``action`` on the main rank while the others wait. An OSError or ValueError is raised on every rank."""
    problem: OSError | ValueError | None = None
    if is_main():
        try:
            action()
        except (OSError, ValueError) as error:
            problem = error
    problem = broadcast(problem)
    if problem is not None:
        raise problem
