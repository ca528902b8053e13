"""Reading run directories that are complete, truncated, broken or written by another version."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from longctx_rl.report.runs import Run, find_evaluations, find_runs, read_evals
from report.run_folders import write_run

ROWS = [{"step": 0, "eval/heldout/mean": 0.5}, {"step": 1, "loss/total": None}]
SCORES = {("heldout", "multihop", 256): [1.0, 0.0]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_run(tmp_path, "+algo=grpo", "seed=3", "experiment_name=t", evaluations={0: SCORES}, rows=ROWS)


def only_run(root: Path) -> Run:
    (run,) = find_runs(root)
    return run


def test_a_whole_run_is_read_without_complaint(folder: Path) -> None:
    (folder / "rollouts").mkdir()
    (folder / "rollouts" / "step-000010.jsonl").write_text('{"id": "a"}\n{"id": ')
    run = only_run(folder.parent)
    assert (run.algo, run.seed, run.name) == ("grpo", 3, "grpo-mini-mix-s3")
    assert run.metrics == ROWS
    assert [record.score for record in read_evals(run.path)["heldout"][0]] == [1.0, 0.0]
    assert run.rollouts() == {10: [{"id": "a"}]}
    assert (run.problems, run.finished) == ((), True)


def test_what_is_cut_off_is_left_out_and_named(folder: Path) -> None:
    with (folder / "metrics.jsonl").open("a") as metrics:
        metrics.write('oops\n{"no_step": 1}\n{"step": 2, "lo')
    with (folder / "evals" / "heldout.jsonl").open("a") as evals:
        evals.write('{"step": 1, "task": "future"}\n{"st')
    run = only_run(folder.parent)
    assert run.metrics == ROWS
    assert [problem.split("metrics.jsonl ")[1].partition(",")[0] for problem in run.problems] == [
        "ends in the middle of a line",
        "has 1 lines that are not JSON objects",
        "has 1 rows that are not metrics",
    ]
    assert len(read_evals(run.path)["heldout"][0]) == 2


def test_lines_that_no_parser_takes_are_left_out_and_counted(folder: Path) -> None:
    with (folder / "metrics.jsonl").open("ab") as metrics:
        metrics.write(b"[" * 100_000 + b"\n" + b"9" * 5_000 + b'\n{"a": "\xff"}\n[1]\n\n')
    run = only_run(folder.parent)
    assert run.metrics == ROWS
    (problem,) = run.problems
    assert "metrics.jsonl has 5 lines that are not JSON objects" in problem


def test_a_run_of_another_version_is_named(folder: Path) -> None:
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("experiment_name:", "name_of_experiment:"))
    environment = json.loads((folder / "environment.json").read_text()) | {"longctx_rl": "9.9"}
    (folder / "environment.json").write_text(json.dumps(environment))
    first, second = only_run(folder.parent).problems
    assert "config.yaml was written by another version (unknown key name_of_experiment" in first
    assert "was made by longctx_rl 9.9" in second


def test_broken_files_cost_what_they_held_and_no_more(folder: Path) -> None:
    (folder / "config.yaml").write_text("{")
    (folder / "environment.json").write_text("")
    (folder / "finished.json").unlink()
    run = only_run(folder.parent)
    assert (run.algo, run.seed, run.finished) == ("unknown", -1, False)
    assert len(run.problems) == 3
    assert run.metrics == ROWS


def test_a_run_without_metrics_is_used_and_marked(folder: Path) -> None:
    (folder / "metrics.jsonl").unlink()
    run = only_run(folder.parent)
    assert run.metrics == [] and len(read_evals(run.path)["heldout"][0]) == 2
    assert [problem.rpartition("/")[2] for problem in run.problems] == ["metrics.jsonl is missing"]


def test_an_evaluation_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "evaluation.json").write_text('{"checkpoint": ')
    with pytest.raises(
        ValueError,
        match=r"base/evaluation\.json is not JSON: remove this folder",
    ):
        find_evaluations(tmp_path)


def test_no_runs_at_all_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"{tmp_path}: give a folder"):
        find_runs(tmp_path)


def test_reports_do_not_import_torch() -> None:
    code = (
        "import importlib, pkgutil, sys, longctx_rl.report as room\n"
        "names = [one.name for one in pkgutil.walk_packages(room.__path__, 'longctx_rl.report.')]\n"
        "for name in names: importlib.import_module(name)\n"
        "assert len(names) > 20 and 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
