"""Every run of every grid composes, is possible, and has a directory of its own."""

import os
import subprocess
import sys
from collections import Counter
from functools import cache
from itertools import product
from pathlib import Path

import pytest
import yaml

from config.composing import composed
from longctx_rl.__main__ import config_directory
from longctx_rl.config import Config

GRIDS = {
    path.stem: yaml.safe_load(path.read_text())["hydra"]["sweeper"]["params"]
    for path in sorted((config_directory() / "experiment").glob("*.yaml"))
    if "sweeper:" in path.read_text()
}


@cache
def runs(grid: str) -> list[Config]:
    """The runs of a grid with its first two seeds, in order: the last parameter changes first."""
    choices = [[f"{key}={value}" for value in str(values).split(",")] for key, values in GRIDS[grid].items()]
    choices[0] = choices[0][:2]
    assert choices[0] == ["seed=0", "seed=1"]  # outermost: whole comparisons are there early
    return [composed(f"+experiment={grid}", *chosen) for chosen in product(*choices)]


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
    assert all((config.optim, config.data) == (configs[0].optim, configs[0].data) for config in configs)
    lengths = configs[0].data.lengths
    assert sum(length >= 512 for length in lengths) == 9 * sum(length <= 256 for length in lengths)


def test_grids_share_what_they_have_in_common() -> None:
    """The same directory in two grids is the same run, so it is trained once."""
    known: dict[str, Config] = {}
    for grid in GRIDS:
        for config in runs(grid):
            assert known.setdefault(config.run_dir, config) == config


def test_cold_starts_are_where_they_are_looked_for() -> None:
    exports = {f"{config.run_dir}/export" for config in runs("cold_start")}
    assert {config.model.student for config in runs("table2_start")} - {"mini-student"} == exports


def test_a_grid_and_its_plan_from_the_command_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "longctx_rl", "-m", "+experiment=table2_beta", "seed=7", "sweep.plan=true"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    directories = [line.split()[1] for line in done.stdout.splitlines() if " runs/" in line]
    assert directories == [config.run_dir.replace("-s0", "-s7") for config in runs("table2_beta")[:5]]
    assert "5 runs: 5 new" in done.stdout
    assert not any(tmp_path.iterdir())
