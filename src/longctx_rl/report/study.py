"""From results to estimates: mean scores, gains over the base, readings at equal cost, transfer.

Every interval comes from ``stats.contrast``, with runs and item families as crossed random effects. See
docs/evaluation.md.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import prod
from typing import Literal

import numpy as np

from longctx_rl.report.readings import Reading, Weights, final
from longctx_rl.report.results import Cell, Result
from longctx_rl.stats import Contrast, Estimate, contrast, holm, retention_influence
from longctx_rl.stats.studies import Scores

METHODS = ("sft", "kd", "grpo", "opd", "dgrpo", "opsd", "dgrpo_self")
"""In the order of the tables."""
BASE, TEACHER = "base", "teacher"
LEVEL = 0.05


@dataclass(frozen=True, slots=True)
class Column:
    """A quantity measured for each run: a mean over items of some tasks at one length, or the retention of code."""

    key: str
    title: str
    suite: str
    tasks: tuple[str, ...]
    """Empty for all tasks of the suite."""
    length: Literal["longest", "shortest"] | int = "longest"
    given: str | None = None
    """The task that conditions the score: P(pass | pass given)."""


COLUMNS = (
    Column("long_reasoning", "long reasoning", "heldout", ("multihop", "grounding")),
    Column("short_reasoning", "short reasoning", "heldout", ("multihop", "grounding"), "shortest"),
    Column("grounding", "grounding", "heldout", ("grounding",)),
    Column("longform", "longform", "heldout", ("longform",)),
    Column("longreason", "LongReason", "longreason", ("context",)),
    Column("longreason_short", "LongReason short", "longreason", ("original",)),
    Column("ruler", "RULER", "ruler", ()),
    Column("code_long", "code long", "code", ("bury",)),
    Column("code_short", "code short", "code", ("short",)),
    Column("retention", "retention", "code", ("bury",), given="short"),
)
"""Columns of the main tables. Long means the longest length that was evaluated."""
TITLED = {column.title: column for column in COLUMNS}
LONGREASON, CODE_LONG, CODE_SHORT, LONG_REASONING, SHORT_REASONING = (
    next(column for column in COLUMNS if column.key == key)
    for key in ("longreason", "code_long", "code_short", "long_reasoning", "short_reasoning")
)


@dataclass(frozen=True, slots=True)
class Value:
    """A number of a table with its uncertainty."""

    estimate: Estimate
    """The bounds are nan for a single run, which does not show how runs vary."""
    runs: int
    families: int
    p_value: float | None = None
    """For the null hypothesis of no difference; with Holm's correction over the rows of a column in tables."""
    detectable: float | None = None
    """The minimum detectable difference with 80 % power at the 5 % level."""
    starred: bool = False


def columns_of(results: Sequence[Result]) -> list[Column]:
    """The columns for which some result has items."""
    return [column for column in COLUMNS if any(_cells(result, column) for result in results)]


def methods_of(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Trained runs by method, in the order of the tables; methods outside ``METHODS`` come last."""
    names = sorted(
        {result.algo for result in results if result.trained}, key=lambda n: (n not in METHODS, _place(n), n)
    )
    return {name: sorted((r for r in results if r.trained and r.algo == name), key=_by_seed) for name in names}


def base_of(results: Sequence[Result]) -> Result | None:
    """The model before training: the collected base, else step 0 of the first run with the most common student."""
    for result in results:
        if result.algo == BASE and not result.trained:
            return result
    trained = [result for result in results if result.trained]
    usual = Counter(str(result.config.get("model.student")) for result in trained).most_common(1)
    for result in trained:
        if 0 in result.steps and str(result.config.get("model.student")) == usual[0][0]:
            return replace(result, name=f"step 0 of {result.name}", algo=BASE, seed=None)
    return None


def level(runs: Sequence[Result], column: Column, reading: Reading = final) -> Value | None:
    """The mean of some runs in a column; None if they have fewer than two families in common."""
    scores = arms([runs], column, reading)
    if scores is None:
        return None
    inference = contrast(scores)
    clipped = replace(inference.estimate, low=max(inference.estimate.low, 0.0), high=min(inference.estimate.high, 1.0))
    alone = runs[0].trained and len(scores[0]) < 2
    return _value(replace(inference, estimate=clipped), scores[0], alone=alone, tested=False)


def difference(
    runs: Sequence[Result],
    others: Sequence[Result],
    column: Column,
    reading: Reading = final,
    among: Sequence[Result] = (),
    confidence: float = 0.95,
) -> Value | None:
    """The mean of ``runs`` minus that of ``others``, over the families that they and all ``among`` answered."""
    scores = arms([runs, others, *([among] if among else [])], column, reading)
    if scores is None:
        return None
    after, before = scores[:2]
    inference = contrast([after, -before], confidence=confidence)
    return _value(inference, after, alone=len(after) < 2 or (others[0].trained and len(before) < 2))


def transfer(
    runs: Sequence[Result],
    others: Sequence[Result],
    reading: Reading = final,
    columns: tuple[Column, Column] = (CODE_LONG, CODE_SHORT),
) -> Value | None:
    """The difference of differences: (long, runs minus others) minus (short, runs minus others).

    For code and over the base it is the primary estimand of docs/evaluation.md.

    Args:
        columns: the long and the short column.
    """
    groups = _answering([runs, others], columns, reading)
    families = _shared(groups, columns, reading)
    if len(families) < 2:
        return None
    long, short = columns
    after, before = (
        _table(group, long, reading, families) - _table(group, short, reading, families) for group in groups
    )
    alone = len(after) < 2 or (others[0].trained and len(before) < 2)
    return _value(contrast([after, -before], reach=2.0), after, alone=alone)


def transfer_points(runs: Sequence[Result], base: Result, column: Column) -> list[dict[str, float]]:
    """Gains over the base on LongReason and in a code column, of each run at each evaluation after its start."""
    points = []
    for run in runs:
        trained = [step for step in run.steps if step > 0]
        for step in trained:

            def at(result: Result, step: int = step) -> Weights:
                return {step if result.trained else 0: 1.0}

            reasoning, code = difference([run], [base], LONGREASON, at), difference([run], [base], column, at)
            if reasoning is not None and code is not None:
                gains = {"longreason": reasoning.estimate.value, "code": code.estimate.value}
                points.append({"seed": run.seed or 0, "step": step, "last": step == trained[-1], **gains})
    return points


def with_holm(
    values: Mapping[str, Value | None], *, also: Callable[[str], bool] = lambda row: True
) -> dict[str, Value | None]:
    """A column's values with Holm's correction over its rows, and stars for p < 5 %.

    Args:
        values: row to its value.
        also: a further condition on a row for its star.
    """
    tested = {row: value.p_value for row, value in values.items() if value and value.p_value is not None}
    adjusted = dict(zip(tested, holm(list(tested.values())), strict=True))
    return {
        row: replace(value, p_value=adjusted[row], starred=adjusted[row] < LEVEL and also(row))
        if value and row in adjusted
        else value
        for row, value in values.items()
    }


def arms(groups: Sequence[Sequence[Result]], column: Column, reading: Reading) -> list[Scores] | None:
    """[S, F] of each group over the families that all runs of all groups answered.

    None if there are fewer than two such families, a group has no run, or runs were evaluated at different lengths.
    """
    columns = _conditions(column)
    groups = _answering(groups, columns, reading)
    families = _shared(groups, columns, reading)
    if len(families) < 2:
        return None
    if column.given is None:
        return [_table(group, column, reading, families) for group in groups]
    passed = [_table(group, columns[1], reading, families) for group in groups]
    if any(float(scores.mean()) == 0.0 for scores in passed):
        return None
    both = [_table(group, columns[0], reading, families, times=columns[1]) for group in groups]
    kept = [np.divide(b, p, out=np.zeros_like(b), where=p > 0) for b, p in zip(both, passed, strict=True)]
    return [retention_influence(long, given)[1] for long, given in zip(kept, passed, strict=True)]


def family_scores(result: Result, column: Column, read: Weights, times: Column | None = None) -> dict[str, float]:
    """Each family's mean score over the column's cells, for families that were answered at every step in ``read``.

    Args:
        read: evaluated steps with their weights.
        times: a column whose score is a factor, step by step; for retention, the given condition.
    """
    return _weighted(result, column, tuple(read.items()), times)


@cache
def _weighted(
    result: Result, column: Column, read: tuple[tuple[int, float], ...], times: Column | None
) -> dict[str, float]:
    columns = [column, *([times] if times else [])]
    steps = [(weight, [_at_step(result, factor, step) for factor in columns]) for step, weight in read]
    families = set.intersection(*(set(scores) for _, factors in steps for scores in factors))
    return {
        family: sum(weight * prod(scores[family] for scores in factors) for weight, factors in steps)
        for family in families
    }


def _at_step(result: Result, column: Column, step: int) -> dict[str, float]:
    by_family: dict[str, list[float]] = {}
    for cell in _cells(result, column):
        for family, score in result.cells[cell].scores.get(step, {}).items():
            by_family.setdefault(family, []).append(score)
    return {family: sum(scores) / len(scores) for family, scores in by_family.items()}


def _cells(result: Result, column: Column) -> list[Cell]:
    cells = [cell for cell in result.cells if cell[0] == column.suite and (not column.tasks or cell[1] in column.tasks)]
    lengths = [length for _, _, length in cells]
    if isinstance(column.length, int):
        chosen = column.length
    else:
        chosen = (max if column.length == "longest" else min)(lengths, default=0)
    return [cell for cell in cells if cell[2] == chosen]


def _lengths(groups: Sequence[Sequence[Result]], column: Column) -> set[int]:
    return {length for group in groups for result in group for _, _, length in _cells(result, column)}


def _answering(groups: Sequence[Sequence[Result]], columns: Sequence[Column], reading: Reading) -> list[list[Result]]:
    """The runs that have answers in every column where they are read; other runs are dropped, not imputed."""

    def answers(result: Result) -> bool:
        read = reading(result)
        return read is not None and all(family_scores(result, column, read) for column in columns)

    return [[result for result in group if answers(result)] for group in groups]


def _shared(groups: Sequence[Sequence[Result]], columns: Sequence[Column], reading: Reading) -> list[str]:
    """Families that every run answered in every column, sorted.

    Empty if a group is empty, or runs were evaluated at different lengths in a column.
    """
    if not all(groups) or any(len(_lengths(groups, column)) > 1 for column in columns):
        return []
    answered = [
        set(family_scores(result, column, reading(result) or {0: 1.0}))
        for group in groups
        for result in group
        for column in columns
    ]
    return sorted(set.intersection(*answered))


def _conditions(column: Column) -> list[Column]:
    """The column without its condition, and the condition as a column of its own; the column itself if it has none."""
    if column.given is None:
        return [column]
    return [replace(column, given=None), replace(column, tasks=(column.given,), given=None)]


def _table(
    group: Sequence[Result], column: Column, reading: Reading, families: Sequence[str], times: Column | None = None
) -> Scores:
    rows = [family_scores(result, column, reading(result) or {0: 1.0}, times) for result in group]
    return np.array([[row[family] for family in families] for row in rows])


def _value(inference: Contrast, scores: Scores, *, alone: bool, tested: bool = True) -> Value:
    """A contrast as a value of a table.

    Args:
        alone: there is only one training run, so the interval is unknown.
        tested: whether it has a p-value.
    """
    runs, families = scores.shape
    if alone:
        return Value(Estimate(inference.estimate.value, float("nan"), float("nan")), runs, families)
    p_value, detectable = (inference.p_value, inference.minimum_detectable) if tested else (None, None)
    return Value(inference.estimate, runs, families, p_value, detectable)


def _by_seed(result: Result) -> tuple[int, str]:
    return (result.seed or 0, result.name)


def _place(name: str) -> int:
    return METHODS.index(name) if name in METHODS else len(METHODS)
