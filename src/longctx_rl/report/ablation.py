"""Tables of an experiment with axes: scores of levels, and their differences to the default, the base, each other."""

from collections.abc import Sequence

from longctx_rl.report.comparison import differences, from_base, pairs
from longctx_rl.report.descriptions import costs, dynamics, fixed_of, levels, listing
from longctx_rl.report.experiment import Experiment
from longctx_rl.report.readings import Groups
from longctx_rl.report.results import Result
from longctx_rl.report.study import base_of, columns_of, methods_of
from longctx_rl.report.tables import Table


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
        if len(groups) > 2:
            tables.append(pairs(f"{axis}_pairs", groups, columns, "at the end of training"))
        tables.append(dynamics(groups, f"{axis}_dynamics"))
    compared = {run.name: run.algo for runs in every.values() for run in runs}
    others = [run for run in results if run.trained and run.name not in compared]  # such as cold starts
    unplaced = {run.name for run in others if run.algo in compared.values()}
    tables += [costs(every | methods_of(others)), listing(results, unplaced)]
    return [table for table in tables if table is not None]


def groups_of(experiment: Experiment, axis: str, results: Sequence[Result]) -> Groups:
    """The runs of each level of an axis, in the order of axes.yaml, without levels that have none."""
    groups = {level: experiment.level(axis, level, results) for level in experiment.axes[axis]}
    return {level: runs for level, runs in groups.items() if runs}


def _marked(groups: Groups, default: str | None) -> Groups:
    return {f"{level} (default)" if level == default else level: runs for level, runs in groups.items()}
