"""Runs inside the test process leave its process group alone: a process can join only one."""

import pytest

from longctx_rl.engine import distributed


@pytest.fixture(autouse=True)
def kept_process_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "shutdown", lambda: None)
