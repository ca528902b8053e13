"""Bad input: one sentence with the fix, exit code 2, nothing written."""

import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from longctx_rl.__main__ import main

BAD: dict[str, tuple[str, ...]] = {
    "": ("+algo=sft|kd|grpo|opd|dgrpo",),
    "algo=dgrpo": ("algo=dgrpo ", "write +algo=dgrpo"),
    "++algo=dgrpo": ("++algo=dgrpo:", "a single plus, +algo=dgrpo"),
    "+algo=dgrpo +algo=grpo": ("algo is chosen more than once", "sweep with -m"),
    "+algo=GRPO": ("algo=GRPO: did you mean grpo?",),
    "+algo=null": ("+algo=null:", "dgrpo, dgrpo_self, grpo"),
    "+algo=[sft,kd]": ("+algo=[sft,kd]:", "-m +algo=sft,kd"),
    "+algo=sft,kd": ("+algo=sft,kd gives several values: add -m",),
    "+algo=sft model=${x}": ("model=${x}:", "by its name, such as mini,"),
    "+algo=sft experiment=smoke": ("experiment=smoke ", "write +experiment=smoke"),
    "dgrpo": ("dgrpo is a value without a key: write +algo=dgrpo",),
    "mini +algo=sft": ("mini is a value without a key: write data=mini or model=mini",),
    "+algo": ("+algo has no value: write +algo=NAME with one of dgrpo, ",),
    "+algo=": ("algo=: choose one of dgrpo, ",),
    "algo = dgrpo": ("algo has no value: write +algo=NAME",),
    "+algo=sft seed:1": ("seed:1 ", "without spaces around =, such as seed=1"),
    "+algo=sft 'seed = 1'": ("'seed ' is not a key",),
    "+algo=sft =1": ("=1 has no key: write KEY=VALUE",),
    "+algo=sft ''": ("'' is not of the form KEY=VALUE",),
    "+algo=sft optim[lr]=1": ("'optim[lr]' is not a key", "optim.lr=1e-4"),
    "+algo=sft data.lengths=[1": ("data.lengths=[1:", "close every bracket"),
    "+algo=sft logging.tags=[é]": ("logging.tags=[é]:", "quote each text"),
    "+algo=sft model.student=/x=y": ("model.student=/x=y ", "'model.student=\"/x=y\"'"),
    "+algo=sft experiment_name=é:1": ("experiment_name=é:1 ", "'experiment_name=\"é:1\"'"),
    "+algo=sft 'experiment_name=a\nb'": ("experiment_name=a b ", "'experiment_name=\"a b\"'"),
    "+algo=sft 'experiment_name=\"a'": ('experiment_name="a ', "quote the value, experiment_name=a"),
    "+algo=sft +seed=1": ("+seed=1:", "write seed=1"),
    "--algo dgrpo": ("--algo is not an option", "write +algo=VALUE"),
    "-algo=dgrpo": ("-algo=dgrpo is not an option", "write +algo=dgrpo"),
    "-model=mini": ("-model=mini is not an option", "write model=mini"),
    "--seed=1": ("--seed=1 is not an option", "write seed=1"),
    "--cfg nope": ("--cfg", "nope", "--help"),
    "--cfg job +algo=sft model.student=/x=y": ("'model.student=\"/x=y\"'",),
    "--cfg job -m +algo=sft": ("Only one of",),
    "--package x +algo=sft": ("--package starts no run", "--cfg job"),
    "--config-dir nowhere +algo=sft": ("--config-dir nowhere is not a folder",),
    "+algo=sft hydra/launcher=submitit_slurm": ("hydra/launcher ", "add -m"),
    "+algo=sft sweep.plan=true": ("sweep.plan=true ", "add -m"),
    "-m +algo=sft seed=range(0,0)": ("seed=range(0,0) gives no values",),
    "-m +algo=sft seed=0,0": ("run_dir=runs/default/sft-mini-mix-s0", "give each value once"),
    "+algo=sft optim.LR=1": ("unknown key optim.LR:", "optim.lr?"),
    "+algo=sft optim.lr=nan": ("optim.lr=nan:", "a number, finite"),
    "+algo=sft rollout.temperature=inf": ("rollout.temperature=inf:", "a number, finite"),
    "+algo=sft seed=1e30": ("seed=1e+30:", "within 64 bits"),
    "+algo=sft 'optim.lr=\"1e-4\"'": ("optim.lr=1e-4:", "not a text", "${oc.decode:${oc.env:NAME}}"),
    "+algo=sft experiment_name=1e-4": ("experiment_name=0.0001:", "so quote it"),
    "+algo=sft experiment_name=": ("experiment_name=:", "the name of one folder", "runs_root=FOLDER"),
    "+algo=sft experiment_name=..": ("experiment_name=..:", "the name of one folder"),
    "+algo=sft experiment_name=a/b": ("experiment_name=a/b:", "the name of one folder"),
    "+algo=sft run_dir=.": ("run_dir=.:", "a folder for this run alone"),
    "+algo=sft model.student=": ("model.student is empty:",),
    "+algo=sft ~model": ("run_dir is missing or cannot be resolved", "'model.name' not found"),
    "+algo=sft engine.threads=100000": ("engine.threads=100000:", "at most 1024, or null"),
    "+algo=typo": ("algo=typo:", "dgrpo, dgrpo_self, grpo, kd, opd, opsd, sft"),
    "+algo=_base": ("algo has no name", "+algo=sft|kd|grpo|opd|dgrpo"),
    "+algo=dgrpo ~algo.clip_low": ("missing key algo.clip_low:", "algo.clip_low=..."),
    "+algo=dgrpo ~algo.ref.estimator": ("missing key algo.ref.estimator:", "algo.ref.estimator=..."),
    "+algo=sft modell=mini": ("unknown key modell:", "model?"),
    "+algo=sft sed=1": ("unknown key sed:", "seed?"),
    "+algo=sft +sed=1": ("unknown key sed=1:", "seed?"),
    "+algo=sft optim.lrr=1": ("unknown key optim.lrr:", "optim.lr?"),
    "+algo=dgrpo algo.weights.beta=1": ("unknown key algo.weights.beta:", "ce, pg, kd, ref"),
    "+algo=sft +exp=t1": (
        "unknown key exp=t1:",
        "algo, model, task, data, engine, rollout, reward, eval, logging, optim, budget, batch, checkpoint, sandbox, "
        "seed, experiment_name, runs_root, run_dir, resume, sweep",
    ),
    "+algo=sft sandbox=none": ("sandbox=none:", "auto, bwrap, rlimit"),
    "+algo=sft eval.suites.heldout.lenghts=[256]": (
        "unknown key eval.suites.heldout.lenghts:",
        "eval.suites.heldout.lengths?",
    ),
    "+algo=sft eval.suites.heldout.level=1": (
        "unknown key eval.suites.heldout.level:",
        "+eval.suites.heldout.level=",
    ),
    "+algo=sft eval.suites.heldout.labels=[]": ("eval.suites.heldout ", "labels and lengths", "~eval.suites.heldout"),
    "+algo=sft eval.suites.heldout.lengths=[256,256]": ("eval.suites.heldout ", "each label and each length once"),
    "+algo=sft eval=code eval.suites.code.level=3": ("eval.suites.code.level=3:", "0, 1 or 2"),
    "+algo=sft seed=x": ("seed=x:", "a whole number"),
    "+algo=sft optim.lr=abc": ("optim.lr=abc:", "a number"),
    "+algo=sft model.lr=1e-4": ("model.lr=0.0001:", "a group of keys"),
    "+algo=sft resume=3": ("resume=3:", "true or false"),
    "+algo=sft data.lengths=512": ("data.lengths=512:", "data.lengths=[...]"),
    "+algo=sft model.dtype=fp8": ("model.dtype=fp8:", "float32, bfloat16"),
    "+algo=sft optim=1": ("optim=1:", "a group of keys"),
    "+algo=sft 'runs_root=${x}'": ("'x'", "not found"),
    "+algo=dgrpo algo.group_size=1": ("algo.group_size=1 ", "algo.weights.pg=1.0", "at least 2", "algo.group_size=8"),
    "+algo=sft algo.weights.pg=1": (
        "algo.weights.pg=1.0 ",
        "algo.source=dataset",
        "set algo.weights.pg=0 or algo.source=policy",
    ),
    "+algo=opd model.teacher=null": ("algo.weights.kd=1.0 ", "set model.teacher=<directory or Hub id>"),
    "+algo=opd algo.kd.estimator=k1": (
        "algo.kd.estimator=k1 ",
        "set algo.kd.placement=advantage",
        "algo.kd.estimator=k2",
    ),
    "+algo=opd algo.kd.placement=advantage": (
        "algo.kd.placement=advantage ",
        "not exact",
        "set algo.kd.placement=loss or algo.kd.estimator=k1",
    ),
    "+algo=opd model.teacher_cache=x": ("model.teacher_cache=x ", "+algo=opd", "set model.teacher_cache=null"),
    "+algo=opd model.teacher=host:8000": ("model.teacher=host:8000:", "http://host:port", "a directory or Hub id"),
    "+algo=opd model.teacher=ftp://host": ("model.teacher=ftp://host:", "http://host:port"),
    "+algo=opd model.teacher=http://host/v1": ("model.teacher=http://host/v1:", "http://host:port"),
    "+algo=opd model.teacher=http://host": (
        "algo.kd.estimator=exact ",
        "the server http://host ",
        "set algo.kd.estimator=topk",
    ),
    "+algo=opd model.teacher=http://host algo.kd.estimator=topk rollout.temperature=0.7": (
        "rollout.temperature=0.7:",
        "the server http://host ",
        "set rollout.temperature=1",
    ),
    "+algo=kd model.teacher=http://host algo.kd.estimator=topk model.teacher_cache=x": (
        "model.teacher_cache=x ",
        "model.teacher=http://host ",
        "set model.teacher_cache=null",
    ),
    "+algo=opsd model.teacher=http://host": (
        "model.teacher=http://host ",
        "algo.kd.teacher=initial:",
        "set model.teacher=null, or algo.kd.teacher=external",
    ),
    "+algo=opd data.questions_per_document=2": (
        "data.questions_per_document=2 ",
        "+algo=opd",
        "set data.questions_per_document=1",
    ),
    "+algo=kd batch.backward=one_at_a_time": (
        "batch.backward=one_at_a_time ",
        "+algo=kd",
        "set batch.backward=packed",
    ),
    "+algo=sft engine=local engine.num_processes=2": (
        "engine=local ",
        "not 2",
        "set engine.num_processes=1 or engine=zero3",
    ),
    "+algo=sft engine.num_processes=9": (
        "9 ranks ",
        "batch.prompts_per_step=8 ",
        "set batch.prompts_per_step to at least 9",
        "fewer processes",
    ),
    "+algo=sft engine.num_nodes=2": ("engine.num_nodes=2 ", "engine.rendezvous=<host of the first machine>:<port>"),
    "+algo=sft data.families=0": ("data.families=0 ", "1 or more, or null"),
    "+algo=sft model=mini_fresh model.student=runs/a/b/export": (
        "model.student=runs/a/b/export ",
        "set model.architecture=null, or choose model=mini",
    ),
    "+algo=sft model=mini_fresh 'model.yarn={factor: 2, original_context: 9}'": (
        "model.yarn ",
        "set model.yarn=null",
        "model.architecture.max_length",
    ),
    "+algo=sft 'data.lengths=[-1,512]'": ("data.lengths=-1:", "0 or more"),
    "+algo=sft 'data.lengths=[]'": ("data.lengths=[]:", "data.lengths=[256]"),
    "+algo=sft data=long90 data.short.share=1": (
        "data.short.share=1.0:",
        "between 0 and 1",
        "data.short=null",
    ),
    "+algo=sft data=long90 'data.short.lengths=[]'": ("data.short.lengths=[]:", "0 or more, such as [256]"),
    "+algo=sft data=long90 'data.short.lengths=[-1,9]'": ("data.short.lengths=[-1, 9]:", "0 or more, such as [256]"),
    "+algo=sft data=long90 '~data.short.mixture' '+data.short.mixture={code: 0}'": (
        "data.short.mixture={'code': 0.0} ",
        "at least one task a share above 0",
    ),
    "+algo=sft budget.seconds=0": ("budget.seconds=0.0:", "above 0, or null"),
    "+algo=sft 'optim.betas=[2,0.9]'": (
        "optim.betas=[2.0, 0.9]:",
        "two numbers from 0 up to below 1",
        "[0.9, 0.95]",
    ),
    "+algo=sft eval.times=2": ("eval.every=20 ", "eval.times=2 ", "set one of them to 0"),
    "+algo=sft budget.steps=null": ("budget has no limit", "set budget.steps"),
    "+algo=sft sweep.jobs=0": ("sweep.jobs=0:", "above 0"),
    "+algo=sft checkpoint.every=-1": ("checkpoint.every=-1:", "0 or more"),
    "+algo=sft eval.during_items=0": ("eval.during_items=0:", "set both above 0", "eval.suites", "eval=none"),
    "+algo=sft eval.items=0": ("eval.items=0,", "set both above 0", "eval.suites", "eval=none"),
}
"""Arguments to what the error line names: the key with its value, then the fix with its key or its choices."""


class Outcome:
    """The result of one command."""

    def __init__(self, code: int, stdout: str, stderr: str) -> None:
        self.code, self.stdout, self.stderr = code, stdout, stderr


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Outcome]:
    """Run ``python -m longctx_rl`` in an empty directory, in this process, because a new process takes a second."""

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
        return Outcome(code, *capfd.readouterr())

    return run


@pytest.mark.parametrize("arguments", BAD)
def test_bad_input_gets_one_sentence(arguments: str, start: Callable[..., Outcome], tmp_path: Path) -> None:
    result = start(arguments)
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1 and result.stderr.endswith("\n")
    assert [part for part in BAD[arguments] if part not in result.stderr] == []
    assert (result.code, result.stdout) == (2, "")
    assert not list(tmp_path.iterdir())


def test_a_wrong_option_name_lists_the_right_ones(start: Callable[..., Outcome]) -> None:
    result = start("+algo=sft model=typo")
    assert result.stderr.startswith("error: model=typo: ") and "mini, mini_after_kd, " in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_traceback_on_request(start: Callable[..., Outcome]) -> None:
    assert "Traceback" in start("+algo=sft seed=x", LONGCTX_RL_TRACEBACK="1").stderr
    assert "MissingConfigException" in start("+algo=typo", HYDRA_FULL_ERROR="1").stderr


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
    assert "run_dir=runs/default/sft-mini-mix-s0" in result.stderr and "'run_dir=${runs_root}/" in result.stderr


def test_a_sweep_continues_after_a_run_that_cannot_start(start: Callable[..., Outcome], tmp_path: Path) -> None:
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
