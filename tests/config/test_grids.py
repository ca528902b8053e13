"""Every run of every grid composes, is valid, and has its own directory."""

import json
import runpy
import shutil
import sys
from collections import Counter
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path

import pytest
import yaml

from config.composing import composed_once, config_with
from longctx_rl.__main__ import main
from longctx_rl.config import compose, load
from longctx_rl.config.compose import config_directory
from longctx_rl.config.schema import Config
from longctx_rl.report import ablation, readmes, results
from longctx_rl.report.check import check_origin
from longctx_rl.report.collect import collect
from longctx_rl.report.experiment import open_experiment
from report.run_folders import append_scores, shares, training_rows, write_config, write_evaluation

GRIDS = {
    path.stem: yaml.safe_load(path.read_text())["hydra"]["sweeper"]["params"]
    for path in sorted((config_directory() / "experiment").glob("*.yaml"))
    if "sweeper:" in path.read_text()
}
EXPERIMENTS = Path(__file__).parents[2] / "experiments"
TABLES = {
    "table2": ("cold_start", *(grid for grid in GRIDS if grid.startswith("table2_"))),
    "table3": tuple(grid for grid in GRIDS if grid.startswith("table3_")),
    "table4": tuple(grid for grid in GRIDS if grid.startswith("table4_")),
}


def runs(grid: str) -> list[Config]:
    """The runs of a grid with its first two seeds, in order: the last parameter changes first."""
    return list(commanded(grid).values())


@cache
def commanded(grid: str) -> dict[tuple[str, ...], Config]:
    """The same runs, keyed by the overrides of their commands."""
    choices = [[f"{key}={value}" for value in str(values).split(",")] for key, values in GRIDS[grid].items()]
    choices[0] = choices[0][:2]
    assert choices[0] == ["seed=0", "seed=1"]  # the outermost loop, so that complete comparisons exist early
    commands = [(f"+experiment={grid}", *chosen) for chosen in product(*choices)]
    return {overrides: config_with(*overrides) for overrides in commands}


def test_the_grids_of_the_study_are_there() -> None:
    assert {"table1", "cold_start", "table2_beta", "table2_start", "table3_estimator"} <= GRIDS.keys()


@pytest.mark.parametrize("grid", GRIDS)
def test_each_run_is_possible_and_has_its_own_directory(grid: str) -> None:
    configs = runs(grid)
    assert [path for path, count in Counter(config.run_dir for config in configs).items() if count > 1] == []
    assert all(config.resume and config.eval.at_end for config in configs)
    assert len({(config.budget.trained_tokens, config.budget.steps) for config in configs}) == 1


def test_table1_compares_five_methods_at_equal_tokens() -> None:
    configs = runs("table1")
    assert [config.algo.name for config in configs[:5]] == ["sft", "kd", "grpo", "opd", "dgrpo"]
    assert len(configs) == 10 and GRIDS["table1"]["seed"] == "0,1,2,3,4"
    optim = {replace(config.optim, lr=0.0) for config in configs}
    assert len(optim) == 1 and all(config.data == configs[0].data for config in configs)
    assert {(config.algo.source, config.optim.lr) for config in configs} == {("dataset", 1e-3), ("policy", 3e-4)}
    data = configs[0].data
    assert data.short is not None and data.short.share == 0.1
    assert min(data.lengths) >= 512 and max(data.short.lengths) <= 256


@pytest.mark.parametrize("grid", ["table2_reference", "table3_teacher"])
def test_a_shared_composition_is_what_hydra_composes(grid: str) -> None:
    """Setting values in a composition that other runs share gives what Hydra gives for the whole command."""
    overrides, config = list(commanded(grid).items())[-1]
    assert load.load(composed_once(*overrides)) == config


def test_grids_share_what_they_have_in_common() -> None:
    """Two grids that contain the same directory contain the same run, so it is trained once."""
    known: dict[str, Config] = {}
    for grid in GRIDS:
        for config in runs(grid):
            assert known.setdefault(config.run_dir, config) == config


@pytest.mark.parametrize("table", TABLES)
def test_the_runs_of_a_table_make_all_its_tables(table: str, tmp_path: Path) -> None:
    """Collected from one folder, each level of each axis has its runs, and no run is trained twice."""
    folder = Path(shutil.copytree(EXPERIMENTS / table, tmp_path / table, ignore=shutil.ignore_patterns("results")))
    experiment = open_experiment(folder)
    known = {overrides: config for grid in TABLES[table] for overrides, config in commanded(grid).items()}
    for overrides, config in known.items():
        path = tmp_path / config.run_dir
        if not path.exists():
            write_config(path, config, overrides)
            gap = {"step": 0, "view/score_gap": float(config.algo.kd.view_tokens)} if config.viewed else None
            rows = [gap] * (gap is not None) + training_rows(
                4, tokens=config.algo.group_size, seconds=1.0, evaluated=(4,)
            )
            (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            append_scores(path, 4, {("heldout", "multihop", 1024): shares(5 + config.seed, 9)})
            (path / "finished.json").write_text("{}")
    write_evaluation(tmp_path / "runs" / table / "base", {("heldout", "multihop", 1024): shares(3, 9)})
    assert "marked" not in collect(experiment, tmp_path / "runs")

    found = results.read_all(experiment.results)
    assert len(found) == 1 + len({config.run_dir for config in known.values()})
    for result in found:
        assert not result.trained or check_origin(result, lambda overrides: known[tuple(overrides)]) == ([], [])
    for axis, levels in experiment.axes.items():
        groups = ablation.groups_of(experiment, axis, found)
        assert list(groups) == list(levels)
        assert all([run.seed for run in group] == [0, 1] for group in groups.values())
    tables = {one.name: one for one in ablation.tables_of(experiment, found)}
    assert {f"{axis}{kind}" for axis in experiment.axes for kind in ("", "_differences", "_gains")} <= tables.keys()
    alone = [row for row, _ in tables["costs"].rows if row.split()[0] not in experiment.axes]
    assert not alone, "every run belongs to a level, including the cold starts"
    readmes.filled(folder / "README.md", table, dict.fromkeys(tables, ""))  # refuses a mark without a table


def test_cold_starts_are_where_they_are_looked_for() -> None:
    exports = {f"{config.run_dir}/export" for config in runs("cold_start")}
    assert {config.model.student for config in runs("table2_start")} - {"mini-student"} == exports


def test_other_teachers_are_where_they_are_looked_for() -> None:
    """The weaker teachers are in table1, the larger teacher is where its script writes it."""
    exports = {f"{config.run_dir}/export" for config in runs("table1") if config.algo.name == "sft"}
    larger = runpy.run_path(str(EXPERIMENTS / "mini_models" / "larger_teacher.py"))["RUN"]
    exports.add(f"runs/{larger}/export")
    assert f"larger-teacher=runs/{larger}/export" in (EXPERIMENTS.parent / "Makefile").read_text()
    assert {config.model.teacher for config in runs("table3_teacher")} - {"mini-teacher"} == exports


def test_a_grid_and_its_plan_from_the_command_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["longctx_rl", "-m", "+experiment=table2_beta", "seed=7", "sweep.plan=true"])
    with pytest.raises(SystemExit) as done:
        main()
    stdout, stderr = capfd.readouterr()
    assert done.value.code == 0, stderr
    directories = [line.split()[1] for line in stdout.splitlines() if " runs/" in line]
    assert directories == [config.run_dir.replace("-s0", "-s7") for config in runs("table2_beta")[:5]]
    assert "5 runs: 5 new" in stdout
    assert not any(tmp_path.iterdir())


def test_a_grid_that_does_not_compose_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conf = Path(shutil.copytree(config_directory(), tmp_path / "conf"))
    (conf / "experiment" / "broken.yaml").write_text("# @package _global_\ndefaults:\n  - override /model: nope\n")
    monkeypatch.setattr(compose, "config_directory", lambda: conf)
    with pytest.raises(ValueError, match=r"^model=nope: choose one of mini, "):
        compose.composed_grids("table1")
