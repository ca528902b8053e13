"""One process group for a whole test process, which can join only one. This file puts ``tests/`` on the import path."""

from collections.abc import Iterator

import pytest

from longctx_rl.engine import distributed


@pytest.fixture(scope="session", autouse=True)
def kept_process_group() -> Iterator[None]:
    """Runs inside a test process leave its group alone; it is left at the end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "shutdown", lambda: None)
        yield
    distributed.shutdown()
