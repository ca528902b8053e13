"""The check of committed results: missing runs, rows that do not fit them, replaced models, and grids."""

import itertools
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import yaml

import longctx_rl
from longctx_rl.config.compose import composed, composed_grids, config_directory
from longctx_rl.config.schema import Config
from longctx_rl.launch import costs
from longctx_rl.policy.weights import weights_hash
from longctx_rl.report import results
from longctx_rl.report.check import check, check_complete, check_origin
from longctx_rl.report.experiment import Experiment
from longctx_rl.report.results import CellScores, Result

SHIPPED = Path(longctx_rl.__file__).parent / "shipped_models"
CELL = ("heldout", "multihop", 1024)


@cache
def run(algo: str, seed: int) -> Config:
    return composed([f"+algo={algo}", f"seed={seed}", "experiment_name=table1", "eval=all"])


def runs(algo: str, seeds: Sequence[int]) -> dict[str, Config]:
    return {Path(config.run_dir).name: config for config in (run(algo, seed) for seed in seeds)}


def evaluate(role: str, model: str) -> str:
    """The command that evaluates the base or the teacher."""
    return (
        f"python -m longctx_rl.evaluate checkpoint={model} out=runs/table1/{role} logging=wandb eval=all "
        "eval.items=40, then collect"
    )


def test_grids_are_those_of_the_files() -> None:
    names = [Path(config.run_dir).name for config in composed_grids("table1")]
    assert names == [f"{algo}-mini-mix-s{seed}" for seed in range(5) for algo in ("sft", "kd", "grpo", "opd", "dgrpo")]
    assert composed_grids("mine") == []
    start = [config for config in composed_grids("table2") if config.model.name == "mini_after_kd"]
    assert {(config.seed, config.algo.name) for config in start} == {(seed, "dgrpo") for seed in range(3)}


@pytest.mark.parametrize("sweep", ["table2_start", pytest.param("table3_teacher", marks=pytest.mark.slow)])
def test_a_grid_is_what_composing_each_of_its_cells_gives(sweep: str) -> None:
    """These sweeps vary groups, such as the model, and values, such as the seed."""
    file = config_directory() / "experiment" / f"{sweep}.yaml"
    params: dict[str, str] = yaml.safe_load(file.read_text())["hydra"]["sweeper"]["params"]
    levels = [[f"{key}={value.strip()}" for value in str(values).split(",")] for key, values in params.items()]
    cells = [composed([*cell, f"+experiment={sweep}"]) for cell in itertools.product(*levels)]
    grids = composed_grids(sweep.partition("_")[0])
    assert len({cell.seed for cell in cells}) > 1 and len({cell.model.name for cell in cells}) > 1
    assert any(grids[start : start + len(cells)] == cells for start in range(len(grids)))


def test_runs_of_a_grid_that_are_missing(experiment: Experiment, found: Sequence[Result]) -> None:
    there = runs("sft", range(3)) | runs("grpo", range(3))
    assert check_complete(experiment, found, there) == check_complete(experiment, found, {}) == []
    asked = there | runs("opd", range(4))
    assert check_complete(experiment, found, asked) == [
        "table1: 4 of 10 runs have no result (opd-mini-mix-s0, opd-mini-mix-s1, opd-mini-mix-s2 and 1 more): "
        "run its grids, then python -m longctx_rl.report collect table1"
    ]
    without = [replace(one, cells={CELL: last_of(one.cells[CELL])}) for one in found if one.trained]
    assert check_complete(experiment, without, there) == [f"base has no result: {evaluate('base', 'mini-student')}"]
    assert check_complete(experiment, [one for one in found if one.trained], there) == []  # the base is their step 0


def last_of(cell: CellScores) -> CellScores:
    last = max(cell.scores)
    return CellScores(scores={last: cell.scores[last]}, cut={})


def test_rows_with_fewer_answers_or_of_another_model(experiment: Experiment, found: Sequence[Result]) -> None:
    asked = runs("opd", range(3))
    rows = {one.name: one for one in found}
    base, teacher = rows["base"], rows["teacher"]
    scores = dict(list(base.cells[CELL].scores[0].items())[:15])
    fewer = replace(base, cells=base.cells | {CELL: CellScores(scores={0: scores}, cut={})})
    other = replace(teacher, origin={"checkpoint": "mini-student"})
    trained = [replace(one, name=one.name.replace("sft", "opd")) for one in found if one.trained]
    assert check_complete(experiment, [*trained, fewer, other], asked) == [
        "base lacks 5 of 20 families of heldout multihop 1024 that all runs answered: "
        + evaluate("base", "mini-student"),
        f"teacher is mini-student, but most runs use mini-teacher: {evaluate('teacher', 'mini-teacher')}",
    ]


def test_models_that_were_replaced(experiment: Experiment, found: Sequence[Result]) -> None:
    run, base = next(one for one in found if one.trained), next(one for one in found if one.name == "base")
    assert run.origin["student"] == weights_hash(SHIPPED / "mini-student") and run.origin.get("teacher") is None
    old = replace(run, origin=run.origin | {"student": "ab" * 16, "teacher": "cd" * 16})
    evaluated = replace(base, origin=base.origin | {"dtype": "float32"})
    problems = check_complete(experiment, [old, evaluated], {})
    assert [problem.partition(" from ")[0] for problem in problems] == [
        f"{run.name} used different weights of mini-student",
        f"{run.name} used different weights of mini-teacher",
        "base used different weights of mini-student",
    ]
    assert all(problem.endswith(": train or evaluate it again") for problem in problems)
    moved = replace(run, config=run.config | {"model.student": "runs/x/export"}, origin={"student": "ab" * 16})
    assert check_complete(experiment, [moved], {}) == []


def test_a_check_knows_the_grids(collected: Experiment) -> None:
    asked = runs("sft", range(4))
    first = next(iter(asked))
    asked[first] = replace(asked[first], batch=replace(asked[first].batch, prompts_per_step=3))
    problems, _ = check(collected, collected.folder.parents[1], composed, list(asked.values()))
    assert problems == [
        "table1: 1 of 4 runs have no result (sft-mini-mix-s3): "
        "run its grids, then python -m longctx_rl.report collect table1",
        f"{first} differs from its grid: batch.prompts_per_step was 8 and is 3 today; run it again",
    ]


def test_a_result_that_differs_from_its_grid(found: Sequence[Result]) -> None:
    (name, config), *_ = runs("sft", [0]).items()
    result = next(one for one in found if one.name == name)
    assert check_origin(result, composed, config) == ([], [])
    (problem,), _ = check_origin(
        replace(result, config=result.config | {"batch.prompts_per_step": 3}), composed, config
    )
    assert problem == f"{name} differs from its grid: batch.prompts_per_step was 3 and is 8 today; run it again"


def test_plans_know_what_committed_runs_cost(
    experiment: Experiment, collected: Experiment, found: Sequence[Result], tmp_path: Path
) -> None:
    shutil.copytree(collected.results, experiment.results)
    (experiment.results / "broken.jsonl").write_text("{}\n")
    known = results.measured(experiment.folder.parent)
    assert len(known) == sum(one.trained for one in found)
    overrides = ["+algo=sft", "seed=9", "experiment_name=table1", "eval=all", "budget.steps=20"]
    config = composed([*overrides, f"runs_root={tmp_path}"])
    cost = costs.estimate(config, known)
    assert cost == costs.Cost(2.0 * 20 + 3.0, 2000.0, 2e10)
    assert "from committed results" in costs.render([config], 1, known)
    here = [replace(one, here=True, evaluation_seconds=5.0) for one in known[:1] + known[3:4]]
    measured = {costs.estimate(config, [*known, one]) for one in here if one.config.algo.name == "sft"}
    assert measured == {costs.Cost(2.0 * 20 + 5.0, 2000.0, 2e10)}  # those that are here count alone
