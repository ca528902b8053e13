"""The tables of an experiment that compares methods: levels, gains, equal costs, transfer, context length, costs."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from longctx_rl.report import length_costs
from longctx_rl.report.results import COSTS, Result
from longctx_rl.report.study import (
    BASE,
    CODE_LONG,
    CODE_SHORT,
    LONGREASON,
    Column,
    Groups,
    Reading,
    Value,
    base_of,
    columns_of,
    difference,
    equal_cost,
    final,
    final_costs,
    level,
    methods_of,
    transfer,
    with_holm,
)
from longctx_rl.report.tables import NOTHING, Entry, Table, percent

INTERVALS = "Percent of items; brackets are 95 % intervals over runs and item families."
WORDS = {"trained_tokens": "trained tokens", "flops": "FLOPs", "wall_seconds": "seconds of training"}


def tables_of(results: Sequence[Result]) -> list[Table]:
    """Every table of a comparison of methods that the results allow."""
    methods, base = methods_of(results), base_of(results)
    columns = columns_of(results)
    tables = [levels("levels", methods, fixed_of(results, base), columns, caption=_base_note(base))]
    if base is not None:
        tables.append(differences("gains", methods, [base], columns, base.name))
        recorded = [axis for axis in COSTS if final_costs(results, axis)]
        tables += [at_equal_cost(axis, methods, base, columns) for axis in recorded]
    if base is not None and {CODE_LONG, CODE_SHORT} <= set(columns):
        tables.append(transfers(methods, base))
    tables.append(by_length(methods, fixed_of(results, base)))
    if (found := length_costs.table(methods)) is not None:
        tables.append(found)
    return [*tables, costs(methods), listing(results)]


def fixed_of(results: Sequence[Result], base: Result | None) -> dict[str, list[Result]]:
    """Rows of models that were not trained: the base first, then the teacher and others."""
    others = {result.name: [result] for result in results if not result.trained and result.algo != BASE}
    return ({BASE: [base]} if base is not None else {}) | others


def levels(
    name: str,
    trained: Groups,
    fixed: Groups,
    columns: Sequence[Column],
    caption: str = "",
) -> Table:
    """Row x column: the mean score."""
    groups = {**fixed, **trained}
    rows = [(row, (_runs(runs), *(level(runs, column) for column in columns))) for row, runs in groups.items()]
    headings = ("", "runs", *(column.title for column in columns))
    return Table(name, f"{INTERVALS} {caption}".strip(), headings, tuple(rows))


def differences(
    name: str,
    groups: Groups,
    others: Sequence[Result],
    columns: Sequence[Column],
    caption: str,
    reading: Reading = final,
) -> Table:
    """Row x column: difference to the same other runs, Holm over rows, and what the study could have found."""
    found = [
        with_holm({row: difference(runs, others, column, reading) for row, runs in groups.items()})
        for column in columns
    ]
    rows: list[tuple[str, tuple[Entry, ...]]] = [
        (row, (_runs(runs, reading), *(column[row] for column in found))) for row, runs in groups.items()
    ]
    rows.append(("could be found", ("", *map(_detectable, found))))
    note = (
        f"Percentage points over {caption}. A star is p < 5 % with Holm's correction over the rows of its column. "
        "Could be found: the largest difference that a row needs for 80 % power."
    )
    return Table(name, note, ("", "runs", *(column.title for column in columns)), tuple(rows), signed=True)


def at_equal_cost(axis: str, methods: Groups, base: Result, columns: Sequence[Column]) -> Table:
    """Gains over the base, each run read at its last evaluation within the smallest final cost of all runs."""
    limit, reading = equal_cost([run for runs in methods.values() for run in runs], axis)
    spent = []
    for row, runs in methods.items():
        read = [(run.costs[step][axis], step) for run in runs if (step := reading(run)) is not None]
        if read:
            cost, steps = fmean(one for one, _ in read), fmean(one for _, one in read)
            spent.append(f"{row} {cost:.3g} (step {steps:.0f})")
    caption = (
        f"{base.name}, each run at its last evaluation within {limit:.3g} {WORDS[axis]}, the least that any run spent "
        f"in all (5 % more is let pass). Read at, mean over runs: {', '.join(spent)}. Evaluations during training ask "
        "fewer items; gains are over the items that run and base both answered"
    )
    return differences(f"equal_{axis}", methods, [base], columns, caption, reading)


def transfers(methods: Groups, base: Result) -> Table:
    """Gain on LongReason, on long and on short code, and the difference of the last two."""
    reasoning, long, short = (
        with_holm({row: difference(runs, [base], column) for row, runs in methods.items()})
        for column in (LONGREASON, CODE_LONG, CODE_SHORT)
    )

    def gained(row: str) -> bool:
        value = long[row]
        return value is not None and value.runs > 1 and value.estimate.low > 0.0

    primary = with_holm({row: transfer(runs, base) for row, runs in methods.items()}, also=gained)
    rows: list[tuple[str, tuple[Entry, ...]]] = [
        (row, (_runs(runs), reasoning[row], long[row], short[row], primary[row])) for row, runs in methods.items()
    ]
    rows.append(("could be found", ("", *map(_detectable, (reasoning, long, short, primary)))))
    caption = (
        f"Percentage points over {base.name}. Long minus short, the difference of differences, is the primary "
        "quantity; forgetting short code raises it, too, so it has a star only where long code itself was gained. "
        "Stars: p < 5 %, Holm over methods."
    )
    headings = ("", "runs", "LongReason", "code long", "code short", "long minus short")
    return Table("transfer", caption, headings, tuple(rows), signed=True)


def by_length(methods: Groups, fixed: Groups) -> Table:
    """Accuracy of each task at each context length."""
    groups = {**fixed, **methods}
    cells = sorted({cell for runs in groups.values() for run in runs for cell in run.cells})
    rows = []
    for suite, task, length in cells:
        column = Column("", "", suite, (task,), length)
        entries = tuple(level(runs, column) for runs in groups.values())
        rows.append((f"{suite} / {task} / {length or 'as it is'}", entries))
    return Table("scaling", INTERVALS, ("suite / task / tokens", *groups), tuple(rows))


def costs(groups: Groups) -> Table:
    """What the runs spent in all, and for each prompt that they trained on. Means over runs."""
    rows = []
    for row, runs in groups.items():
        spent = [run.costs[step] for run in runs if (step := final(run)) in run.costs]
        if not spent:
            continue
        prompts = sum(one["prompts"] for one in spent)
        entries = [
            str(len(spent)),
            *(f"{fmean(one[name] for one in spent):,.0f}" for name in ("trained_tokens", "sampled_tokens")),
            f"{fmean(one['flops'] for one in spent):.3g}",
            f"{fmean(one['wall_seconds'] for one in spent):,.0f}",
            f"{sum(one['flops'] for one in spent) / prompts:.3g}" if prompts else NOTHING,
            f"{sum(one['wall_seconds'] for one in spent) / prompts:.3g}" if prompts else NOTHING,
            ", ".join(sorted({_lengths(run) for run in runs})),
        ]
        rows.append((row, tuple(entries)))
    spent_in_all = ("trained tokens", "sampled tokens", "FLOPs", "seconds")
    headings = ("", "runs", *spent_in_all, "FLOPs per prompt", "seconds per prompt", "prompt lengths")
    return Table("costs", "Means over runs; evaluations are not counted.", headings, tuple(rows))


def _lengths(run: Result) -> str:
    lengths, share = run.config.get("data.lengths"), run.config.get("data.short.share")
    return str(lengths) if share is None else f"{lengths}; {percent(share)} % {run.config['data.short.lengths']}"


def listing(results: Sequence[Result]) -> Table:
    """Every result with where it came from and what is wrong with it."""
    rows = []
    for result in results:
        git = result.origin.get("git") or {}
        commit = f"{str(git.get('commit', ''))[:10]}{' + changes' if git.get('dirty') else ''}"
        weights = str(result.origin.get("student") or result.origin.get("weights") or "")[:10]
        entries = (commit, weights, str(final(result) or 0), "; ".join(result.problems))
        rows.append((result.name, entries))
    return Table("runs", "Where each row comes from.", ("", "commit", "weights", "steps", "marked"), tuple(rows))


def _runs(runs: Sequence[Result], reading: Reading = final) -> str:
    """How many runs a row has; empty for fixed weights."""
    return str(sum(reading(run) is not None for run in runs)) if any(run.trained for run in runs) else ""


def _detectable(values: Mapping[str, Value | None]) -> str | None:
    found = [value.detectable for value in values.values() if value and value.detectable is not None]
    return percent(max(found)) if found else None


def _base_note(base: Result | None) -> str:
    return f"The base is {base.name}." if base is not None and base.name != BASE else ""
