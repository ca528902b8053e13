"""Fixtures of all tests. This file puts ``tests/`` on the import path.

Hypothesis draws the same examples in every run, and an example may take as long as a busy machine needs.
"""

import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from longctx_rl.engine import distributed

settings.register_profile("same", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("same")


@pytest.fixture(scope="session", autouse=True)
def kept_process_group() -> Iterator[None]:
    """A process can join only one process group, so runs inside a test process keep it until the end of the session."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "shutdown", lambda: None)
        yield
    distributed.shutdown()


@pytest.fixture(autouse=True)
def signal_handlers() -> Iterator[None]:
    """Runs inside a test process take over its signals; each test gives them back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
