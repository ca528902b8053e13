"""The tables of an experiment that compares methods: levels, gains, equal costs, transfer, context length, costs."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import fmean, stdev

from longctx_rl.report import length_costs
from longctx_rl.report.readings import Groups, Reading, equal_cost, final, last_step, spending
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
    level,
    methods_of,
    transfer,
    with_holm,
)
from longctx_rl.report.tables import MINUS, NOTHING, Entry, Table, percent

INTERVALS = "Percent of items; brackets are 95 % intervals over runs and item families."
DYNAMICS = {
    "rollout/reward_mean": "reward",
    "rollout/reward_std": "reward's spread in a group",
    "policy/entropy": "entropy, nats",
    "teacher/kl_reverse": "KL to the teacher, nats",
    "grad/norm": "gradient norm",
    "grad/pg_kd_cosine": "cosine of the reward's and the teacher's gradient",
    "rollout/length_mean": "answer length, tokens",
}
"""Metrics of the table ``dynamics``."""
LONG_MINUS_SHORT = {
    "reasoning, long minus short": (LONG_REASONING, SHORT_REASONING),
    "code, long minus short": (CODE_LONG, CODE_SHORT),
}
WORDS = {"trained_tokens": "trained tokens", "flops": "FLOPs", "wall_seconds": "seconds of training"}


def tables_of(results: Sequence[Result]) -> list[Table]:
    """Every table of a comparison of methods that the results allow."""
    methods, base = methods_of(results), base_of(results)
    columns = columns_of(results)
    recorded = [axis for axis in COSTS if spending(methods, axis) and not _met_by_all(methods, axis)]
    tables = [levels("levels", methods, fixed_of(results, base), columns, caption=_base_note(base))]
    if base is not None:
        tables.append(differences("gains", methods, [base], columns, base.name))
        tables += [at_equal_cost(axis, methods, base, columns) for axis in recorded]
    if len(methods) > 1:
        tables.append(pairs("pairs", methods, columns, "at the end of training"))
        for axis in recorded:
            limit, _, reading = equal_cost(methods, axis)
            tables.append(pairs(f"pairs_{axis}", methods, columns, f"within {limit:.3g} {WORDS[axis]}", reading))
    if base is not None and {CODE_LONG, CODE_SHORT} <= set(columns):
        tables.append(transfers(methods, base))
    tables.append(by_length(methods, fixed_of(results, base)))
    if (moved := dynamics(methods)) is not None:
        tables.append(moved)
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
        f"at, mean over runs: {', '.join(said)}. Evaluations during training ask fewer items; gains are over the items "
        "that run and base both answered"
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

    primary = with_holm({row: transfer(runs, [base]) for row, runs in methods.items()}, also=gained)
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
        f"Percentage points, {where}, runs of each method as in the tables above. A star is p < 5 % with Holm's "
        f"correction over the {len(named)} pairs of its column, none over columns. Long "
        "minus short: the difference of the differences. Could be found: the largest difference that a row "
        "needs for 80 % power."
    )
    return Table(name, note, ("", *headings), tuple(rows), signed=True)


def dynamics(methods: Groups) -> Table | None:
    """How training went, from its first tenth to its last; None if nothing is recorded."""
    metrics = {key: title for key, title in DYNAMICS.items() if any(key in run.curves for run in _all(methods))}
    rows = []
    for row, runs in methods.items():
        entries = []
        for metric in metrics:
            ends = [both for run in runs if (both := _tenths(run.curves.get(metric, [])))]
            if not ends:
                entries.append(NOTHING)
                continue
            first, last = ([one[place] for one in ends] for place in (0, 1))
            spread = f" \N{PLUS-MINUS SIGN} {stdev(last):.2g}" if len(last) > 1 else ""
            entries.append(f"{fmean(first):.3g} \N{RIGHTWARDS ARROW} {fmean(last):.3g}{spread}")
        rows.append((row, tuple(entries)))
    note = (
        "Mean of the first tenth of training \N{RIGHTWARDS ARROW} of the last tenth, means over runs, "
        "\N{PLUS-MINUS SIGN} the standard deviation over runs. No tests."
    )
    return Table("dynamics", note, ("", *metrics.values()), tuple(rows)) if metrics else None


def _met_by_all(methods: Groups, axis: str) -> bool:
    """Whether all runs have spent the same in all, so that they are read at their ends."""
    _, _, reading = equal_cost(methods, axis)
    return all(reading(run) == final(run) for run in _all(methods))


def _all(groups: Groups) -> list[Result]:
    return [run for runs in groups.values() for run in runs]


def _tenths(curve: Sequence[float | None]) -> tuple[float, float] | None:
    """Means of the first and the last tenth of a curve; None if either has no value."""
    size = max(1, len(curve) // 10)
    ends = [[value for value in part if value is not None] for part in (curve[:size], curve[-size:])]
    return (fmean(ends[0]), fmean(ends[1])) if all(ends) else None


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
        spent = [run.costs[step] for run in runs if (step := last_step(run)) in run.costs]
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
        entries = (commit, weights, str(last_step(result) or 0), "; ".join(result.problems))
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
