"""One process group for a whole test process, which can join only one. This file puts ``tests/`` on the import path.

Hypothesis draws the same examples in every run, and an example may take as long as a busy machine makes it take.
"""

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from longctx_rl.engine import distributed

settings.register_profile("same", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("same")


@pytest.fixture(scope="session", autouse=True)
def kept_process_group() -> Iterator[None]:
    """Runs inside a test process leave its group alone; it is left at the end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "shutdown", lambda: None)
        yield
    distributed.shutdown()
