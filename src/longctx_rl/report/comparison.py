"""Tables of an experiment that compares methods. Those with significance tests are here: gains, equal costs, pairs."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import fmean

from longctx_rl.report import length_costs
from longctx_rl.report.descriptions import (
    all_of,
    by_length,
    costs,
    count,
    dynamics,
    fixed_of,
    levels,
    listing,
    rewards,
    slopes,
)
from longctx_rl.report.readings import Groups, Reading, equal_cost, final, spending
from longctx_rl.report.results import COSTS, Result
from longctx_rl.report.study import (
    BASE,
    CODE_LONG,
    CODE_SHORT,
    LONG_REASONING,
    LONGREASON,
    SHORT_REASONING,
    Column,
    Value,
    base_of,
    columns_of,
    difference,
    methods_of,
    transfer,
    with_holm,
)
from longctx_rl.report.tables import MINUS, Entry, Table, percent

LONG_MINUS_SHORT = {
    "reasoning, long minus short": (LONG_REASONING, SHORT_REASONING),
    "code, long minus short": (CODE_LONG, CODE_SHORT),
}
HEADLINE = (LONG_REASONING, SHORT_REASONING, CODE_LONG, CODE_SHORT)
"""Columns of the short table of gains for readers who want only one."""
WORDS = {"trained_tokens": "trained tokens", "flops": "FLOPs", "wall_seconds": "seconds of training"}

DETECTABLE = "minimum detectable difference"
"""Name of the last row of a table of differences."""
DETECTABLE_NOTE = (
    "Minimum detectable difference: the true difference that is detected with 80 % power at the 5 % level, before that "
    "correction; the largest of the column's rows."
)
STAR = "A star marks p < 5 % after Holm's correction over the rows of a column."
PRIMARY = "has a star only where long code itself improved, because it also rises when a method forgets short code"
"""When the difference of differences in code is starred."""


def tables_of(results: Sequence[Result]) -> list[Table]:
    """All tables of a comparison of methods that can be computed from the results."""
    methods, base = methods_of(results), base_of(results)
    columns = columns_of(results)
    recorded = costs_apart(methods)
    tables: list[Table | None] = [levels("levels", methods, fixed_of(results, base), columns, caption=_base_note(base))]
    if base is not None:
        if set(HEADLINE) <= set(columns):
            tables.append(differences("headline", methods, [base], HEADLINE, from_base(base)))
        if {LONG_REASONING, LONGREASON, CODE_LONG, CODE_SHORT} <= set(columns):
            tables.append(summary(methods, base, recorded))
        tables.append(differences("gains", methods, [base], columns, from_base(base)))
        tables += [at_equal_cost(axis, methods, base, columns) for axis in recorded]
    if len(methods) > 1:
        tables.append(pairs("pairs", methods, columns, "at the end of training"))
        for axis in recorded:
            limit, _, reading = equal_cost(methods, axis)
            tables.append(pairs(f"pairs_{axis}", methods, columns, f"within {limit:.3g} {WORDS[axis]}", reading))
    if base is not None and {CODE_LONG, CODE_SHORT} <= set(columns):
        tables.append(transfers(methods, base))
        tables.append(slopes(methods, base))
    tables += [by_length(methods, fixed_of(results, base)), dynamics(methods), rewards(methods)]
    tables += [length_costs.table(methods), costs(methods), listing(results)]
    return [table for table in tables if table is not None]


def summary(methods: Groups, base: Result, axes: Sequence[str]) -> Table:
    """The main gains in one table: long reasoning, also at each equal cost, and the transfer to code."""
    readings = {"": final} | {f", equal {WORDS[axis]}": equal_cost(methods, axis)[2] for axis in axes}
    everyone = all_of(methods)
    values = [
        with_holm({row: difference(runs, [base], LONG_REASONING, reading, among) for row, runs in methods.items()})
        for reading, among in ((reading, everyone if words else ()) for words, reading in readings.items())
    ]
    carried, long, short, primary = _carried_over(methods, base)
    values += [carried, long, short, primary]
    headings = [f"{LONG_REASONING.title}{words}" for words in readings]
    headings += ["LongReason", "code long", "code short", "code, long minus short"]
    rows: list[tuple[str, tuple[Entry, ...]]] = [
        (row, (count(runs), *(column[row] for column in values))) for row, runs in methods.items()
    ]
    rows.append((DETECTABLE, ("", *map(_detectable, values))))
    fewer = [
        f"{row}, {heading} ({value.runs})"
        for heading, column in zip(headings, values, strict=True)
        for row, value in column.items()
        if value and value.runs != len(methods[row])
    ]
    of_fewer = f" Computed from fewer runs: {', '.join(fewer)}." if fewer else ""
    note = (
        f"{from_base(base)}, with 95 % intervals over runs and item families, at the end of training "
        f"unless a column says otherwise. Long minus short, the difference of differences, is the primary quantity; it "
        f"{PRIMARY}. {STAR} {DETECTABLE_NOTE}{of_fewer}"
    )
    return Table("summary", note, ("", "runs", *headings), tuple(rows), signed=True)


def differences(
    name: str,
    groups: Groups,
    others: Sequence[Result],
    columns: Sequence[Column],
    caption: str,
    reading: Reading = final,
    among: Sequence[Result] = (),
) -> Table:
    """Row x column: the difference to the same other runs, and the minimum detectable one in the last row.

    Args:
        others: the runs that every row is compared with.
        caption: what the differences are taken from, for the footer.
        among: runs that restrict the families of all rows to those that they answered, too.
    """
    values = [
        with_holm({row: difference(runs, others, column, reading, among) for row, runs in groups.items()})
        for column in columns
    ]
    rows: list[tuple[str, tuple[Entry, ...]]] = [
        (row, (count(runs, reading), *(column[row] for column in values))) for row, runs in groups.items()
    ]
    rows.append((DETECTABLE, ("", *map(_detectable, values))))
    note = f"{caption}. {STAR} {DETECTABLE_NOTE}"
    return Table(name, note, ("", "runs", *(column.title for column in columns)), tuple(rows), signed=True)


def from_base(base: Result) -> str:
    """The beginning of a footer: what the differences to the base are."""
    return f"Difference from {'the base' if base.name == BASE else base.name} in percentage points"


def at_equal_cost(
    axis: str, methods: Groups, base: Result, columns: Sequence[Column], name: str | None = None
) -> Table:
    """Gains over the base, with each run read where it has spent the total of the cheapest method.

    ``name``: of the table; None: ``equal_<axis>``.
    """
    limit, spent, reading = equal_cost(methods, axis)
    places = []
    for row, runs in methods.items():
        read = [(spent[run.name], weights) for run in runs if (weights := reading(run)) is not None]
        if read:
            cost = fmean(sum(weight * costs[step] for step, weight in weights.items()) for costs, weights in read)
            steps = fmean(sum(weight * step for step, weight in weights.items()) for _, weights in read)
            places.append(f"{row} {cost:.3g} (step {steps:.0f})")
    seconds = " (per trained token, the median over a method's runs)" if axis == "wall_seconds" else ""
    caption = (
        f"{from_base(base)}, with each run read where it has spent {limit:.3g} {WORDS[axis]}{seconds}, the total of "
        "the cheapest method: at its end if that is within 5 %, otherwise between two evaluations, whose scores are "
        f"interpolated. Cost and step at which a method is read, means over runs: {', '.join(places)}. Evaluations "
        "during training have fewer items; all rows use the items that every run answered where it is read"
    )
    return differences(name or f"equal_{axis}", methods, [base], columns, caption, reading, all_of(methods))


def transfers(methods: Groups, base: Result) -> Table:
    """Gains in reasoning and code, and by how much the gain on long prompts exceeds that on short ones."""
    lengths = (LONG_REASONING, SHORT_REASONING)
    grown = with_holm({row: transfer(runs, [base], columns=lengths) for row, runs in methods.items()})
    values = [grown, *_carried_over(methods, base)]
    rows: list[tuple[str, tuple[Entry, ...]]] = [
        (row, (count(runs), *(column[row] for column in values))) for row, runs in methods.items()
    ]
    rows.append((DETECTABLE, ("", *map(_detectable, values))))
    caption = (
        f"{from_base(base)}. Long minus short is the difference of differences. For code it is the "
        f"primary quantity, and {PRIMARY}. {STAR}"
    )
    reasoning, code = LONG_MINUS_SHORT
    headings = ("", "runs", reasoning, "LongReason", "code long", "code short", code)
    return Table("transfer", caption, headings, tuple(rows), signed=True)


def _carried_over(methods: Groups, base: Result) -> list[dict[str, Value | None]]:
    """Gains on LongReason, long and short code; and the primary quantity, starred only where long code improved."""
    reasoning, long, short = (
        with_holm({row: difference(runs, [base], column) for row, runs in methods.items()})
        for column in (LONGREASON, CODE_LONG, CODE_SHORT)
    )

    def gained(row: str) -> bool:
        value = long[row]
        return value is not None and value.runs > 1 and value.estimate.low > 0.0

    return [
        reasoning,
        long,
        short,
        with_holm({row: transfer(runs, [base]) for row, runs in methods.items()}, also=gained),
    ]


def pairs(name: str, methods: Groups, columns: Sequence[Column], where: str, reading: Reading = final) -> Table:
    """Differences of all pairs of methods, and differences of differences of long and short prompts."""
    named = {f"{late} {MINUS} {early}": (methods[late], methods[early]) for early, late in combinations(methods, 2)}
    values = [
        with_holm({row: difference(runs, others, column, reading) for row, (runs, others) in named.items()})
        for column in columns
    ]
    headings = [column.title for column in columns]
    for title, both in LONG_MINUS_SHORT.items():
        if set(both) <= set(columns):
            values.append(with_holm({row: transfer(*two, reading, both) for row, two in named.items()}))
            headings.append(title)
    rows: list[tuple[str, tuple[Entry, ...]]] = [(row, tuple(column[row] for column in values)) for row in named]
    rows.append((DETECTABLE, tuple(map(_detectable, values))))
    note = (
        f"Percentage points, {where}, for the runs of the tables above. A star marks p < 5 % after Holm's correction "
        f"over the {len(named)} pairs of a column; columns are not corrected for each other. Long minus short is the "
        f"difference of differences. {DETECTABLE_NOTE}"
    )
    return Table(name, note, ("", *headings), tuple(rows), signed=True)


def costs_apart(methods: Groups) -> list[str]:
    """Costs of which runs have not all spent the same, so that they are not all read at their ends."""

    def met_by_all(axis: str) -> bool:
        _, _, reading = equal_cost(methods, axis)
        return all(reading(run) == final(run) for run in all_of(methods))

    return [axis for axis in COSTS if spending(methods, axis) and not met_by_all(axis)]


def _detectable(values: Mapping[str, Value | None]) -> str | None:
    """The largest minimum detectable difference of a column's rows, in points; None if no row has one."""
    detectable = [value.detectable for value in values.values() if value and value.detectable is not None]
    if not detectable:
        return None
    return percent(max(detectable)) if max(detectable) <= 1.0 else "over 100"


def _base_note(base: Result | None) -> str:
    return f"The base is {base.name}." if base is not None and base.name != BASE else ""
