"""Evaluations of untrained models: of the students that runs started from, and of others such as the teacher."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from longctx_rl.evals.records import ItemRecord
from longctx_rl.report.collect import cells_of
from longctx_rl.report.page.arms import Settings
from longctx_rl.report.results import Result
from longctx_rl.report.runs import Run

Evals = dict[str, list[ItemRecord]]
"""Suite to its records."""


@dataclass(frozen=True, eq=False)
class Fixed:
    """An evaluation of fixed weights. Compared by identity."""

    name: str
    """Its folder, relative to the folder of the page's runs."""
    checkpoint: str
    evals: Evals
    folder: Path | None = None
    """None if this is a run's evaluation at step 0."""

    @cached_property
    def result(self) -> Result:
        """The evaluation as the study's estimates need it."""
        return Result(name=self.name, algo=self.name, seed=None, cells=cells_of(self.evals))


def starts_of(
    runs: Sequence[Run], settings: Sequence[Settings], evals: Sequence[Evals], fixed: Sequence[Fixed]
) -> list[Fixed | None]:
    """The evaluation of each run's student before training.

    It is an evaluation folder of that student, preferably beside the run; else step 0 of the first run with that
    student that was evaluated then. None if there is neither.
    """
    students = [str(json.loads(own.get("model.student", "null"))) for own in settings]
    at_start: dict[str, Fixed] = {}
    for student, suites in zip(students, evals, strict=True):
        before = {suite: [record for record in records if record.step == 0] for suite, records in suites.items()}
        if any(before.values()):
            at_start.setdefault(student, Fixed(f"step 0 of {student}", student, before))
    starts = []
    for run, student in zip(runs, students, strict=True):
        folders = [evaluation for evaluation in fixed if evaluation.checkpoint == student]
        folders.sort(key=lambda evaluation: evaluation.folder is None or evaluation.folder.parent != run.path.parent)
        starts.append(folders[0] if folders else at_start.get(student))
    return starts


def common(starts: Sequence[Fixed | None]) -> Fixed | None:
    """The common start of some runs; None if they differ, because gains are measured from a run's own student only."""
    return starts[0] if len(set(starts)) == 1 else None


def labels(starts: Sequence[Fixed | None]) -> dict[Fixed, str]:
    """The distinct starts of the runs, with their names on the page."""
    used = list(dict.fromkeys(start for start in starts if start is not None))
    if len(used) == 1:
        return {used[0]: "before training"}
    return {start: f"before training: {start.checkpoint if start.folder is None else start.name}" for start in used}
