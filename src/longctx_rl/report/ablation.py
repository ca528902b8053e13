"""Tables of an experiment with axes: scores of levels, and their differences to the default, the base, each other."""

from collections.abc import Iterator, Sequence
from statistics import fmean

from longctx_rl.report.comparison import at_equal_cost, costs_apart, differences, from_base, pairs
from longctx_rl.report.descriptions import costs, count, dynamics, fixed_of, levels, listing
from longctx_rl.report.experiment import Experiment
from longctx_rl.report.readings import Groups, equal_cost
from longctx_rl.report.results import Result
from longctx_rl.report.study import LEVEL, TITLED, Value, base_of, columns_of, difference, methods_of
from longctx_rl.report.tables import MINUS, Table, percent


def tables_of(experiment: Experiment, results: Sequence[Result]) -> list[Table]:
    """Up to five tables for each axis, then the costs and the list of runs."""
    columns, base = columns_of(results), base_of(results)
    tables: list[Table | None] = []
    every: dict[str, list[Result]] = {}
    for axis in experiment.axes:
        groups = groups_of(experiment, axis, results)
        every |= {f"{axis} {level}": list(runs) for level, runs in groups.items()}
        if not groups:
            continue
        default = experiment.default_level(axis)
        tables.append(levels(axis, _marked(groups, default), fixed_of(results, base), columns))
        changed = {level: runs for level, runs in groups.items() if level != default}
        if default is not None and default in groups and changed:
            caption = f"Difference from {axis} {default} in percentage points"
            tables.append(differences(f"{axis}_differences", changed, groups[default], columns, caption))
        if base is not None:
            tables.append(differences(f"{axis}_gains", groups, [base], columns, from_base(base)))
            for cost, readable in _readable(groups):
                tables.append(at_equal_cost(cost, readable, base, columns, f"{axis}_equal_{cost}"))
        if len(groups) > 2:
            tables.append(pairs(f"{axis}_pairs", groups, columns, "at the end of training"))
        tables.append(dynamics(groups, f"{axis}_dynamics"))
    tables += [equivalence(experiment, results), prediction(experiment, results)]
    compared = {run.name: run.algo for runs in every.values() for run in runs}
    others = [run for run in results if run.trained and run.name not in compared]  # such as cold starts
    unplaced = {run.name for run in others if run.algo in compared.values()}
    tables += [costs(every | methods_of(others)), listing(results, unplaced)]
    return [table for table in tables if table is not None]


def _readable(groups: Groups) -> Iterator[tuple[str, Groups]]:
    """Costs at which levels can be compared where they are equal, and the levels that can.

    Every run of such a level was evaluated before and after, or ends there.
    """
    for cost in costs_apart(groups):
        reading = equal_cost(groups, cost)[2]
        readable = {level: runs for level, runs in groups.items() if all(map(reading, runs))}
        if len(readable) > 1 and costs_apart(readable):
            yield cost, readable


def equivalence(experiment: Experiment, results: Sequence[Result]) -> Table | None:
    """Whether the default level and another are equivalent: two one-sided tests (Schuirmann, 1987).

    None without such a question in axes.yaml, and without runs of both levels.
    """
    asked = experiment.equivalence
    if asked is None:
        return None
    default = experiment.default_level(asked.axis)
    assert default is not None
    groups = groups_of(experiment, asked.axis, results)
    column = TITLED[asked.column]
    if default not in groups or asked.level not in groups:
        return None
    value = difference(groups[default], groups[asked.level], column, confidence=1.0 - 2 * LEVEL)
    if value is None:
        return None
    inside = -asked.margin < value.estimate.low and value.estimate.high < asked.margin
    verdict = "equivalent" if inside else "equivalence not shown"
    note = (
        f"Percentage points of {column.title}, with the 90 % interval. The levels are called equivalent if it lies "
        f"within the margin of {percent(asked.margin)} points either way, which was fixed in advance: two one-sided "
        "tests at the 5 % level."
    )
    row = (count(groups[default]), count(groups[asked.level]), value, percent(asked.margin), verdict)
    headings = ("", f"runs {default}", f"runs {asked.level}", column.title, "margin", "verdict")
    return Table("equivalence", note, headings, ((f"{default} {MINUS} {asked.level}", row),), signed=True)


def prediction(experiment: Experiment, results: Sequence[Result]) -> Table | None:
    """Whether a metric that was measured before training predicts the gain: Spearman's rank correlation over levels.

    None without such a question in axes.yaml, without the base, and with fewer than three levels that have both.
    """
    asked, base = experiment.prediction, base_of(results)
    if asked is None or base is None:
        return None
    column = TITLED[asked.column]
    points: dict[str, tuple[float, Value]] = {}
    placed: set[str] = set()
    for axis in asked.axes:
        for level, runs in groups_of(experiment, axis, results).items():
            measured = [run.before[asked.metric] for run in runs if asked.metric in run.before]
            gain = difference(runs, [base], column)
            if measured and gain is not None and not placed & {run.name for run in runs}:
                points[f"{axis} {level}"] = (fmean(measured), gain)
            placed |= {run.name for run in runs}
    if len(points) < 3:
        return None
    from scipy.stats import spearmanr

    before, gains = zip(*((value, gain.estimate.value) for value, gain in points.values()), strict=True)
    correlation = "not defined, because one of them is constant"
    if len(set(before)) > 1 and len(set(gains)) > 1:
        tested = spearmanr(before, gains)
        correlation = f"{tested.statistic:+.2f} (p = {tested.pvalue:.2g})".replace("-", MINUS)
    note = (
        f"{asked.metric} in percentage points, measured before training (mean over runs), and "
        f"{from_base(base).lower()} in {column.title}. Spearman's rank correlation over the {len(points)} rows: "
        f"{correlation}."
    )
    rows = tuple((row, (percent(value, signed=True), gain)) for row, (value, gain) in points.items())
    return Table("prediction", note, ("", asked.metric, f"gain in {column.title}"), rows, signed=True)


def groups_of(experiment: Experiment, axis: str, results: Sequence[Result]) -> Groups:
    """The runs of each level of an axis, in the order of axes.yaml, without levels that have none."""
    groups = {level: experiment.level(axis, level, results) for level in experiment.axes[axis]}
    return {level: runs for level, runs in groups.items() if runs}


def _marked(groups: Groups, default: str | None) -> Groups:
    return {f"{level} (default)" if level == default else level: runs for level, runs in groups.items()}
