"""Grids: finished runs are skipped, interrupted ones resume, failures are listed, costs are planned, jobs submitted."""

import errno
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from command_processes import finish, start
from launch.smoke_runs import RUN, SMOKE, Command, steps
from longctx_rl.config.compose import composed
from longctx_rl.config.schema import Config
from longctx_rl.launch import costs, sweep
from longctx_rl.runs import directory

GRID = ("-m", "+algo=sft", *SMOKE, "engine=local", "resume=true")


def test_a_grid_that_is_continued(command: Command, tmp_path: Path) -> None:
    """Two at a time, one of which fails; then one interrupted, one finished, one new."""
    taken = tmp_path / f"{RUN}1"
    taken.mkdir(parents=True)
    (taken / "notes.txt").write_text("not a run")
    code, stdout, stderr = command(*GRID, "seed=0,1,2", "sweep.jobs=2", "budget.steps=1")
    assert code == 1
    assert stderr.startswith(f"error: run_dir={RUN}1 contains notes.txt") and stderr.count("\n") == 1
    assert "experiment_name or run_dir" in stderr
    assert "sft-mini_fresh-mix-s0 finished after " in stdout
    alone = f"python -m longctx_rl +algo=sft {' '.join(SMOKE)} engine=local resume=true seed=1"
    assert "\nsweep: 2 of 3 runs succeeded\n" in stdout
    (failure,) = (line for line in stdout.splitlines() if line.startswith("  exit code 2: "))
    assert failure.replace(" sweep.jobs=2 budget.steps=1", "") == f"  exit code 2: {alone}" != failure
    assert "\n    error: run_dir=" in stdout
    assert not (tmp_path / "runs" / "smoke" / ".sweep").exists()
    assert json.loads((tmp_path / f"{RUN}0" / "finished.json").read_text())["step"] == 1

    (taken / "notes.txt").unlink()
    (tmp_path / f"{RUN}0" / "finished.json").unlink()
    code, stdout, _ = command(*GRID, "seed=0,1,2", "budget.steps=1", "sweep.plan=true")
    assert code == 0
    planned = [line.split("  ")[2:4] for line in stdout.splitlines() if f"  {RUN}" in line]
    assert planned == [[f"{RUN}0", "resumes from step 1"], [f"{RUN}1", "new"], [f"{RUN}2", "finished"]]
    assert not taken.exists() or not any(taken.iterdir())
    code, stdout, stderr = command(*GRID, "seed=0,1,2", "budget.steps=1")
    assert code == 0, stderr
    assert "\nsweep: 3 of 3 runs succeeded, 1 of them " in stdout
    assert [steps(tmp_path / f"{RUN}{seed}") for seed in range(3)] == [[1], [1], [1]]
    code, stdout, _ = command(*GRID[1:], "seed=2", "budget.steps=1")
    assert code == 0 and stdout.startswith(f"{RUN}2 is finished after 1 steps (budget.steps=1 is spent)")
    assert stdout.count("\n") == 1


def test_a_run_whose_process_cannot_start_does_not_stop_the_others(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as with a full disk for temporary files."""

    class NoSpace(sweep.Child):
        def __init__(self, config: Config, *arguments: Any) -> None:
            if config.seed == 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            super().__init__(config, *arguments)

    monkeypatch.setattr(sweep, "Child", NoSpace)
    code, stdout, stderr = command(*GRID, "seed=0,1", "budget.steps=1")
    assert code == 1 and "\nsweep: 1 of 2 runs succeeded\n  exit code 2: " in stdout
    assert stderr.startswith("error: cannot write to ") and "(No space left on device): free space" in stderr


@pytest.mark.slow
def test_jobs_of_a_cluster(tmp_path: Path) -> None:
    """Submitit's executor for this machine, where each job is one run; the launcher may come from the experiment."""
    arguments = [*GRID, "seed=0,1", "budget.steps=1", "hydra/launcher=submitit_local", "hydra.launcher.timeout_min=9"]
    code, stdout, stderr = finish(start(arguments, tmp_path))
    assert code == 0, stderr + stdout
    assert "\nsweep: 2 of 2 runs succeeded\n" in stdout
    assert [steps(tmp_path / f"{RUN}{seed}") for seed in range(2)] == [[1], [1]]
    assert len(list((tmp_path / "runs" / ".submitit").glob("*/*_submitted.pkl"))) == 2
    command = json.loads((tmp_path / f"{RUN}1" / "environment.json").read_text())["command"]
    assert command.endswith(" seed=1 budget.steps=1") and "launcher" not in command
    code, stdout, stderr = finish(start(arguments, tmp_path))
    assert code == 0, stderr
    assert stdout.startswith("sweep: 2 of 2 runs succeeded, 2 of them ") and stdout.count("\n") == 1


def test_the_latest_values_are_read_from_the_end_of_a_run_that_writes(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert costs.latest(tmp_path) == {}
    rows = [{"step": step, "loss/total": 1.0 * step, "grad/norm": None} for step in range(3_000)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    assert len(text) > 2 * costs.TAIL_BYTES
    path.write_text('{"step": oops}\n' + text + '{"step": 3000, "lo')  # only its end is read
    assert costs.latest(tmp_path) == {"step": 2999, "loss/total": 2999.0}
    path.write_text(text + '{"step": 3000}')
    assert costs.latest(tmp_path) == {"step": 3000, "loss/total": 2999.0}
    path.write_text('{"step": oops}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl .*not JSON: .* restore the file"):
        costs.latest(tmp_path)


def test_costs_are_those_of_finished_runs_alike_scaled_to_the_budget(tmp_path: Path) -> None:
    base = composed(["+algo=sft", f"runs_root={tmp_path}", "budget.steps=100", "engine=local"])
    with directory.opened(base) as path:
        rows = [{"step": 0, "time/eval": 3.0}]
        for step in range(1, 101):
            progress = {"step": step, "wall_seconds": 2.0 * step, "trained_tokens": 10 * step, "flops": 1e6 * step}
            rows.append({"step": step} | {f"progress/{name}": value for name, value in progress.items()})
        (path / "metrics.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in [*rows, {"step": 100, "time/eval": 4.0}])
        )
        directory.record_finished(base, 100, "budget.steps=100 is spent", 200.0)
    known = costs.measured({str(tmp_path)})
    other = replace(base, seed=1, run_dir=str(tmp_path / "default" / "other"), budget=replace(base.budget, steps=50))
    assert costs.estimate(other, known) == costs.Cost(107.0, 500.0, 5e7)
    tokens = replace(other, budget=replace(base.budget, steps=None, trained_tokens=2000))
    assert costs.estimate(tokens, known) == costs.Cost(407.0, 2000.0, 2e8)
    assert costs.estimate(replace(other, batch=replace(base.batch, prompts_per_step=9)), known) is None
    assert costs.standing(replace(base, resume=True)).kind == "finished"
    longer = replace(base, resume=True, budget=replace(base.budget, steps=200))
    assert costs.standing(longer).kind == "resumable"  # with a larger budget
    assert costs.remaining(longer, known) == costs.Cost(203.5, 1000.0, 1e8)
    assert costs.makespan([3.0, 1.0, 1.0, 2.0], jobs=2) == 4.0
    text = costs.render([replace(base, resume=True), other], 1, known)
    assert "\n2 runs: 1 finished, 1 new\n" in text
    assert text.endswith("cost: 1:47 500 tokens 5e+07 FLOPs; 1:47 with sweep.jobs=1")
    committed = [replace(run, here=False) for run in known]
    incomparable = replace(other, batch=replace(base.batch, prompts_per_step=9))
    text = costs.render([other, incomparable], 1, committed)
    assert "\n1 run estimated " in text and "\n1 run not included: " in text
