"""Commands answer help and refuse configurations at once: without importing torch and other heavy libraries."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "transformers", "datasets", "lm_eval", "wandb", "huggingface_hub")
"""Libraries that take seconds to import."""
PLOTTING = ("numpy", "matplotlib")
"""Libraries that only the work of ``longctx_rl.report`` needs."""
OPTIONAL = ("deepspeed", "pyarrow")
"""Libraries that ``longctx_rl`` needs only for engine=zero3 and for data sets, and ``longctx_rl.doctor`` never."""
SPARED = {"longctx_rl": OPTIONAL, "longctx_rl.doctor": OPTIONAL, "longctx_rl.report": PLOTTING}
"""Libraries, besides ``HEAVY``, that a command should not import."""
REPORT = f"""
import atexit, sys
names = {(*HEAVY, *PLOTTING, *OPTIONAL)}
atexit.register(lambda: print("imported:", *(name for name in names if name in sys.modules), file=sys.stderr))
"""
EVALUATE = ("checkpoint=mini-student", "out=out")
TRAIN = ("+algo=dgrpo", "engine=local", "logging=none")
LONGBLOCKS = ("data=longblocks", "task=any", "data.longblocks.path=./nowhere")
HARNESS = ("checkpoint=mini-student", "tasks=[mmlu]", "out=out")


def run(module: str, *arguments: str, folder: Path, **environment: str) -> tuple[int, str, set[str]]:
    """Run a command in a process of its own; returns its exit code, its output, and the libraries it should not import.

    Those are ``HEAVY`` and the command's ``SPARED``.
    """
    code = f"{REPORT}\nimport runpy\nrunpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
    command, variables = [sys.executable, "-c", code, *arguments], os.environ | environment
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True)
    output, _, imported = done.stderr.rpartition("imported:")
    return done.returncode, done.stdout + output, {*HEAVY, *SPARED.get(module, ())} & set(imported.split())


@pytest.mark.parametrize(
    "module",
    [
        "longctx_rl",
        "longctx_rl.doctor",
        "longctx_rl.data",
        "longctx_rl.report",
        "longctx_rl.evaluate",
        "longctx_rl.harness",
        "longctx_rl.evals.functions",
    ],
)
def test_importing_a_command_and_its_help_load_nothing_heavy(module: str, tmp_path: Path) -> None:
    code, output, heavy = run(module, "--help", folder=tmp_path)
    assert (code, heavy) == (0, set())
    assert f"python -m {module}" in output


@pytest.mark.parametrize(
    ("module", "arguments", "problem"),
    [
        ("longctx_rl.evaluate", (*EVALUATE, "itmes=3"), "unknown key itmes"),
        ("longctx_rl.evaluate", (*EVALUATE, "eval=typo"), "eval=typo"),
        ("longctx_rl.evaluate", (*EVALUATE, "eval.items=0"), "eval.items=0"),
        (
            "longctx_rl.evaluate",
            (*EVALUATE, "eval=heldout", "+eval.suites.rular={labels:[a],lengths:[1],max_new_tokens:1}"),
            "eval.suites.rular",
        ),
        (
            "longctx_rl.evaluate",
            (*EVALUATE, "eval=heldout", "eval.suites.heldout.labels=[x]"),
            "eval.suites.heldout.labels=x",
        ),
        ("longctx_rl.evaluate", ("checkpoint=./nowhere", "out=out"), "model ./nowhere"),
        ("longctx_rl.evaluate", (*EVALUATE, "tokenizer=./nowhere"), "model ./nowhere"),
        ("longctx_rl.evaluate", (*EVALUATE, "kl.base=./nowhere"), "model ./nowhere"),
        (
            "longctx_rl.evaluate",
            (*EVALUATE, "eval=heldout", "eval.suites.heldout.lengths=[8192]"),
            "eval.suites.heldout.lengths needs",
        ),
        (
            "longctx_rl.evaluate",
            (*EVALUATE, "eval=short", "eval.suites.humaneval.path=./nowhere.jsonl"),
            "nowhere.jsonl",
        ),
        ("longctx_rl.evaluate", (*EVALUATE[:1], "out=run", "eval=heldout"), "choose another out=FOLDER"),
        ("longctx_rl.evaluate", (*EVALUATE, "eval=heldout", "rollout=vllm", "rollout.python=./nowhere"), "make vllm"),
        ("longctx_rl.harness", (*HARNESS, "limti=3"), "unknown key limti"),
        ("longctx_rl.harness", (*HARNESS, "include=./nowhere"), "include=./nowhere"),
        ("longctx_rl.harness", ("checkpoint=./nowhere", *HARNESS[1:]), "model ./nowhere"),
        ("longctx_rl", ("+algo=sft", "sed=1"), "unknown key sed"),
        ("longctx_rl", ("+algo=sft", "seed=x"), "seed=x"),
        ("longctx_rl", ("+algo=dgrpo", "algo.group_size=1"), "algo.group_size=1"),
        ("longctx_rl", ("+algo=sft", "eval.suites.heldout.labels=[x]"), "eval.suites.heldout.labels=x"),
        ("longctx_rl", ("+algo=sft", "+task.mixture.typo=1"), "task.mixture=typo"),
        ("longctx_rl", ("+algo=sft", "model.student=./nope"), "model ./nope"),
        ("longctx_rl", ("+algo=sft", "--typo"), "--typo"),
        ("longctx_rl", ("-m", "+algo=sft", "optim.lr=1e-4,1e-3"), "run_dir=runs/default/sft-mini-mix-s0"),
        ("longctx_rl", (*TRAIN, "data.lengths=[8192]"), "data.lengths needs 8"),
        ("longctx_rl", (*TRAIN, "eval=short", "eval.suites.humaneval.path=./nowhere.jsonl"), "nowhere.jsonl"),
        ("longctx_rl", (*TRAIN, *LONGBLOCKS), "data.longblocks.path=./nowhere"),
        ("longctx_rl.doctor", ("contxt=1024",), "unknown key contxt"),
        ("longctx_rl.doctor", ("model=mini",), "context="),
        ("longctx_rl.data", ("typo",), "unknown command typo"),
        ("longctx_rl.data", ("inspect", "data=mini"), "data=mini"),
        ("longctx_rl.data", ("inspect", *LONGBLOCKS), "data.longblocks.path=./nowhere"),
        ("longctx_rl.data", ("build",), "documents=FOLDER out=FOLDER"),
        ("longctx_rl.data", ("teacher-cache", "+algo=dgrpo"), "model.teacher_cache=null"),
        ("longctx_rl.data", ("teacher-cache", "+algo=dgrpo", "model.teacher_cache=x"), "model.teacher_cache=null"),
        ("longctx_rl.report", ("tables", "nope"), "no experiments/ here: run this command at the top"),
        ("longctx_rl.evals.functions", ("check", "nowhere.jsonl"), "nowhere.jsonl"),
    ],
)
def test_a_refused_configuration_loads_nothing_heavy(
    module: str, arguments: tuple[str, ...], problem: str, tmp_path: Path
) -> None:
    (tmp_path / "run" / "evals").mkdir(parents=True)
    code, output, heavy = run(module, *arguments, folder=tmp_path)
    assert (code, heavy) == (2, set())
    assert "error: " in output and problem in output and "loading" not in output


def test_a_sandbox_that_is_not_available_is_refused_at_once(tmp_path: Path) -> None:
    arguments = (*EVALUATE, "eval=code", "sandbox=bwrap")
    code, output, heavy = run("longctx_rl.evaluate", *arguments, folder=tmp_path, PATH=str(tmp_path))
    assert (code, heavy) == (2, set())
    assert "bubblewrap" in output and "sandbox=rlimit" in output and not (tmp_path / "out").exists()


def test_the_doctor_imports_no_library_of_models(tmp_path: Path) -> None:
    arguments = ("model=qwen3_1_7b", "context=32768", "devices=8", "memory=80")
    code, output, heavy = run("longctx_rl.doctor", *arguments, folder=tmp_path)
    assert (code, heavy) == (0, {"torch"})
    assert "fits: " in output


def test_a_run_with_engine_local_imports_only_what_it_uses(tmp_path: Path) -> None:
    settings = ("+algo=dgrpo", "+experiment=smoke", "engine=local", "logging=none", "budget.steps=1")
    code, output, heavy = run("longctx_rl", *settings, folder=tmp_path)
    assert code == 0 and "finished after 1 steps" in output
    assert heavy == {"torch", "transformers", "huggingface_hub"}
