"""Ownership of run directories, and their removal when a run fails before training."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from config.composing import config_with
from longctx_rl.config.load import read
from longctx_rl.config.schema import Config
from longctx_rl.runs import directory
from longctx_rl.runs.directory import check, discard_untrained, opened, resume_command, trained


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return replace(BASE, run_dir=str(tmp_path / "runs" / "default" / "one"), runs_root=str(tmp_path / "runs"))


BASE = config_with("+algo=dgrpo")


def test_a_resumed_run_needs_its_original_weights(tmp_path: Path) -> None:
    began: dict[str, str | None] = {"student": "a", "teacher": None}
    directory.record_parts(tmp_path, {}, {}, began)
    directory.record_parts(tmp_path, {}, {}, {"student": "a"})  # the teacher is cached by now
    assert json.loads((tmp_path / "environment.json").read_text())["weights"] == began
    with pytest.raises(ValueError, match=r"^the student of .*: restore them"):
        directory.record_parts(tmp_path, {}, {}, {"student": "b"})
    directory.record_parts(tmp_path, {}, {}, {"student": "a", "teacher": "c"})  # unknown before, recorded from here on
    with pytest.raises(ValueError, match=r"^the teacher of .*: restore them"):
        directory.record_parts(tmp_path, {}, {}, {"student": "a", "teacher": "d"})


def train_a_step(path: Path, step: int = 1) -> None:
    with (path / "metrics.jsonl").open("a") as metrics:
        metrics.write(json.dumps({"step": step, "loss/total": 1.0}) + "\n")


def test_a_new_run_describes_itself(config: Config) -> None:
    with opened(config) as path:
        assert read(path / "config.yaml") == config
        described = json.loads((path / "environment.json").read_text())
        train_a_step(path)
    assert described["packages"]["torch"] and described["host"]["cores"] >= 1
    assert {"started", "command", "git", "python", "longctx_rl"} <= described.keys()
    assert {entry.name for entry in path.iterdir()} == {"config.yaml", "environment.json", "metrics.jsonl", ".lock"}


def test_an_existing_run_is_not_overwritten(config: Config) -> None:
    with opened(config) as path:
        train_a_step(path)
    before = {entry: entry.read_bytes() for entry in path.iterdir()}
    fixes = r"resume=true, .*experiment_name=<new name> or seed=<other seed>"
    with pytest.raises(ValueError, match=rf"{path} .*{fixes}"), opened(config):
        pass
    assert {entry: entry.read_bytes() for entry in path.iterdir()} == before


def test_a_checkpoint_alone_counts_as_trained(config: Config) -> None:
    with opened(config) as path:
        (path / "checkpoints" / "step-000000").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"resume=true"):
        check(config)


def test_resume_continues_and_is_recorded(config: Config) -> None:
    with opened(config) as path:
        train_a_step(path)
    longer = replace(config, resume=True, budget=replace(config.budget, steps=99))
    with opened(longer):
        pass
    assert read(path / "config.yaml").budget.steps == 99
    described = json.loads((path / "environment.json").read_text())
    assert len(described["resumed"]) == 1 and described["resumed"][0]["started"]
    assert (path / "metrics.jsonl").is_file()


def test_resume_with_another_configuration_reports_the_differences(config: Config) -> None:
    with opened(config) as path:
        train_a_step(path)
    changed = replace(
        config,
        resume=True,
        seed=1,
        optim=replace(config.optim, lr=2e-3),
        engine=replace(config.engine, num_processes=2, threads=1),
        algo=replace(config.algo, importance_cap=2.0),
    )
    differences = r": algo\.importance_cap null -> 2\.0, optim\.lr 0\.0003 -> 0\.002, seed 0 -> 1 \(old -> new\);"
    with pytest.raises(ValueError, match=rf"{path} .*{differences} .*old values.*experiment_name=<new name>"):
        check(changed)


def test_a_model_may_be_given_by_another_path(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as a relative path first and an absolute path later."""
    for name in ("weights", "others"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    started = replace(config, model=replace(config.model, student="weights"))
    with opened(started) as path:
        train_a_step(path)
    check(replace(started, resume=True, model=replace(started.model, student=f"{tmp_path}/weights")))
    with pytest.raises(ValueError, match=r"model\.student weights -> others"):
        check(replace(started, resume=True, model=replace(started.model, student="others")))


def test_resume_without_a_run_starts_one(config: Config) -> None:
    with opened(replace(config, resume=True)) as path:
        assert (path / "config.yaml").is_file()


@pytest.mark.parametrize(
    "error", [ValueError("no such model"), RuntimeError("bug"), KeyboardInterrupt(), SystemExit(1)]
)
def test_a_failure_before_the_first_step_removes_the_directory(
    config: Config, tmp_path: Path, error: BaseException
) -> None:
    with pytest.raises(type(error)), opened(config) as path:
        train_a_step(path, step=0)  # the evaluation before training
        (path / "wandb").mkdir()
        raise error
    assert not Path(config.run_dir).parent.exists()
    assert (tmp_path / "runs").is_dir()


def test_a_failure_after_the_first_step_keeps_everything(config: Config) -> None:
    with pytest.raises(RuntimeError), opened(config) as path:
        train_a_step(path)
        raise RuntimeError
    assert trained(path) and (path / "config.yaml").is_file()


def test_an_untrained_directory_is_reused(config: Config) -> None:
    path = Path(config.run_dir)
    path.mkdir(parents=True)
    (path / "config.yaml").write_text("cut sho")  # kill -9 left this
    (path / "environment.json").write_text("{}")
    (path / "metrics.jsonl").write_text('{"step": 0, "eval/heldout/mean": 0.5}\n')
    with opened(config):
        assert read(path / "config.yaml") == config
        assert not (path / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    "files", [["thesis.tex"], [".git/HEAD"], ["config.yaml", "notes.txt"], ["config.yaml"], ["config.yaml", "evals/a"]]
)
def test_other_files_are_left_untouched(config: Config, files: list[str]) -> None:
    path = Path(config.run_dir)
    for name in files:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text("precious")
    with pytest.raises(ValueError, match=rf"run_dir={path} .*choose another experiment_name"), opened(config):
        pass
    (path / ".lock").touch()
    discard_untrained(config)
    assert all((path / name).read_text() == "precious" for name in files)


def test_only_files_of_the_run_are_removed(config: Config) -> None:
    """A user added another file while the run was starting."""
    with pytest.raises(RuntimeError), opened(config) as path:
        (path / "notes.txt").write_text("precious")
        raise RuntimeError
    assert (path / "notes.txt").read_text() == "precious"


def test_a_file_in_place_of_the_directory_is_reported(config: Config) -> None:
    Path(config.run_dir).parent.mkdir(parents=True)
    Path(config.run_dir).write_text("")
    with (
        pytest.raises(
            ValueError, match=rf"run_dir={config.run_dir} is a file: choose another experiment_name or runs_root"
        ),
        opened(config),
    ):
        pass


HOLDER = """
import sys, time
from pathlib import Path
from longctx_rl.config import load
from longctx_rl.runs import directory
with directory.opened(load.read(Path(sys.argv[1]))) as path:
    (path / "metrics.jsonl").write_text('{"step": 1, "loss/total": 1.0}\\n')
    print("held", flush=True)
    time.sleep(60)
"""


def test_two_processes_never_share_a_directory_and_a_killed_one_releases_it(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "LOCK_PATIENCE", 0.2)
    handed = tmp_path / "config.yaml"
    handed.write_text(directory.configuration.dump(config))
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(handed)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "src")},
    )
    assert holder.stdout and holder.stdout.readline() == "held\n"
    resumed = replace(config, resume=True)
    with (
        pytest.raises(ValueError, match=rf"process {holder.pid} on .*: wait for it.*experiment_name or seed"),
        opened(resumed),
    ):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with opened(resumed) as path:
        assert trained(path)


def test_the_command_to_resume(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGCTX_RL_COMMAND", "python -m longctx_rl +algo=dgrpo seed=1")
    assert resume_command(config) == "python -m longctx_rl +algo=dgrpo seed=1 resume=true"
    monkeypatch.setenv("LONGCTX_RL_COMMAND", "python -m longctx_rl +algo=dgrpo resume=true")
    assert resume_command(config) == "python -m longctx_rl +algo=dgrpo resume=true"
