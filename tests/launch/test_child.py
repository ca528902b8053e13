"""A run of a sweep as a process: where its output goes, what its exit code means, and how it is stopped."""

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from longctx_rl.config.compose import composed
from longctx_rl.config.load import read
from longctx_rl.config.schema import Config
from longctx_rl.launch.child import Child

Start = Callable[..., Child]
BASE = composed(["+algo=sft"])
MARK_INTERRUPTED = 'touch "${LONGCTX_RL_HANDOVER#*:}/interrupted"'


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return replace(BASE, run_dir=str(tmp_path / "runs" / "default" / "one"), runs_root=str(tmp_path / "runs"))


@pytest.fixture
def start(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Start a run of two at a time, in which a shell script replaces Python."""

    def run(script: str, jobs: int = 2) -> Child:
        executable = tmp_path / "python"
        executable.write_text(f"#!/bin/sh\n{script}\n")
        executable.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(executable))
        return Child(config, "python -m longctx_rl +algo=sft", tmp_path / "log.txt", jobs)

    return run


def exit_code(child: Child) -> int:
    deadline = time.monotonic() + 60
    while (code := child.code()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return code


def wait_for_output(child: Child) -> None:
    deadline = time.monotonic() + 60
    while not child.output():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_runs_at_the_same_time_write_only_to_their_logs(start: Start, capfd: pytest.CaptureFixture[str]) -> None:
    child = start("echo step 1/1; echo error: no >&2", jobs=2)
    assert exit_code(child) == 0
    assert child.output() == "step 1/1\nerror: no\n"
    assert capfd.readouterr() == ("", "")


def test_a_single_run_writes_to_the_terminal_and_its_errors_also_to_the_log(
    start: Start, capfd: pytest.CaptureFixture[str]
) -> None:
    child = start("echo step 1/1; echo error: no >&2", jobs=1)
    assert exit_code(child) == 0
    assert child.output() == "error: no\n"
    assert capfd.readouterr() == ("step 1/1\n", "error: no\n")


def test_the_process_gets_its_configuration_its_command_and_a_share_of_the_cores(
    start: Start, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("longctx_rl.launch.single.cores", lambda: 6)
    child = start(f'cp "$3" {tmp_path}/config.yaml; echo "$1 $2, $LONGCTX_RL_COMMAND, $OMP_NUM_THREADS"', jobs=2)
    assert exit_code(child) == 0
    assert child.output() == "-m longctx_rl.launch.single, python -m longctx_rl +algo=sft, 3\n"
    assert read(tmp_path / "config.yaml") == config


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("exit 0", 0),
        ("exit 2", 2),
        ("kill -KILL $$", 137),
        ("kill -TERM $$", 143),
        (MARK_INTERRUPTED, 130),
        (f"{MARK_INTERRUPTED}; exit 1", 130),
    ],
)
def test_exit_codes(start: Start, script: str, code: int) -> None:
    assert exit_code(start(script)) == code


@pytest.mark.parametrize(("script", "left"), [("exit 0", True), ("exit 1", False)])
def test_a_failed_run_leaves_no_untrained_directory(start: Start, config: Config, script: str, left: bool) -> None:
    run = Path(config.run_dir)
    run.mkdir(parents=True)
    (run / ".lock").touch()
    exit_code(start(script))
    assert run.exists() is left


def test_a_first_request_interrupts_a_run(start: Start) -> None:
    child = start("trap 'echo saved; exit 0' INT; echo ready; while true; do sleep 0.01; done")
    wait_for_output(child)
    assert child.stop(1) and child.stop(1)
    assert exit_code(child) == 0  # its last step was done
    assert child.output() == "ready\nsaved\n"


def test_a_second_request_kills_a_run_with_its_processes(start: Start) -> None:
    endless = "while true; do sleep 0.01; done"
    child = start(f"trap '' INT; ({endless}) & echo $!; {endless}")
    wait_for_output(child)
    below = psutil.Process(int(child.output()))
    child.stop(1)
    time.sleep(0.05)
    assert child.code() is None
    child.stop(2)
    assert exit_code(child) == 130
    deadline = time.monotonic() + 60
    with suppress(psutil.NoSuchProcess):
        while below.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline
