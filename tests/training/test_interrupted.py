"""A run that ends at any point between two writes continues as if it had not: all rows, all answers."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from longctx_rl.engine import checkpoint
from longctx_rl.engine.local import LocalEngine
from longctx_rl.evals import records
from longctx_rl.runs.recorder import RunRecorder
from longctx_rl.training import loop
from small_runs import rows_of, smoke, untimed

Models = tuple[str, str]
Left = tuple[list[dict[str, Any]], list[dict[str, Any]]]
"""Rows and answers of a run."""
SETTINGS = ("+algo=sft", "budget.steps=3", "checkpoint.every=2", "eval.every=1", "rollout.max_new_tokens=4")
SETTINGS += ("eval.suites.heldout.labels=[multihop]", "eval.suites.heldout.max_new_tokens=4")
SHARES = ("budget.steps=null", "budget.trained_tokens=250", "eval.every=0", "eval.times=3")

# Where a run can end: the function that has just been called, or is about to be, and the step that it is called for.
TARGETS: dict[str, tuple[Any, str, Callable[..., int]]] = {
    "answers": (records, "append", lambda path, kept: kept[0].step),
    "row": (RunRecorder, "log", lambda self, step, metrics: step),
    "checkpoint": (checkpoint, "save_checkpoint", lambda run_dir, step, *rest, **more: step),
    "export": (LocalEngine, "export", lambda *args: 0),
}
Point = tuple[str, int, bool]
"""A target, the step, and whether the run ends before the call."""


def run(root: Path, *overrides: str, resume: bool = False) -> Path:
    config = replace(smoke(root, *SETTINGS, *overrides), resume=resume)
    loop.run(config)
    return Path(config.run_dir)


def left(run_dir: Path) -> Left:
    """Return rows and answers of a run, without metrics that measure the machine."""
    answers = [json.loads(line) for line in (run_dir / "evals" / "heldout.jsonl").read_text().splitlines()]
    return untimed(rows_of(run_dir)), answers


def around(patch: pytest.MonkeyPatch, act: Callable[[Point], None]) -> None:
    """Call ``act`` before and after each call of every target."""

    def wrap(target: str, function: Callable[..., Any], step_of: Callable[..., int]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            step = step_of(*args, **kwargs)
            act((target, step, True))
            result = function(*args, **kwargs)
            act((target, step, False))
            return result

        return wrapped

    for target, (owner, name, step_of) in TARGETS.items():
        patch.setattr(owner, name, wrap(target, getattr(owner, name), step_of))


class WholeRun:
    """An uninterrupted run, which is copied at every point: what a killed process would leave on disk."""

    def __init__(self, root: Path, *overrides: str) -> None:
        self.root, self.overrides = root, overrides
        live = root / "whole"
        live.mkdir()

        def copy(point: Point) -> None:
            if not self._copy(point).exists():
                shutil.copytree(live, self._copy(point))

        with pytest.MonkeyPatch.context() as patch:
            around(patch, copy)
            self.left = left(run(live, *overrides))

    def _copy(self, point: Point) -> Path:
        return self.root / "-".join(map(str, point))

    def killed_at(self, point: Point, root: Path) -> Left:
        """Continue a run in ``root`` that was killed at the point."""
        shutil.copytree(self._copy(point), root, dirs_exist_ok=True)
        return left(run(root, *self.overrides, resume=True))

    def interrupted_at(self, point: Point, root: Path) -> Left:
        """Train in ``root`` with a Ctrl-C at the point, and continue."""
        reached: list[Point] = []

        def interrupt(here: Point) -> None:
            if here == point and not reached:
                reached.append(here)
                os.kill(os.getpid(), signal.SIGINT)

        with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
            around(patch, interrupt)
            run(root, *self.overrides)
        return left(run(root, *self.overrides, resume=True))


@pytest.fixture(scope="module")
def whole(models: Models, tmp_path_factory: pytest.TempPathFactory) -> WholeRun:
    return WholeRun(tmp_path_factory.mktemp("whole"), *models)


def test_an_uninterrupted_run_evaluates_before_between_and_after(whole: WholeRun) -> None:
    rows, _ = whole.left
    kinds = [(row["step"], "loss" if "loss/total" in row else "eval") for row in rows]
    assert kinds == [(0, "eval"), (1, "loss"), (1, "eval"), (2, "loss"), (2, "eval"), (3, "loss"), (3, "eval")]


@pytest.mark.parametrize(
    "point",
    [
        ("answers", 0, False),
        ("answers", 1, False),
        ("answers", 3, True),
        ("answers", 3, False),
        ("row", 2, True),
        ("row", 3, False),
        ("checkpoint", 2, True),
        ("checkpoint", 3, False),
        ("export", 0, True),
        ("export", 0, False),
    ],
    ids=str,
)
def test_a_killed_run_continues_as_if_nothing_had_happened(point: Point, whole: WholeRun, tmp_path: Path) -> None:
    assert whole.killed_at(point, tmp_path) == whole.left


@pytest.mark.parametrize("point", [("answers", 0, False), ("answers", 1, True), ("checkpoint", 2, False)], ids=str)
def test_after_ctrl_c_a_run_continues_as_if_nothing_had_happened(point: Point, whole: WholeRun, tmp_path: Path) -> None:
    assert whole.interrupted_at(point, tmp_path) == whole.left


@pytest.fixture(scope="module")
def at_shares(models: Models, tmp_path_factory: pytest.TempPathFactory) -> WholeRun:
    return WholeRun(tmp_path_factory.mktemp("shares"), *models, *SHARES)


def evaluated_at(rows: list[dict[str, Any]]) -> list[int]:
    return [row["step"] for row in rows if "loss/total" not in row]


def test_evaluations_come_at_even_shares_of_the_budget(at_shares: WholeRun) -> None:
    rows, _ = at_shares.left
    spent = [0.0, *(row["progress/trained_tokens"] / 250 for row in rows if "loss/total" in row)]
    assert spent[-2] < 1.0 <= spent[-1]
    crossed = [min(step for step, share in enumerate(spent) if share >= part / 3) for part in range(4)]
    assert evaluated_at(rows) == crossed and len(set(crossed)) == 4


@pytest.mark.parametrize(
    ("which", "target", "before"),
    # The first share is reached after step 1; with checkpoint.every=2 no checkpoint could be lost there.
    [(1, "answers", True), (2, "answers", True), (1, "answers", False), (2, "answers", False), (2, "checkpoint", True)],
)
def test_no_evaluation_at_a_share_is_lost_or_made_twice(
    which: int, target: str, before: bool, at_shares: WholeRun, tmp_path: Path
) -> None:
    point = target, evaluated_at(at_shares.left[0])[which], before
    assert at_shares.killed_at(point, tmp_path) == at_shares.left


@pytest.mark.parametrize("which", [1, 2])
def test_ctrl_c_before_an_evaluation_at_a_share(which: int, at_shares: WholeRun, tmp_path: Path) -> None:
    point = "answers", evaluated_at(at_shares.left[0])[which], True
    assert at_shares.interrupted_at(point, tmp_path) == at_shares.left


def test_a_finished_run_is_left_as_it_is(whole: WholeRun, at_shares: WholeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "train_step", lambda *_: pytest.fail("the run trained"))
    monkeypatch.setattr(records, "append", lambda *_: pytest.fail("the run was evaluated"))
    for finished in (whole, at_shares):
        assert left(run(finished.root / "whole", *finished.overrides, resume=True)) == finished.left
