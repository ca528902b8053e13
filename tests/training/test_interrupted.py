"""A run that ends at any point between two writes continues as if it had not: all rows, all answers."""

import json
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from config.composing import composed
from longctx_rl.engine import checkpoint
from longctx_rl.engine.local import LocalEngine
from longctx_rl.evals import records
from longctx_rl.runs.metrics import read_metrics
from longctx_rl.runs.recorder import RunRecorder
from longctx_rl.training import loop

TIMED = ("time/", "perf/", "progress/wall_seconds")


class Killed(BaseException):
    """Ends a run where it stands: nothing in the program catches it."""


def kill(*_: Any) -> None:
    raise Killed


def interrupt(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGINT)


def at(step: int, then: Callable[..., None], *, before: bool = False) -> Callable[[Callable[..., Any], Any], Any]:
    """Wraps a function: at its first call for ``step``, ``then`` comes after it, or before it."""

    def wrap(function: Callable[..., Any], step_of: Callable[..., int]) -> Callable[..., Any]:
        waiting = [True]

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            here = step_of(*args, **kwargs) == step and bool(waiting) and waiting.pop()
            if here and before:
                then()
            result = function(*args, **kwargs)
            if here and not before:
                then()
            return result

        return wrapped

    return wrap


TARGETS: dict[str, tuple[Any, str, Callable[..., int]]] = {
    "answers": (records, "append", lambda path, kept: kept[0].step),
    "row": (RunRecorder, "log", lambda self, step, metrics: step),
    "checkpoint": (checkpoint, "save_checkpoint", lambda run_dir, step, *rest, **more: step),
    "export": (LocalEngine, "export", lambda *args: 0),
}


def run(root: Path, name: str, *extra: str, resume: bool = False) -> Path:
    config = composed(
        "+algo=sft",
        "+experiment=smoke",
        "logging=none",
        "engine=local",
        "budget.steps=3",
        "checkpoint.every=2",
        "eval.every=1",
        "eval.suites.heldout.labels=[multihop]",
        f"runs_root={root}",
        f"experiment_name={name}",
        f"resume={resume}".lower(),
        *extra,
    )
    loop.run(config)
    return Path(config.run_dir)


def left(run_dir: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows and answers of a run, without what measures the machine."""
    rows = read_metrics(run_dir / "metrics.jsonl")
    kept = [json.loads(line) for line in (run_dir / "evals" / "heldout.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.startswith(TIMED)} for row in rows], kept


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    return left(run(tmp_path_factory.mktemp("whole"), "whole"))


def test_an_uninterrupted_run_evaluates_before_between_and_after(
    uninterrupted: tuple[list[dict[str, Any]], list[dict[str, Any]]],
) -> None:
    rows, _ = uninterrupted
    kinds = [(row["step"], "loss" if "loss/total" in row else "eval") for row in rows]
    assert kinds == [(0, "eval"), (1, "loss"), (1, "eval"), (2, "loss"), (2, "eval"), (3, "loss"), (3, "eval")]


@pytest.mark.parametrize(
    ("target", "step", "then", "before"),
    [
        ("answers", 0, kill, False),
        ("answers", 1, kill, False),
        ("answers", 3, kill, True),
        ("answers", 3, kill, False),
        ("row", 2, kill, True),
        ("row", 3, kill, False),
        ("checkpoint", 2, kill, True),
        ("checkpoint", 3, kill, False),
        ("export", 0, kill, True),
        ("export", 0, kill, False),
        ("answers", 0, interrupt, False),
        ("answers", 1, interrupt, True),
        ("checkpoint", 2, interrupt, False),
    ],
)
def test_it_continues_as_if_nothing_had_happened(
    target: str,
    step: int,
    then: Callable[..., None],
    before: bool,
    uninterrupted: tuple[list[dict[str, Any]], list[dict[str, Any]]],
    tmp_path: Path,
) -> None:
    owner, name, step_of = TARGETS[target]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, at(step, then, before=before)(getattr(owner, name), step_of))
        with pytest.raises((Killed, SystemExit)):
            run(tmp_path, "stopped")
    assert left(run(tmp_path, "stopped", resume=True)) == uninterrupted


SHARES = ("budget.steps=null", "budget.trained_tokens=250", "eval.every=0", "eval.times=3")


@pytest.fixture(scope="module")
def at_shares(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    return left(run(tmp_path_factory.mktemp("shares"), "whole", *SHARES))


def evaluated_at(rows: list[dict[str, Any]]) -> list[int]:
    return [row["step"] for row in rows if "loss/total" not in row]


def test_evaluations_come_at_even_shares_of_the_budget(
    at_shares: tuple[list[dict[str, Any]], list[dict[str, Any]]],
) -> None:
    rows, _ = at_shares
    spent = [0.0, *(row["progress/trained_tokens"] / 250 for row in rows if "loss/total" in row)]
    assert spent[-2] < 1.0 <= spent[-1]
    crossed = [min(step for step, share in enumerate(spent) if share >= part / 3) for part in range(4)]
    assert evaluated_at(rows) == crossed and len(set(crossed)) == 4


@pytest.mark.parametrize("which", [1, 2])
@pytest.mark.parametrize(("target", "then", "before"), [("answers", kill, True), ("answers", kill, False),
    ("checkpoint", kill, True), ("answers", interrupt, True)])  # fmt: skip
def test_no_evaluation_at_a_share_is_lost_or_made_twice(
    which: int,
    target: str,
    then: Callable[..., None],
    before: bool,
    at_shares: tuple[list[dict[str, Any]], list[dict[str, Any]]],
    tmp_path: Path,
) -> None:
    owner, name, step_of = TARGETS[target]
    step = evaluated_at(at_shares[0])[which]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, at(step, then, before=before)(getattr(owner, name), step_of))
        with suppress(Killed, SystemExit):
            run(tmp_path, "stopped", *SHARES)
    assert left(run(tmp_path, "stopped", *SHARES, resume=True)) == at_shares


def test_a_finished_run_is_left_as_it_is(
    uninterrupted: tuple[list[dict[str, Any]], list[dict[str, Any]]], tmp_path: Path
) -> None:
    run(tmp_path, "stopped")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train_step", kill)
        patch.setattr(records, "append", kill)
        assert left(run(tmp_path, "stopped", resume=True)) == uninterrupted
