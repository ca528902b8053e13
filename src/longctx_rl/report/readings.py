"""Where a run's scores are read: at its end, or where it has spent as much as another."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from statistics import fmean, median

from longctx_rl.report.results import COSTS, Result

SLACK = 1.05
"""A run's end may exceed the common budget by this factor and is still read: budgets are met by whole steps."""

Groups = Mapping[str, Sequence[Result]]
"""Each row of a table with its runs."""
Weights = Mapping[int, float]
"""Evaluated steps with weights that sum to 1: two steps mean that scores are interpolated between them."""
Reading = Callable[[Result], Weights | None]
"""Which evaluated steps of a result are read; None if it cannot be read."""


def last_step(result: Result) -> int | None:
    """The step of a run's last evaluation, or 0 for fixed weights; None if a run was not evaluated after its start."""
    if not result.trained:
        return 0
    trained = [step for step in result.steps if step > 0]
    return trained[-1] if trained else None


def final(result: Result) -> Weights | None:
    """Read the last evaluation."""
    step = last_step(result)
    return None if step is None else {step: 1.0}


def spending(methods: Groups, axis: str) -> dict[str, dict[int, float]]:
    """Cumulative cost of each run at its evaluated steps, by the run's name, for runs that recorded it at their end.

    Seconds are those of the method: trained tokens times the median over its runs of seconds per trained token. A
    machine that was busy with something else during one run then has no effect.
    """
    costs: dict[str, dict[int, float]] = {}
    for runs in methods.values():
        ended = [run for run in runs if last_step(run) and axis in run.costs.get(last_step(run) or 0, {})]
        if axis == "wall_seconds":
            ends = [run.costs[last_step(run) or 0] for run in ended]
            rate = median(end[axis] / end["trained_tokens"] for end in ends) if ends else 0.0
            costs |= {run.name: {s: rate * cost["trained_tokens"] for s, cost in run.costs.items()} for run in ended}
        else:
            costs |= {run.name: {step: cost[axis] for step, cost in run.costs.items()} for run in ended}
    return costs


def equal_cost(methods: Groups, axis: str) -> tuple[float, dict[str, dict[int, float]], Reading]:
    """The total of the cheapest method (mean over its runs), the costs of every run, and the reading at that total.

    A run is read at its end if that is within ``SLACK``, otherwise between the two evaluations around the limit.

    Raises:
        ValueError: no run recorded this cost at its end.
    """
    spent = spending(methods, axis)
    ends = [[spent[run.name][last_step(run) or 0] for run in runs if run.name in spent] for runs in methods.values()]
    if not any(ends):
        raise ValueError(f"no run has recorded {axis} at its end: choose another of {', '.join(COSTS)}")
    limit = min(fmean(costs) for costs in ends if costs)

    def reading(result: Result) -> Weights | None:
        if not result.trained:
            return {0: 1.0}
        points = sorted((cost, step) for step, cost in spent.get(result.name, {}).items() if step in result.steps)
        if points and points[-1][0] <= SLACK * limit:
            return {points[-1][1]: 1.0}
        for (low, before), (high, after) in pairwise(points):
            if low <= limit < high:
                share = (limit - low) / (high - low)
                return {before: 1.0 - share, after: share} if share else {before: 1.0}
        return None

    return limit, spent, reading
