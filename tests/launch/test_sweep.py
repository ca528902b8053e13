"""Grids of real runs: skipped when finished, continued when half done, listed when they fail, planned with their cost."""

import json
from pathlib import Path

from launch.test_launch import SMOKE, finish, start, steps

RUN = "runs/smoke/sft-mini_fresh-mix-s"
GRID = ("-m", "+algo=sft", *SMOKE, "engine=local", "resume=true")


def test_a_grid_over_several_sittings(tmp_path: Path) -> None:
    """Two at a time, one of which fails; then one half done, one finished, one new."""
    taken = tmp_path / f"{RUN}1"
    taken.mkdir(parents=True)
    (taken / "notes.txt").write_text("not a run")
    code, stdout, stderr = finish(start([*GRID, "seed=0,1,2", "sweep.jobs=2", "budget.steps=1"], tmp_path))
    lines = stdout.splitlines()
    assert code == 1
    assert stderr == f"error: run_dir={RUN}1 holds notes.txt, which is not of a run: choose another " + (
        "experiment_name or run_dir\n"
    )
    assert "step 1/1" not in stdout  # two at a time do not share the terminal
    assert "sft-mini_fresh-mix-s0 finished after " in stdout
    alone = f"python -m longctx_rl +algo=sft {' '.join(SMOKE)} engine=local resume=true seed=1"
    assert lines[-3] == "sweep: 2 of 3 runs succeeded"
    assert lines[-2].startswith("  exit code 2: ") and lines[-2].replace(" sweep.jobs=2 budget.steps=1", "") == (
        f"  exit code 2: {alone}"
    )
    assert lines[-1].startswith("    error: run_dir=")
    assert not (tmp_path / "runs" / "smoke" / ".sweep").exists()
    assert json.loads((tmp_path / f"{RUN}0" / "finished.json").read_text())["step"] == 1

    (taken / "notes.txt").unlink()
    (tmp_path / f"{RUN}0" / "finished.json").unlink()
    code, stdout, _ = finish(start([*GRID, "seed=0,1,2", "budget.steps=1", "sweep.plan=true"], tmp_path))
    assert code == 0
    assert [line.split("  ")[2:4] for line in stdout.splitlines()[:3]] == [
        [f"{RUN}0", "goes on from step 1"],
        [f"{RUN}1", "new"],
        [f"{RUN}2", "finished"],
    ]
    assert not taken.exists() or not any(taken.iterdir())
    code, stdout, stderr = finish(start([*GRID, "seed=0,1,2", "budget.steps=1"], tmp_path))
    assert code == 0, stderr
    assert stdout.splitlines()[-1] == "sweep: 3 of 3 runs succeeded, 1 of them finished before"
    assert [steps(tmp_path / f"{RUN}{seed}") for seed in range(3)] == [[1], [1], [1]]
    code, stdout, _ = finish(start([*GRID[1:], "seed=2", "budget.steps=1"], tmp_path))
    assert (code, stdout) == (0, f"{RUN}2 is finished after 1 steps (budget.steps=1 is spent): nothing to do\n")
