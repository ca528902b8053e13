"""Every test of this folder has a process group of one rank, and one thread."""

import gc
from collections.abc import Iterator

import pytest
import torch
from engine_cases import config

from longctx_rl.engine import startup


@pytest.fixture(scope="session", autouse=True)
def process_group() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    startup.init(config())
    gc.freeze()  # DeepSpeed collects garbage whenever it builds an engine: half a second over all imported modules
    yield
    gc.unfreeze()
    torch.set_num_threads(threads)
