"""The command ``python -m longctx_rl`` inside the test process, where no process is what is tested."""

import sys
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from launch.smoke_runs import Command
from longctx_rl import __main__
from longctx_rl.config.schema import Config, RunRequest
from longctx_rl.launch import single, sweep


class RunInPlace:
    """A run of a sweep that is trained at once, in place of ``launch.child.Child``, which ``test_child.py`` tests."""

    def __init__(self, config: Config, command: str, log: Path, jobs: int) -> None:
        self.log = log
        with log.open("w") as file, redirect_stderr(file), redirect_stdout(file) if jobs > 1 else nullcontext():
            self._code = single.single(RunRequest(command, config))

    def code(self) -> int:
        return self._code

    def stop(self, requests: int) -> bool:
        return True

    def output(self) -> str:
        return self.log.read_text()


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command line in ``tmp_path``; returns its exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LONGCTX_RL_COMMAND", "")
    monkeypatch.setattr(sweep, "Child", RunInPlace)
    monkeypatch.setattr(sweep, "POLL_SECONDS", 0.0)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exited:
            __main__.main()
        assert isinstance(exited.value.code, int)
        return exited.value.code, *capsys.readouterr()

    return run
