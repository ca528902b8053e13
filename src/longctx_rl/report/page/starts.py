"""What models answered that no run here trained: the students that runs started from, and others."""

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
    """Weights that no run trained. Equal to itself alone."""

    name: str
    """Its folder, as it lies under the page's."""
    checkpoint: str
    evals: Evals
    folder: Path | None = None
    """None: a run was asked at its step 0."""

    @cached_property
    def result(self) -> Result:
        """As the study's estimates take it."""
        return Result(name=self.name, algo=self.name, seed=None, cells=cells_of(self.evals))


def starts_of(
    runs: Sequence[Run], settings: Sequence[Settings], evals: Sequence[Evals], fixed: Sequence[Fixed]
) -> list[Fixed | None]:
    """For each run what its student answered before training.

    In a folder of its own, beside the run rather than elsewhere; else in the first run of that student that was asked
    then. None: nobody asked.
    """
    students = [str(json.loads(own.get("model.student", "null"))) for own in settings]
    at_start: dict[str, Fixed] = {}
    for student, suites in zip(students, evals, strict=True):
        asked = {suite: [one for one in records if one.step == 0] for suite, records in suites.items()}
        if any(asked.values()):
            at_start.setdefault(student, Fixed(f"step 0 of {student}", student, asked))
    found = []
    for run, student in zip(runs, students, strict=True):
        folders = [one for one in fixed if one.checkpoint == student]
        folders.sort(key=lambda one: one.folder is None or one.folder.parent != run.path.parent)
        found.append(folders[0] if folders else at_start.get(student))
    return found


def common(starts: Sequence[Fixed | None]) -> Fixed | None:
    """The start of all of some runs; None if they differ, so that nothing is measured from another run's student."""
    return starts[0] if len(set(starts)) == 1 else None


def labels(starts: Sequence[Fixed | None]) -> dict[Fixed, str]:
    """Each start that some run has, once, with its name on the page."""
    used = list(dict.fromkeys(one for one in starts if one is not None))
    if len(used) == 1:
        return {used[0]: "before training"}
    return {one: f"before training: {one.checkpoint if one.folder is None else one.name}" for one in used}
