"""From runs to committed results: what is kept and what is rejected, and that nothing is lost."""

import json
import shutil
from pathlib import Path

import pytest

from longctx_rl.report import comparison, results
from longctx_rl.report.collect import collect, curves_of
from longctx_rl.report.experiment import Experiment
from report.run_folders import answers, append_scores, write_evaluation, write_run


def test_what_is_collected_is_what_the_runs_hold(grid: Path, experiment: Experiment) -> None:
    said = collect(experiment, grid)
    assert said.startswith("8 results written")
    found = {result.name: result for result in results.read_all(experiment.results)}
    run = found["grpo-mini-mix-s2"]
    assert (run.algo, run.seed, run.steps, run.problems) == ("grpo", 2, [0, 5, 10], ())
    bury = run.cells["code", "bury", 1024].scores
    assert sum(bury[10].values()) == 14 and len(bury[10]) == 20
    assert sum(bury[5].values()) == 5 and len(bury[5]) == 10  # fewer items during training
    assert run.costs[0]["trained_tokens"] == 0 and run.costs[10] == run.costs[5] | {
        "step": 10,
        "prompts": 80,
        "trained_tokens": 2000,
        "flops": 1e10,
        "wall_seconds": 20,
    }
    assert run.config["algo.weights.pg"] == 1.0 and "run_dir" not in run.config
    assert run.origin["student"] and "name" not in run.origin["machine"]
    assert run.curves["rollout/reward_mean"] == [step / 10 for step in range(1, 11)]
    assert "grad/norm" not in run.curves  # never finite
    assert (found["base"].seed, found["base"].trained, found["base"].steps) == (None, False, [0])


def test_collecting_again_changes_nothing_and_keeps_what_has_no_run(grid: Path, experiment: Experiment) -> None:
    collect(experiment, grid)
    before = {path: path.read_bytes() for path in experiment.results.iterdir()}
    for path in sorted((grid / "table1").glob("sft-*")):
        path.rename(grid / path.name)
    assert "5 results written" in collect(experiment, grid)
    assert {path: path.read_bytes() for path in experiment.results.iterdir()} == before


def test_unfinished_and_broken_runs_are_named(grid: Path, experiment: Experiment) -> None:
    (grid / "table1" / "sft-mini-mix-s0" / "finished.json").unlink()
    with (grid / "table1" / "sft-mini-mix-s1" / "evals" / "code.jsonl").open("a") as evals:
        evals.write('{"step":')
    said = collect(experiment, grid)
    assert f"skipped: {grid}/table1/sft-mini-mix-s0 is not finished, continue it with resume=true" in said
    assert "marked: evals/code.jsonl ends in the middle of a line" in said
    assert not (experiment.results / "sft-mini-mix-s0.jsonl").exists()
    assert results.read(experiment.results / "sft-mini-mix-s1.jsonl").problems


def test_what_a_base_has_not_answered_is_named(grid: Path, experiment: Experiment) -> None:
    described = grid / "table1" / "base" / "evaluation.json"
    asked = {"asked": {"code": [["short", 0, 20], ["bury", 1024, 200]]}}
    described.write_text(json.dumps(json.loads(described.read_text()) | asked))
    assert "marked: base has 20 of 200 families of code bury 1024: evaluate it again" in collect(experiment, grid)


def test_nothing_of_this_machine_is_committed(grid: Path, experiment: Experiment) -> None:
    """Commands do not say where runs are stored, and paths to runs are relative to the working directory."""
    run = grid / "table1" / "sft-mini-mix-s0"
    warm = f"model.student={grid}/table1/sft-mini-mix-s1/export"
    environment = json.loads((run / "environment.json").read_text())
    environment["command"] = f"python -m longctx_rl +algo=sft {warm} runs_root={grid} 'note=two words'"
    (run / "environment.json").write_text(json.dumps(environment))
    text = (run / "config.yaml").read_text().replace("student: mini-student", f"student: {grid}/table1/x/export")
    (run / "config.yaml").write_text(text.replace("runs_root: runs", f"runs_root: {grid}"))
    for path in (grid / "table1").glob("sft-mini-mix-s[12]"):  # which start from something else
        path.rename(grid / path.name)
    collect(experiment, grid)
    result = results.read(experiment.results / "sft-mini-mix-s0.jsonl")
    moved = f"model.student={grid.name}/table1/sft-mini-mix-s1/export"
    assert result.origin["command"] == f"python -m longctx_rl +algo=sft {moved} 'note=two words'"
    assert result.config["model.student"] == f"{grid.name}/table1/x/export"


def test_two_runs_of_one_cell_are_refused_and_nothing_is_written(grid: Path, experiment: Experiment) -> None:
    run = grid / "table1" / "sft-mini-mix-s0"
    write_run(grid, "+algo=sft", "experiment_name=table1", "eval=all", evaluations={}, rows=[{"step": 1}], name="again")
    with pytest.raises(ValueError, match=rf"again and {run.name} are the same run \(sft, seed 0\): keep one of them"):
        collect(experiment, grid)
    assert not experiment.results.exists()


def test_other_settings_in_one_cell_are_refused(tmp_path: Path, experiment: Experiment) -> None:
    scores = answers(1, 1, 1, 1, 1)
    for seed, lr in ((0, "1e-3"), (1, "2e-3")):
        overrides = ("+algo=sft", f"seed={seed}", f"optim.lr={lr}", "experiment_name=table1")
        write_run(tmp_path, *overrides, evaluations={0: scores}, rows=[{"step": 1}])
    with pytest.raises(ValueError, match=r"\(optim.lr 0.001 and 0.002\): name the varied keys in .*axes.yaml"):
        collect(experiment, tmp_path)
    varied = Experiment(experiment.folder, {"optim.lr": 1e-3}, {"lr": {"0.001": {}, "0.002": {"optim.lr": 2e-3}}})
    assert "2 results written" in collect(varied, tmp_path)


def test_without_a_base_it_says_how_to_evaluate_one(grid: Path, experiment: Experiment) -> None:
    """Runs of the study do not evaluate the student before training, because it is the same for all."""
    evaluate = f"python -m longctx_rl.evaluate checkpoint=mini-student out={grid}/table1/base "
    assert evaluate not in collect(experiment, grid)
    (experiment.results / "base.jsonl").unlink()
    for path in (grid / "table1").rglob("evals/*.jsonl"):
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(line for line in lines if not line.startswith('{"step": 0,')))
    shutil.rmtree(grid / "table1" / "base")
    assert f"{evaluate}logging=wandb eval=all eval.items=40" in collect(experiment, grid)
    found = results.read_all(experiment.results)
    tables = [table.name for table in comparison.tables_of(found)]
    without = ["levels", "pairs", "pairs_trained_tokens", "scaling", "dynamics", "rewards", "costs", "runs"]
    assert tables == without and found[0].steps == [5, 10]


def test_no_runs_and_broken_results_are_one_sentence(tmp_path: Path, experiment: Experiment) -> None:
    with pytest.raises(ValueError, match=rf"{tmp_path}/table1: set runs_root=FOLDER"):
        collect(experiment, tmp_path)
    with pytest.raises(ValueError, match=r"no results in .* yet: train its runs"):
        results.read_all(experiment.results)
    write_evaluation(tmp_path / "table1" / "base", answers(1, 1, 1, 1, 1))
    assert "1 results written" in collect(experiment, tmp_path)
    file = experiment.results / "base.jsonl"
    file.write_text(file.read_text()[:100])
    with pytest.raises(ValueError, match=r"base\.jsonl is not a valid result .*: restore the file"):
        results.read_all(experiment.results)


def test_any_text_comes_back(tmp_path: Path) -> None:
    result = results.Result(name="a", algo="sft", seed=0, origin={"command": "né \u2028 \x85 b"})
    results.write(tmp_path, result)
    assert results.read(tmp_path / "a.jsonl").origin == result.origin


def test_an_item_answered_twice_counts_once(tmp_path: Path, experiment: Experiment) -> None:
    folder = tmp_path / "table1" / "base"
    write_evaluation(folder, {("code", "short", 0): [0.0, 0.0]})
    append_scores(folder, 0, {("code", "short", 0): [1.0]})
    collect(experiment, tmp_path)
    (result,) = results.read_all(experiment.results)
    assert result.cells["code", "short", 0].scores[0] == {"code-0": 1.0, "code-1": 0.0}


def test_curves_are_thinned_to_means_of_equal_parts() -> None:
    rows = [
        {"step": step, "progress/trained_tokens": 10.0 * step, "grad/norm": float(step) if step % 2 else None}
        for step in range(1, 121)
    ]
    curves = curves_of([*rows, {"step": 120, "eval/heldout/mean": 0.5}])
    assert curves["step"] == list(range(2, 121, 2))
    assert curves["progress/trained_tokens"][0] == 20 and curves["grad/norm"][:2] == [1, 3]
    assert json.loads(json.dumps(curves)) == curves
