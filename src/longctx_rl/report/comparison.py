"""The tables of an experiment that compares methods. Those with tests stand here: gains, equal costs, pairs."""

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
WORDS = {"trained_tokens": "trained tokens", "flops": "FLOPs", "wall_seconds": "seconds of training"}

COULD = (
    "Could be found: the largest difference that a row needs for 80 % power at the 5 % level, before that correction."
)
"""What the last row of a table of differences says."""


def tables_of(results: Sequence[Result]) -> list[Table]:
    """Every table of a comparison of methods that the results allow."""
    methods, base = methods_of(results), base_of(results)
    columns = columns_of(results)
    recorded = [axis for axis in COSTS if spending(methods, axis) and not _met_by_all(methods, axis)]
    tables = [levels("levels", methods, fixed_of(results, base), columns, caption=_base_note(base))]
    if base is not None:
        if {LONG_REASONING, LONGREASON, CODE_LONG, CODE_SHORT} <= set(columns):
            tables.append(summary(methods, base, recorded))
        tables.append(differences("gains", methods, [base], columns, base.name))
        tables += [at_equal_cost(axis, methods, base, columns) for axis in recorded]
    if len(methods) > 1:
        tables.append(pairs("pairs", methods, columns, "at the end of training"))
        for axis in recorded:
            limit, _, reading = equal_cost(methods, axis)
            tables.append(pairs(f"pairs_{axis}", methods, columns, f"within {limit:.3g} {WORDS[axis]}", reading))
    if base is not None and {CODE_LONG, CODE_SHORT} <= set(columns):
        tables.append(transfers(methods, base))
        if (moved := slopes(methods, base)) is not None:
            tables.append(moved)
    tables.append(by_length(methods, fixed_of(results, base)))
    if (moved := dynamics(methods)) is not None:
        tables.append(moved)
    if (compared := rewards(methods)) is not None:
        tables.append(compared)
    if (found := length_costs.table(methods)) is not None:
        tables.append(found)
    return [*tables, costs(methods), listing(results)]


def summary(methods: Groups, base: Result, axes: Sequence[str]) -> Table:
    """The gains that the study is about, in one table: long reasoning at each equal cost, and what carried over."""
    readings = {"": final} | {f", equal {WORDS[axis]}": equal_cost(methods, axis)[2] for axis in axes}
    everyone = all_of(methods)
    found = [
        with_holm({row: difference(runs, [base], LONG_REASONING, reading, among) for row, runs in methods.items()})
        for reading, among in ((reading, everyone if words else ()) for words, reading in readings.items())
    ]
    carried, long, short, primary = _carried_over(methods, base)
    found += [carried, long, short, primary]
    headings = [f"{LONG_REASONING.title}{words}" for words in readings]
    headings += ["LongReason", "code long", "code short", "code, long minus short"]
    rows: list[tuple[str, tuple[Entry, ...]]] = [
        (row, (count(runs), *(column[row] for column in found))) for row, runs in methods.items()
    ]
    rows.append(("could be found", ("", *map(_detectable, found))))
    fewer = [
        f"{row}, {heading} ({value.runs})"
        for heading, column in zip(headings, found, strict=True)
        for row, value in column.items()
        if value and value.runs != len(methods[row])
    ]
    of_fewer = f" Of fewer runs: {', '.join(fewer)}." if fewer else ""
    note = (
        f"Percentage points over {base.name}, with 95 % intervals over runs and item families, at the end of training "
        "unless a column says otherwise. Long minus short, the difference of differences, is the primary quantity; "
        "forgetting short code raises it, too, so it has a star only where long code itself was gained. A star is p < "
        "5 % with Holm's correction over the rows of its column. "
        f"{COULD}{of_fewer}"
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
    """Row x column: difference to the same other runs, Holm over rows, and what the study could have found. ``among``:
    runs whose families all rows keep to."""
    found = [
        with_holm({row: difference(runs, others, column, reading, among) for row, runs in groups.items()})
        for column in columns
    ]
    rows: list[tuple[str, tuple[Entry, ...]]] = [
        (row, (count(runs, reading), *(column[row] for column in found))) for row, runs in groups.items()
    ]
    rows.append(("could be found", ("", *map(_detectable, found))))
    star = "A star is p < 5 % with Holm's correction over the rows of its column."
    note = f"Percentage points over {caption}. {star} {COULD}"
    return Table(name, note, ("", "runs", *(column.title for column in columns)), tuple(rows), signed=True)


def at_equal_cost(axis: str, methods: Groups, base: Result, columns: Sequence[Column]) -> Table:
    """Gains over the base, each run read where it has spent what the cheapest method spends in all."""
    limit, spent, reading = equal_cost(methods, axis)
    said = []
    for row, runs in methods.items():
        read = [(spent[run.name], weights) for run in runs if (weights := reading(run)) is not None]
        if read:
            cost = fmean(sum(weight * costs[step] for step, weight in weights.items()) for costs, weights in read)
            steps = fmean(sum(weight * step for step, weight in weights.items()) for _, weights in read)
            said.append(f"{row} {cost:.3g} (step {steps:.0f})")
    seconds = " (of a method's runs the median for each trained token)" if axis == "wall_seconds" else ""
    caption = (
        f"{base.name}, each run where it has spent {limit:.3g} {WORDS[axis]}{seconds}, what the cheapest method spends "
        "in all: at its end if that is within 5 %, else between two evaluations, whose scores are interpolated. Read "
        f"at, mean over runs: {', '.join(said)}. Evaluations during training ask fewer items; all rows are over the "
        "items that every run answered where it is read"
    )
    return differences(f"equal_{axis}", methods, [base], columns, caption, reading, all_of(methods))


def transfers(methods: Groups, base: Result) -> Table:
    """Gains in reasoning and in code, and how much more was gained when long than when short."""
    lengths = (LONG_REASONING, SHORT_REASONING)
    grown = with_holm({row: transfer(runs, [base], columns=lengths) for row, runs in methods.items()})
    found = [grown, *_carried_over(methods, base)]
    rows: list[tuple[str, tuple[Entry, ...]]] = [
        (row, (count(runs), *(column[row] for column in found))) for row, runs in methods.items()
    ]
    rows.append(("could be found", ("", *map(_detectable, found))))
    caption = (
        f"Percentage points over {base.name}. Long minus short is the difference of differences, of code the primary "
        "quantity; forgetting short code raises it, too, so it has a star only where long code itself was gained. "
        "Stars: p < 5 %, Holm over methods."
    )
    reasoning, code = LONG_MINUS_SHORT
    headings = ("", "runs", reasoning, "LongReason", "code long", "code short", code)
    return Table("transfer", caption, headings, tuple(rows), signed=True)


def _carried_over(methods: Groups, base: Result) -> list[dict[str, Value | None]]:
    """Gains on LongReason, long and short code; and the primary quantity, starred only where long code was gained."""
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
    """Each method against each other one, Holm over pairs; and whether the difference is another one when long."""
    named = {f"{late} {MINUS} {early}": (methods[late], methods[early]) for early, late in combinations(methods, 2)}
    found = [
        with_holm({row: difference(runs, others, column, reading) for row, (runs, others) in named.items()})
        for column in columns
    ]
    headings = [column.title for column in columns]
    for title, both in LONG_MINUS_SHORT.items():
        if set(both) <= set(columns):
            found.append(with_holm({row: transfer(*two, reading, both) for row, two in named.items()}))
            headings.append(title)
    rows: list[tuple[str, tuple[Entry, ...]]] = [(row, tuple(column[row] for column in found)) for row in named]
    rows.append(("could be found", tuple(map(_detectable, found))))
    note = (
        f"Percentage points, {where}, runs as in the tables above. A star is p < 5 % with Holm's "
        f"correction over the {len(named)} pairs of its column, none over columns. Long "
        f"minus short: the difference of the differences. {COULD}"
    )
    return Table(name, note, ("", *headings), tuple(rows), signed=True)


def _met_by_all(methods: Groups, axis: str) -> bool:
    """Whether all runs have spent the same in all, so that they are read at their ends."""
    _, _, reading = equal_cost(methods, axis)
    return all(reading(run) == final(run) for run in all_of(methods))


def _detectable(values: Mapping[str, Value | None]) -> str | None:
    found = [value.detectable for value in values.values() if value and value.detectable is not None]
    if not found:
        return None
    return percent(max(found)) if max(found) <= 1.0 else "over 100"


def _base_note(base: Result | None) -> str:
    return f"The base is {base.name}." if base is not None and base.name != BASE else ""
