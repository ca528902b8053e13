"""Commands from start to end: one process, several, several machines; what Ctrl-C and kill -9 leave, and exit codes."""

import contextlib
import json
import shlex
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from command_processes import finish, start, wait_for
from launch.smoke_runs import RUN, SMOKE, Command, steps
from longctx_rl.config.compose import composed
from longctx_rl.policy.weights import SHIPPED
from ports import free_port
from small_runs import assert_same_steps, save_models, smoke, step_rows, train

ENDLESS = ("checkpoint.every=0", "budget.steps=100000")


@pytest.fixture(autouse=True)
def nothing_trains_on() -> Iterator[None]:
    """The processes of a failed test would train without end, and slow down all tests after it."""
    before = psutil.Process().children(recursive=True)
    yield
    for child in psutil.Process().children(recursive=True):
        if child not in before:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()


def checkpoints(run: Path) -> list[str]:
    return [path.name for path in (run / "checkpoints").iterdir()]


def test_one_process_in_place(command: Command, tmp_path: Path) -> None:
    arguments = ("+algo=sft", *SMOKE, "engine=local")
    code, stdout, stderr = command(*arguments)
    assert code == 0, stderr
    assert stdout.startswith("loading torch and transformers") and "finished after 2 steps" in stdout
    run = tmp_path / f"{RUN}0"
    assert stdout.startswith((run / "log.txt").read_text().splitlines(keepends=True)[0])
    assert steps(run) == [1, 2]
    described = json.loads((run / "environment.json").read_text())
    assert described["command"].startswith("python -m longctx_rl +algo=sft +experiment=smoke ")
    code, _, stderr = command(*arguments)
    assert code == 2 and stderr.startswith(f"error: {RUN}0 exists") and "resume=true" in stderr


def test_the_command_after_a_run_can_be_typed(command: Command, tmp_path: Path) -> None:
    """Also where the run's directory needs quotes."""
    code, stdout, stderr = command("+algo=sft", *SMOKE, "engine=local", "budget.steps=1", 'experiment_name="é=1"')
    assert code == 0, stderr
    (follow,) = (line for line in stdout.splitlines() if "+algo=dgrpo" in line and "model.student" in line)
    config = composed(shlex.split(follow)[3:])
    assert (tmp_path / config.model.student / "config.json").is_file()


def test_rows_in_longblocks_columns_without_a_network(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "tests").symlink_to(Path(__file__).parents[1])
    settings = ("engine=local", "logging=none", "algo.group_size=2", f"data.longblocks.cache={tmp_path}")
    code, _, stderr = command("+algo=dgrpo", "+experiment=smoke_longblocks", *settings)
    assert code == 0, stderr
    assert steps(tmp_path / "runs/smoke/dgrpo-mini-any-s0") == [1, 2]


def test_ctrl_c_finishes_the_step_and_fewer_ranks_continue(tmp_path: Path) -> None:
    """Two processes, then one. The numbers of their steps are those of one process that was never interrupted."""
    settings = ["+algo=dgrpo", *save_models(tmp_path / "models"), "eval=none", "algo.updates_per_rollout=2"]
    settings += ["model.scoring_chunk=8", "optim.schedule=constant", *ENDLESS]
    config = smoke(tmp_path / "runs", *settings, "engine=zero3")
    run = Path(config.run_dir)
    first = start(["+experiment=smoke", "logging=none", *settings, "engine.num_processes=2"], tmp_path)
    wait_for(first, "step 1/")
    ranks = psutil.Process(first.pid).children()
    assert len(ranks) == 2
    first.send_signal(signal.SIGINT)
    code, stdout, stderr = finish(first)
    assert code == 130, stderr
    done = int(stdout.split("interrupted after step ")[1].split(";")[0])
    assert f"{ENDLESS[-1]} engine.num_processes=2 resume=true" in stdout
    assert steps(run) == list(range(1, done + 1))
    assert checkpoints(run) == [f"step-{done:06d}"]

    budget = replace(config.budget, steps=done + 1)
    resumed = step_rows(train(replace(config, budget=budget, resume=True)))
    assert steps(run) == list(range(1, done + 2))
    whole = replace(config, budget=replace(config.budget, steps=2), run_dir=str(tmp_path / "runs" / "smoke" / "whole"))
    assert_same_steps(step_rows(train(whole)), resumed[:2])


@pytest.mark.slow
def test_killing_the_launcher_kills_its_ranks_and_frees_the_run(tmp_path: Path) -> None:
    arguments = ["+algo=sft", *SMOKE, "engine.num_processes=2"]
    first = start([*arguments, *ENDLESS], tmp_path)
    wait_for(first, "step 1/")
    ranks = psutil.Process(first.pid).children()
    first.kill()
    finish(first)
    assert psutil.wait_procs(ranks, timeout=60)[1] == []
    code, _, stderr = finish(start([*arguments, ENDLESS[0], "budget.steps=1", "resume=true"], tmp_path))
    assert code == 0, stderr
    assert steps(tmp_path / f"{RUN}0") == [1]


@pytest.mark.slow
def test_a_refusal_by_all_ranks_is_said_once_and_leaves_nothing(tmp_path: Path) -> None:
    """Of something that only a rank can find out: weights that are cut short."""
    model = Path(shutil.copytree(SHIPPED / "mini-student", tmp_path / "model"))
    with (model / "model.safetensors").open("r+b") as weights:
        weights.truncate(1000)
    pretrained = [item for item in SMOKE if not item.startswith("model=")]
    arguments = ["+algo=sft", *pretrained, f"model.student={model}", "engine.num_processes=2"]
    code, stdout, stderr = finish(start(arguments, tmp_path))
    assert code == 2 and stdout.startswith("loading ") and stdout.count("\n") == 1
    assert stderr.startswith(f"error: {model}/model.safetensors is not a complete") and stderr.count("\n") == 1
    assert not (tmp_path / "runs" / "smoke").exists()


@pytest.mark.slow
def test_two_machines(tmp_path: Path) -> None:
    """Two agents on loopback; only the one that gets rank 0 reports, and writes the run directory."""
    arguments = ["+algo=sft", *SMOKE, "engine.num_nodes=2", f"engine.rendezvous=127.0.0.1:{free_port()}"]
    agents = [start(arguments, tmp_path) for _ in range(2)]
    outcomes = [finish(agent) for agent in agents]
    assert [code for code, _, _ in outcomes] == [0, 0], outcomes
    assert sum("finished after 2 steps" in stdout for _, stdout, _ in outcomes) == 1
    run = tmp_path / f"{RUN}0"
    assert steps(run) == [1, 2]
    assert json.loads((run / "environment.json").read_text())["command"]


def test_a_sweep_continues_after_a_failure(command: Command, tmp_path: Path) -> None:
    taken = tmp_path / f"{RUN}0"
    taken.mkdir(parents=True)
    (taken / "notes.txt").write_text("not a run")
    code, stdout, stderr = command("-m", "+algo=sft", *SMOKE, "engine=local", "seed=0,1")
    assert code == 1
    assert stderr.startswith(f"error: run_dir={RUN}0 contains ")
    assert "[2/2] python -m longctx_rl +algo=sft " in stdout
    assert "\nsweep: 1 of 2 runs succeeded\n  exit code 2: python -m longctx_rl +algo=sft " in stdout
    assert f"\n    error: run_dir={RUN}0 contains " in stdout
    assert steps(tmp_path / f"{RUN}1") == [1, 2]


def test_ctrl_c_ends_a_sweep_which_can_continue(tmp_path: Path, command: Command) -> None:
    arguments = ["-m", "+algo=sft", *SMOKE, "engine=local", "seed=0,1"]
    sweep = start([*arguments, *ENDLESS], tmp_path)
    wait_for(sweep, "step 1/")
    sweep.send_signal(signal.SIGINT)
    code, stdout, _ = finish(sweep)
    assert code == 130
    assert "interrupted after step" in stdout and "seed=0 checkpoint.every=0 budget.steps=100000 resume=true" in stdout
    assert "[2/2]" not in stdout
    done = steps(tmp_path / f"{RUN}0")[-1]
    assert checkpoints(tmp_path / f"{RUN}0") == [f"step-{done:06d}"]

    code, stdout, stderr = command(*arguments, ENDLESS[0], f"budget.steps={done + 1}", "resume=true")
    assert code == 0, stderr
    assert "sweep: 2 of 2 runs succeeded" in stdout
    assert [steps(tmp_path / f"{RUN}{seed}") for seed in range(2)] == [list(range(1, done + 2))] * 2


@pytest.mark.slow
def test_ctrl_c_of_two_at_a_time(tmp_path: Path) -> None:
    """Both finish their step and save, and nothing else starts."""
    arguments = ["-m", "+algo=sft", *SMOKE, *ENDLESS, "engine=local", "seed=0,1,2", "sweep.jobs=2"]
    sweep = start(arguments, tmp_path)
    runs = [tmp_path / f"{RUN}{seed}" for seed in range(2)]
    while not all((run / "metrics.jsonl").exists() and steps(run) for run in runs):
        assert sweep.poll() is None
        time.sleep(0.1)
    children = psutil.Process(sweep.pid).children()
    sweep.send_signal(signal.SIGINT)
    code, stdout, _ = finish(sweep)
    assert code == 130
    assert "\ninterrupted; the same command with resume=true " in stdout
    assert "\nstep 1/" not in stdout  # two at a time do not share the terminal
    for run in runs:
        assert checkpoints(run) == [f"step-{steps(run)[-1]:06d}"]
        assert f"{run.name} interrupted after " in stdout
    assert not (tmp_path / f"{RUN}2").exists()
    assert psutil.wait_procs(children, timeout=10)[1] == []


def runs(child: psutil.Process, module: str) -> bool:
    with contextlib.suppress(psutil.Error):  # some children of the launcher end at once
        return module in child.cmdline()
    return False


def has_pending_interrupt(child: psutil.Process) -> bool:
    """Whether Ctrl-C waits for a suspended process to continue."""
    waiting = Path(f"/proc/{child.pid}/status").read_text().split("ShdPnd:")[1].split()[0]
    return bool(int(waiting, 16) & 1 << (signal.SIGINT - 1))


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
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
    while not all(has_pending_interrupt(child) for child in launcher.children()):  # two signals that coincide are one
        assert sweep.poll() is None
        time.sleep(0.05)
    sweep.send_signal(signal.SIGINT)
    assert finish(sweep)[0] == 130
    assert psutil.wait_procs(children, timeout=60)[1] == []
