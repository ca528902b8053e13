"""The process of one rank: exit codes, one line for each error, and no process that outlives its launcher."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from longctx_rl.config.compose import composed
from longctx_rl.config.schema import Config
from longctx_rl.launch import rank

Executed = Callable[[Config, Callable[[Config], None]], int]
BASE = composed(["+algo=dgrpo"])


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return replace(BASE, run_dir=str(tmp_path / "runs" / "default" / "one"), runs_root=str(tmp_path / "runs"))


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> Callable[[Config, Callable[[Config], None]], int]:
    """``rank.execute`` with other work in place of the training loop."""

    def run(config: Config, train: Callable[[Config], None]) -> int:
        monkeypatch.setattr(rank, "_train", train)
        return rank.execute(config)

    return run


def train_a_step(path: Path) -> None:
    (path / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss/total": 1.0}) + "\n")


def test_success(executed: Executed, config: Config) -> None:
    assert executed(config, lambda config: train_a_step(Path(config.run_dir))) == 0


def test_a_value_error_is_one_line(executed: Executed, config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(config: Config) -> None:
        raise ValueError("the teacher has another tokenizer: choose another")

    assert executed(config, fail) == 2
    assert capsys.readouterr().err == "error: the teacher has another tokenizer: choose another\n"
    assert not Path(config.run_dir).exists()


def test_a_full_disk(executed: Executed, config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(config: Config) -> None:
        train_a_step(Path(config.run_dir))
        raise OSError(errno.ENOSPC, "No space left on device")

    assert executed(config, fail) == 2
    stderr = capsys.readouterr().err
    assert stderr.startswith(f"error: cannot write {config.run_dir} (No space left on device): free space ")
    assert stderr.endswith("resume=true\n")


def test_too_little_memory(executed: Executed, config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(config: Config) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")

    assert executed(config, fail) == 2
    stderr = capsys.readouterr().err
    assert stderr.startswith("error: out of memory (DefaultCPUAllocator: ") and stderr.count("\n") == 1
    assert "python -m longctx_rl.doctor" in stderr


@pytest.mark.parametrize("steps", [0, 1])
def test_an_interruption_says_how_to_continue(
    steps: int, executed: Executed, config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(config: Config) -> None:
        if steps:
            train_a_step(Path(config.run_dir))
        raise KeyboardInterrupt

    assert executed(config, stop) == 130
    stderr = capsys.readouterr().err
    assert stderr.startswith("interrupted before the step was saved") and stderr.count("\n") == 1
    assert ("; continue with python -m longctx_rl" in stderr) == bool(steps)


def test_a_bug_keeps_its_traceback(executed: Executed, config: Config) -> None:
    def fail(config: Config) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        executed(config, fail)


def test_another_rank_leaves_the_directory_alone(
    executed: Executed, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert executed(config, lambda config: None) == 0
    assert not Path(config.run_dir).exists()


def test_an_interrupted_rank_tells_its_launcher(
    executed: Executed, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(config: Config) -> None:
        raise SystemExit(130)

    with pytest.raises(SystemExit):
        executed(config, stop)
    monkeypatch.setenv(rank.HANDOVER, f"{os.getppid()}:{tmp_path}")
    monkeypatch.setattr(rank, "die_with_launcher", lambda: None)
    assert executed(config, stop) == 0
    assert (tmp_path / "interrupted").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_libraries_load_leaves_nothing(executed: Executed, config: Config, number: int) -> None:
    def load(config: Config) -> None:
        os.kill(os.getpid(), number)
        time.sleep(10.0)

    before = signal.getsignal(number)
    assert executed(config, load) == 130
    assert not Path(config.run_dir).exists()
    assert signal.getsignal(number) == before


def test_a_child_dies_with_its_launcher(tmp_path: Path) -> None:
    code = (
        "import os, subprocess, sys, time\n"
        "child = 'from longctx_rl.launch import rank; rank.die_with_launcher(); "
        "import os, time; print(os.getpid(), flush=True); time.sleep(60)'\n"
        "os.environ['LONGCTX_RL_HANDOVER'] = f'{os.getpid()}:/tmp'\n"
        "subprocess.Popen([sys.executable, '-c', child], start_new_session=True)\n"
        "time.sleep(60)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    launcher = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
    assert launcher.stdout
    child = int(launcher.stdout.readline())
    launcher.kill()
    launcher.wait()
    deadline = time.monotonic() + 50
    while time.monotonic() < deadline:
        state = Path(f"/proc/{child}/stat")
        if not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return
        time.sleep(0.05)
    raise AssertionError("the child outlived its launcher")


def test_a_launched_process_ends_without_destructors() -> None:
    """Exit code and output arrive; what is registered for the regular end does not run."""
    code = "import atexit; from longctx_rl import cli; atexit.register(print, 'end'); print('done'); cli.leave(3)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (3, "done\n", "")
