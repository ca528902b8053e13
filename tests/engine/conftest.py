"""One process group for all tests of this folder: a process can join only one."""

from collections.abc import Iterator

import pytest
import torch
from engine_cases import config

from longctx_rl.engine import distributed


@pytest.fixture(scope="session", autouse=True)
def process_group() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    distributed.init(config())
    yield
    distributed.shutdown()
    torch.set_num_threads(threads)
