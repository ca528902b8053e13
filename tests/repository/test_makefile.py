"""``make table3-runs``: a failure does not stop the rest, Ctrl-C does."""

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


def make(checkout: Path, failing: str) -> tuple[int, list[str], str]:
    (checkout / "failing").write_text(failing)
    done = subprocess.run(
        ["make", "table3-runs", "PYTHON=./python", "ARGS=sweep.jobs=2"], cwd=checkout, capture_output=True, text=True
    )
    return done.returncode, (checkout / "commands").read_text().splitlines(), done.stderr


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
