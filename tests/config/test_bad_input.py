"""Bad input: one sentence with the fix, exit code 2, nothing written."""

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.errors import HydraException

from longctx_rl.__main__ import main

BAD = {
    "": "choose an algorithm: +algo=sft|kd|grpo|opd|dgrpo",
    "algo=dgrpo": "Could not override 'algo'. No match in the defaults list. "
    "To append to your default list use +algo=dgrpo",
    "+algo=typo": "algo=typo: choose one of dgrpo, grpo, kd, opd, sft",
    "+algo=sft modell=mini": "unknown key modell: did you mean model?",
    "+algo=sft sed=1": "unknown key sed: did you mean seed?",
    "+algo=sft +sed=1": "unknown key sed=1: did you mean seed?",
    "+algo=sft optim.lrr=1": "unknown key optim.lrr: did you mean optim.lr?",
    "+algo=dgrpo algo.weights.beta=1": "unknown key algo.weights.beta: choose from ce, pg, kd, ref",
    "+algo=sft +exp=t1": "unknown key exp=t1: choose from algo, model, task, data, engine, rollout, reward, eval, "
    "logging, optim, budget, batch, checkpoint, sandbox, seed, experiment_name, runs_root, run_dir, resume, sweep",
    "+algo=sft sandbox=none": "sandbox=none: choose one of auto, bwrap, rlimit",
    "+algo=sft eval.suites.heldout.lenghts=[256]": "unknown key eval.suites.heldout.lenghts: "
    "did you mean eval.suites.heldout.lengths?",
    "+algo=sft eval.suites.heldout.labels=[]": "eval.suites.heldout asks nothing: give labels and lengths, "
    "or leave the suite out with ~eval.suites.heldout",
    "+algo=sft eval=code eval.suites.code.level=3": "eval.suites.code.level=3: choose 0, 1 or 2",
    "+algo=sft seed=x": "seed=x: expected a whole number",
    "+algo=sft optim.lr=abc": "optim.lr=abc: expected a number",
    "+algo=sft model.lr=1e-4": "model.lr=0.0001: expected a group of keys, not a single value",
    "+algo=sft resume=3": "resume=3: expected true or false",
    "+algo=sft data.lengths=512": "data.lengths=512: expected a list, such as data.lengths=[...]",
    "+algo=sft model.dtype=fp8": "model.dtype=fp8: choose one of float32, bfloat16",
    "+algo=sft optim=1": "optim=1: expected a group of keys, not a single value",
    "+algo=sft 'runs_root=${x}'": "a value is missing or cannot be resolved: Interpolation key 'x' not found",
    "+algo=dgrpo algo.group_size=1": "algo.group_size=1 with algo.weights.pg=1.0: an advantage relative to the group "
    "needs at least 2 completions, set algo.group_size=8",
    "+algo=sft algo.weights.pg=1": "algo.weights.pg=1.0 needs tokens drawn from the policy, but algo.source=dataset: "
    "set algo.weights.pg=0 or algo.source=policy",
    "+algo=opd model.teacher=null": "algo.weights.kd=1.0 needs a teacher: set model.teacher=<directory or Hub id>",
    "+algo=opd algo.kd.estimator=k1": "algo.kd.estimator=k1 as a loss has a gradient that does not depend on the "
    "anchor: set algo.kd.placement=advantage (k1 inside the advantage), or algo.kd.estimator=k2",
    "+algo=sft engine=local engine.num_processes=2": "engine=local runs in one process, not 2: set "
    "engine.num_processes=1 or engine=zero3",
    "+algo=sft engine.num_processes=9": "9 ranks cannot share batch.prompts_per_step=8 prompts: set "
    "batch.prompts_per_step to at least 9, or use fewer processes",
    "+algo=sft engine.num_nodes=2": "engine.num_nodes=2 needs engine.rendezvous=<host of the first node>:<port>",
    "+algo=sft data.families=0": "data.families=0 makes an empty training split: set it to 1 or more, or null for "
    "endless",
    "+algo=sft model=mini_fresh model.student=runs/a/b/export": "model.architecture starts from random "
    "weights, so model.student=runs/a/b/export would be left out: set model.architecture=null, or choose model=mini",
    "+algo=sft 'data.lengths=[-1,512]'": "data.lengths=-1: set it to 0 or more",
    "+algo=sft data=long90 data.short.share=1": "data.short.share=1.0: set it between 0 and 1, or "
    "data.short=null for none",
    "+algo=sft data=long90 'data.short.lengths=[]'": "data.short.lengths=[]: give at least one prompt length of 0 or "
    "more, such as [256]",
    "+algo=sft data=long90 'data.short.lengths=[-1,9]'": "data.short.lengths=[-1, 9]: give at least one prompt "
    "length of 0 or more, such as [256]",
    "+algo=sft data=long90 '~data.short.mixture' '+data.short.mixture={code: 0}'": "data.short.mixture={'code': 0.0} "
    "leaves nothing to train on: give at least one task a share above 0",
    "+algo=sft budget.seconds=0": "budget.seconds=0.0: set it above 0, or null for none",
    "+algo=sft 'optim.betas=[2,0.9]'": "optim.betas=[2.0, 0.9]: give two numbers from 0 up to below 1, such as "
    "[0.9, 0.95]",
    "+algo=sft eval.times=2": "eval.every=20 and eval.times=2 both say when to evaluate: set one of them to 0",
    "+algo=sft budget.steps=null": "the budget has no limit, so the run would not end: set budget.steps, or one of the "
    "others",
    "+algo=sft sweep.jobs=0": "sweep.jobs=0: set it above 0",
    "+algo=sft checkpoint.every=-1": "checkpoint.every=-1: set it to 0 or more",
    "+algo=sft eval.during_items=0": "the evaluation split is empty: set eval.items and eval.during_items above 0, "
    "give eval.suites, or choose eval=none",
    "+algo=sft eval.items=0": "the evaluation split is empty: set eval.items and eval.during_items above 0, "
    "give eval.suites, or choose eval=none",
}


class Outcome:
    """What one command did."""

    def __init__(self, code: int, stdout: str, stderr: str) -> None:
        self.code, self.stdout, self.stderr = code, stdout, stderr


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Outcome]:
    """``python -m longctx_rl`` in an empty directory, within this process: a process of its own takes a second."""

    def run(arguments: str, **environment: str) -> Outcome:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["longctx_rl", *shlex.split(arguments)])
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        assert "LONGCTX_RL_SCRATCH" not in os.environ  # or later sweeps keep their jobs in a folder that is gone
        return Outcome(code, *capfd.readouterr())

    return run


@pytest.mark.parametrize("arguments", BAD)
def test_bad_input_gets_one_sentence(arguments: str, start: Callable[..., Outcome], tmp_path: Path) -> None:
    result = start(arguments)
    assert result.stderr == f"error: {BAD[arguments]}\n"
    assert (result.code, result.stdout) == (2, "")
    assert not list(tmp_path.iterdir())


def test_a_wrong_option_name_lists_the_right_ones(start: Callable[..., Outcome]) -> None:
    result = start("+algo=sft model=typo")
    assert result.stderr.startswith("error: model=typo: choose one of mini, ")
    assert result.stderr.count("\n") == 1


def test_an_unknown_flag_shows_the_usage(start: Callable[..., Outcome]) -> None:
    result = start("--hlep")
    assert "unrecognized arguments: --hlep" in result.stderr and "--help" in result.stderr
    assert result.code == 2


def test_a_traceback_on_request(start: Callable[..., Outcome]) -> None:
    assert "Traceback" in start("+algo=sft seed=x", LONGCTX_RL_TRACEBACK="1").stderr
    with pytest.raises(HydraException):
        start("+algo=typo", HYDRA_FULL_ERROR="1")


def test_an_unwritable_directory(start: Callable[..., Outcome], tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file in the way")
    result = start("+algo=sft engine=local")
    assert result.code == 2
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert "runs_root=" in result.stderr


def test_an_unwritable_directory_of_a_sweep(start: Callable[..., Outcome], tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file in the way")
    result = start("-m +algo=sft seed=0,1")
    assert result.code == 2
    assert [line.startswith("error: ") and "runs_root" in line for line in result.stderr.splitlines()] == [True]


def test_a_sweep_whose_runs_would_share_a_directory(start: Callable[..., Outcome]) -> None:
    result = start("-m +algo=sft optim.lr=1e-4,1e-3")
    assert result.code == 2
    assert "several runs of this sweep share run_dir=runs/default/sft-mini-mix-s0: name what differs" in result.stderr


def test_a_sweep_goes_on_after_a_run_that_cannot_start(start: Callable[..., Outcome], tmp_path: Path) -> None:
    result = start("-m +algo=grpo algo.group_size=0,1 'run_dir=runs/${algo.group_size}'")
    assert result.code == 1
    assert result.stderr.count("error: algo.group_size=") == 2
    assert "sweep: 0 of 2 runs succeeded" in result.stdout
    assert "exit code 2: python -m longctx_rl +algo=grpo algo.group_size=1 'run_dir=" in result.stdout
    assert start("-m +algo=typo,dgrpo").code == 2
    assert not list(tmp_path.iterdir())


def test_help_teaches(start: Callable[..., Outcome]) -> None:
    result = start("--help")
    assert result.code == 0
    for part in (
        *("+algo=sft", "+algo=kd", "+algo=grpo", "+algo=opd", "+algo=dgrpo"),
        *("model=mini task=multihop seed=1", "-m +algo=sft,kd", "+experiment=table1", "resume=true", "runs/"),
        *("model: mini, ", "task: any, code, copy, drill, grounding, longform", "experiment: ", "engine: local, zero3"),
    ):
        assert part in result.stdout


def test_help_and_errors_are_quick(tmp_path: Path) -> None:
    """In a process of its own, without torch. Processor time, which other work on the machine does not stretch."""
    source = Path(__file__).parents[2] / "src"
    environment = os.environ | {"PYTHONPATH": str(source)}
    code = "import sys, longctx_rl.__main__; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    command = [sys.executable, "-m", "longctx_rl", "+algo=sft", "seed=x"]
    spent = []
    for _ in range(3):  # the first may read files from a disk, and a core's other thread slows each
        begin = processor_seconds()
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert (result.returncode, result.stderr) == (2, "error: seed=x: expected a whole number\n")
        spent.append(processor_seconds() - begin)
    assert min(spent) < 3.0


def processor_seconds() -> float:
    """Of all finished child processes."""
    times = os.times()
    return times.children_user + times.children_system
