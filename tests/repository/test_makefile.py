"""``make table3-runs``: a failure does not stop the rest, Ctrl-C does. The environment: made, and made again."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STEPS = (
    "larger_teacher.py", "=table3_estimator", "=table3_k1", "=table3_direction", "=table3_aggregate", "=table3_group",
    "=table3_group_flops", "=table3_advantage", "=table3_teacher", "out=runs/table3/base", "out=runs/table3/teacher",
    "out=runs/table3/larger-teacher", "collect table3",
)  # fmt: skip


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout whose Python records its arguments, and fails as the file ``failing`` says: words, exit status."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / ".installed").touch()
    (tmp_path / "failing").touch()
    python = tmp_path / "python"
    python.write_text(
        '#!/bin/sh\necho "$*" >> commands\nwhile read -r words status; do\n'
        '  case "$*" in *"$words"*) exit "$status";; esac\ndone < failing\n'
    )
    python.chmod(0o755)
    return tmp_path


def make(checkout: Path, failing: str = "", *arguments: str) -> tuple[int, list[str], str]:
    (checkout / "failing").write_text(failing)
    given = arguments or ("table3-runs", "PYTHON=./python", "ARGS=sweep.jobs=2")
    done = subprocess.run(["make", *given], cwd=checkout, capture_output=True, text=True)
    commands = checkout / "commands"
    return done.returncode, commands.read_text().splitlines() if commands.exists() else [], done.stderr


def test_a_table_trains_evaluates_and_collects_in_this_order(checkout: Path) -> None:
    status, commands, stderr = make(checkout, "")
    assert status == 0 and "incomplete" not in stderr
    assert len(commands) == len(STEPS) and all(step in line for step, line in zip(STEPS, commands, strict=True))
    assert all(("sweep.jobs=2" in line) == ("+experiment=" in line) for line in commands)


@pytest.mark.parametrize("step", STEPS)
def test_a_failure_does_not_stop_the_rest(checkout: Path, step: str) -> None:
    status, commands, stderr = make(checkout, f"{step.split()[0]} 1\n")
    assert status == 2 and len(commands) == len(STEPS)
    assert "incomplete: " in stderr and "the same command" in stderr


@pytest.mark.parametrize("place", [0, 3, 9])
def test_ctrl_c_stops_it(checkout: Path, place: int) -> None:
    status, commands, stderr = make(checkout, f"{STEPS[place]} 130\n")
    assert status == 2 and len(commands) == place + 1 and "incomplete" not in stderr


def test_arguments_reach_the_larger_teacher(checkout: Path) -> None:
    status, commands, _ = make(checkout, "", "larger-teacher", "PYTHON=./python", "ARGS=engine.threads=1")
    assert status == 0 and commands == ["experiments/mini_models/larger_teacher.py engine.threads=1"]


@pytest.mark.parametrize("python", [None, "/nowhere"])
def test_an_environment_that_does_not_work_is_made_again(checkout: Path, python: str | None) -> None:
    """Though its stamp exists: its Python is missing, or was the system's before an upgrade."""
    stub = checkout / "python"
    stub.write_text(
        f'{stub.read_text()}case "$*" in *--clear*) rm -r .venv; mkdir -p .venv/bin; cp python .venv/bin;; esac\n'
    )
    if python is not None:
        (checkout / ".venv" / "bin").mkdir()
        (checkout / ".venv" / "bin" / "python").symlink_to(python)
    status, commands, stderr = make(checkout, "", "figures", "PYTHON3=./python")
    assert status == 0, stderr
    steps = [line.split()[1] for line in commands if line.startswith("-m") and "--version" not in line]
    assert steps == ["venv", "pip", "longctx_rl.report"]


def test_a_python_that_is_not_installed_is_one_line(checkout: Path) -> None:
    status, commands, stderr = make(checkout, "", "figures", "PYTHON3=python3.99")
    assert status == 2 and commands == []
    assert stderr.startswith("error: python3.99 is not installed; choose another Python with: make PYTHON3=")


def test_a_study_is_one_word(checkout: Path) -> None:
    assert make(checkout, "", "dashboard", "PYTHON=./python", "STUDY=a b")[1] == ["-m longctx_rl.report dashboard a b"]
