"""Real processes: one, several, several machines, a sweep; what Ctrl-C and kill -9 leave, and the exit codes.

All of them train a fresh mini student on recorded answers for a few steps.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from ports import free_port

SMOKE = ("+experiment=smoke", "model=mini_fresh", "logging=none", "eval=none")
ENDLESS = ("budget.steps=100000", "checkpoint.every=0")


@pytest.fixture(autouse=True)
def nothing_trains_on() -> Iterator[None]:
    """What a failed test started would go on without end, and slow down all tests after it."""
    before = psutil.Process().children(recursive=True)
    yield
    for child in psutil.Process().children(recursive=True):
        if child not in before:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()


def start(arguments: Sequence[str], directory: Path) -> "subprocess.Popen[str]":
    source = str(Path(__file__).parents[2] / "src")
    return subprocess.Popen(
        [sys.executable, "-m", "longctx_rl", *arguments],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    stdout, stderr = process.communicate(timeout=240)
    return process.returncode, stdout, stderr


def wait_for(process: "subprocess.Popen[str]", beginning: str) -> None:
    assert process.stdout
    for line in process.stdout:
        if line.startswith(beginning):
            return
    raise AssertionError(process.communicate()[1])


def steps(run: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_one_process_in_place(tmp_path: Path) -> None:
    code, stdout, stderr = finish(start(["+algo=sft", *SMOKE, "engine=local"], tmp_path))
    assert code == 0, stderr
    assert "finished after 2 steps" in stdout
    run = tmp_path / "runs" / "smoke" / "sft-mini_fresh-mix-s0"
    assert steps(run) == [1, 2]
    described = json.loads((run / "environment.json").read_text())
    assert described["command"].startswith("python -m longctx_rl +algo=sft +experiment=smoke ")
    code, _, stderr = finish(start(["+algo=sft", *SMOKE, "engine=local"], tmp_path))
    assert code == 2
    assert stderr.startswith("error: runs/smoke/sft-mini_fresh-mix-s0 exists already: continue it with resume")


def test_ctrl_c_finishes_the_step_and_fewer_ranks_continue(tmp_path: Path) -> None:
    arguments = ["+algo=sft", *SMOKE, *ENDLESS]
    first = start([*arguments, "engine.num_processes=2"], tmp_path)
    wait_for(first, "step 1/")
    ranks = psutil.Process(first.pid).children()
    assert len(ranks) == 2
    first.send_signal(signal.SIGINT)
    code, stdout, stderr = finish(first)
    assert code == 130, stderr
    done = int(stdout.split("interrupted after step ")[1].split(";")[0])
    assert f"{arguments[-1]} engine.num_processes=2 resume=true" in stdout
    run = tmp_path / "runs" / "smoke" / "sft-mini_fresh-mix-s0"
    assert steps(run) == list(range(1, done + 1))
    assert [path.name for path in (run / "checkpoints").iterdir()] == [f"step-{done:06d}"]

    arguments[-2] = f"budget.steps={done + 1}"
    code, stdout, stderr = finish(start([*arguments, "resume=true"], tmp_path))
    assert code == 0, stderr
    assert steps(run) == list(range(1, done + 2))


def test_killing_the_launcher_kills_its_ranks_and_frees_the_run(tmp_path: Path) -> None:
    arguments = ["+algo=sft", *SMOKE, *ENDLESS, "engine.num_processes=2"]
    first = start(arguments, tmp_path)
    wait_for(first, "step 1/")
    ranks = psutil.Process(first.pid).children()
    first.kill()
    finish(first)
    assert psutil.wait_procs(ranks, timeout=60)[1] == []
    arguments[-3] = "budget.steps=1"
    code, _, stderr = finish(start([*arguments, "resume=true"], tmp_path))
    assert code == 0, stderr
    assert steps(tmp_path / "runs" / "smoke" / "sft-mini_fresh-mix-s0") == [1]


def test_a_refusal_by_all_ranks_is_said_once_and_leaves_nothing(tmp_path: Path) -> None:
    arguments = ["+algo=sft", *SMOKE, "data.lengths=[8192]", "engine.num_processes=2"]
    code, stdout, stderr = finish(start(arguments, tmp_path))
    assert (code, stdout) == (2, "")
    assert stderr.startswith("error: data.lengths") and stderr.count("\n") == 1
    assert not (tmp_path / "runs" / "smoke").exists()


def test_two_machines(tmp_path: Path) -> None:
    """Two agents on loopback; only the one that gets rank 0 reports, and writes the run directory."""
    arguments = ["+algo=sft", *SMOKE, "engine.num_nodes=2", f"engine.rendezvous=127.0.0.1:{free_port()}"]
    agents = [start(arguments, tmp_path) for _ in range(2)]
    outcomes = [finish(agent) for agent in agents]
    assert [code for code, _, _ in outcomes] == [0, 0], outcomes
    assert sum("finished after 2 steps" in stdout for _, stdout, _ in outcomes) == 1
    run = tmp_path / "runs" / "smoke" / "sft-mini_fresh-mix-s0"
    assert steps(run) == [1, 2]
    assert json.loads((run / "environment.json").read_text())["command"]


def test_a_sweep_goes_on_after_a_failure(tmp_path: Path) -> None:
    taken = tmp_path / "runs" / "smoke" / "sft-mini_fresh-mix-s0"
    taken.mkdir(parents=True)
    (taken / "notes.txt").write_text("not a run")
    code, stdout, stderr = finish(start(["-m", "+algo=sft", *SMOKE, "engine=local", "seed=0,1"], tmp_path))
    assert code == 1
    assert stderr.startswith("error: run_dir=runs/smoke/sft-mini_fresh-mix-s0 holds ")
    assert "[2/2] python -m longctx_rl +algo=sft " in stdout
    assert stdout.splitlines()[-3] == "sweep: 1 of 2 runs succeeded"
    assert stdout.splitlines()[-2].startswith("  exit code 2: python -m longctx_rl +algo=sft ")
    assert steps(taken.with_name("sft-mini_fresh-mix-s1")) == [1, 2]


def test_ctrl_c_ends_a_sweep(tmp_path: Path) -> None:
    sweep = start(["-m", "+algo=sft", *SMOKE, *ENDLESS, "engine=local", "seed=0,1"], tmp_path)
    wait_for(sweep, "step 1/")
    sweep.send_signal(signal.SIGINT)
    code, stdout, _ = finish(sweep)
    assert code == 130
    assert "interrupted after step" in stdout and "seed=0 resume=true" in stdout
    assert "[2/2]" not in stdout


def runs(child: psutil.Process, module: str) -> bool:
    with contextlib.suppress(psutil.Error):  # some children of the launcher end at once
        return module in child.cmdline()
    return False


def was_asked(child: psutil.Process) -> bool:
    """Whether Ctrl-C waits for a suspended process to go on."""
    waiting = Path(f"/proc/{child.pid}/status").read_text().split("ShdPnd:")[1].split()[0]
    return bool(int(waiting, 16) & 1 << (signal.SIGINT - 1))


@pytest.mark.parametrize("processes", [1, 2])
def test_a_second_ctrl_c_does_not_wait(tmp_path: Path, processes: int) -> None:
    arguments = ["-m", "+algo=sft", *SMOKE, *ENDLESS, f"engine.num_processes={processes}", "seed=0"]
    sweep = start(arguments, tmp_path)
    wait_for(sweep, "[1/1]")
    launcher = psutil.Process(sweep.pid)
    children: list[psutil.Process] = []
    module, count = ("longctx_rl.launch.single", 1) if processes == 1 else ("longctx_rl.launch.rank", 2)
    while sum(runs(child, module) for child in children) < count:
        assert sweep.poll() is None
        time.sleep(0.05)
        children = launcher.children(recursive=True)
    for child in children:
        child.suspend()  # such a child would never finish its step
    sweep.send_signal(signal.SIGINT)
    while not all(was_asked(child) for child in launcher.children()):  # two signals that come together are one
        assert sweep.poll() is None
        time.sleep(0.05)
    sweep.send_signal(signal.SIGINT)
    assert finish(sweep)[0] == 130
    assert psutil.wait_procs(children, timeout=60)[1] == []
