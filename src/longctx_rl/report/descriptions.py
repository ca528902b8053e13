"""Tables without significance tests, of methods and ablations: scores, context length, dynamics, costs, provenance."""

from collections.abc import Collection, Mapping, Sequence
from itertools import combinations, pairwise
from math import isnan, nan
from statistics import fmean, stdev

from longctx_rl.report.readings import Groups, Reading, final, last_step
from longctx_rl.report.results import Result
from longctx_rl.report.study import BASE, CODE_LONG, CODE_SHORT, Column, level, transfer_points
from longctx_rl.report.tables import MINUS, NOTHING, Table, percent
from longctx_rl.stats import t_quantile

INTERVALS = "Percent of items; brackets are 95 % intervals over runs and item families."
REWARD = "rollout/reward_mean"
DYNAMICS = {
    REWARD: "reward",
    "rollout/reward_std": "reward spread within a group",
    "policy/entropy": "entropy, nats",
    "teacher/kl_reverse": "KL to the teacher, nats",
    "grad/norm": "gradient norm",
    "grad/pg_kd_cosine": "cosine of reward and teacher gradients",
    "rollout/length_mean": "response length, tokens",
}
"""Metrics of the table ``dynamics``."""


def levels(
    name: str,
    trained: Groups,
    fixed: Groups,
    columns: Sequence[Column],
    caption: str = "",
) -> Table:
    """Row x column: mean scores."""
    groups = {**fixed, **trained}
    rows = [(row, (count(runs), *(level(runs, column) for column in columns))) for row, runs in groups.items()]
    headings = ("", "runs", *(column.title for column in columns))
    return Table(name, f"{INTERVALS} {caption}".strip(), headings, tuple(rows))


def fixed_of(results: Sequence[Result], base: Result | None) -> dict[str, list[Result]]:
    """Rows of untrained models: the base first, then the teacher and others."""
    others = {result.name: [result] for result in results if not result.trained and result.algo != BASE}
    return ({BASE: [base]} if base is not None else {}) | others


def dynamics(methods: Groups, name: str = "dynamics") -> Table | None:
    """Training metrics in the first and the last tenth of training; None if no metric was recorded."""
    metrics = {key: title for key, title in DYNAMICS.items() if any(key in run.curves for run in all_of(methods))}
    rows = []
    for row, runs in methods.items():
        entries = []
        for metric in metrics:
            ends = [both for run in runs if (both := _tenths(run.curves.get(metric, [])))]
            if not ends:
                entries.append(NOTHING)
                continue
            first, last = ([pair[place] for pair in ends] for place in (0, 1))
            spread = f" \N{PLUS-MINUS SIGN} {stdev(last):.2g}" if len(last) > 1 else ""
            entries.append(f"{fmean(first):.3g} \N{RIGHTWARDS ARROW} {fmean(last):.3g}{spread}")
        rows.append((row, tuple(entries)))
    note = (
        "First tenth \N{RIGHTWARDS ARROW} last tenth of the recorded points (at least three points each, if there are "
        "six); means over runs \N{PLUS-MINUS SIGN} the standard deviation over runs. No tests."
    )
    return Table(name, note, ("", *metrics.values()), tuple(rows)) if metrics else None


def rewards(methods: Groups) -> Table | None:
    """Differences between sampling methods in the reward and its roughness, seed by seed; None for fewer than two."""
    known = {
        row: {run.seed: curve for run in runs if (curve := run.curves.get(REWARD))} for row, runs in methods.items()
    }
    measures = (lambda curve: (_tenths(curve) or (nan, nan))[1], _roughness)
    rows = []
    for early, late in combinations((row for row, curves in known.items() if curves), 2):
        seeds = sorted(known[early].keys() & known[late].keys(), key=str)
        entries = (_with_interval([of(known[late][s]) - of(known[early][s]) for s in seeds], 3) for of in measures)
        rows.append((f"{late} {MINUS} {early}", (str(len(seeds)), *entries)))
    note = (
        "Differences of runs with the same seed, which trained on the same prompts: mean and 95 % t interval over "
        "seeds. Roughness is the standard deviation of the reward around its trend, from differences of neighbouring "
        "points of the curve (root of half their mean square); a point is the mean of as many steps as leave 60 "
        "points. "
        "Descriptive, without a test."
    )
    headings = ("", "seeds", "reward, last tenth of training", "roughness of the reward")
    return Table("rewards", note, headings, tuple(rows)) if rows else None


def _roughness(curve: Sequence[float | None]) -> float:
    """Standard deviation around the trend, from differences of neighbouring points; nan if there are none."""
    squares = [(b - a) ** 2 for a, b in pairwise(curve) if a is not None and b is not None]
    return (fmean(squares) / 2) ** 0.5 if squares else nan


def slopes(methods: Groups, base: Result) -> Table | None:
    """Gain in code per point of LongReason: least squares through the origin over the evaluations of each run."""
    rows: list[tuple[str, tuple[str, ...]]] = []
    for row, runs in methods.items():
        entries = []
        for column in (CODE_LONG, CODE_SHORT):
            run_slopes = [slope for run in runs if (slope := _slope(transfer_points([run], base, column))) is not None]
            entries.append(_with_interval(run_slopes))
        rows.append((row, (count(runs), *entries)))
    note = (
        "Points gained in code per point gained on LongReason: the slope of a line through the origin over the "
        "evaluations of a run, which noise in LongReason pulls towards 0; mean and 95 % t interval over runs; "
        "items are not resampled. Descriptive, without a test."
    )
    known = any(entry != NOTHING for _, (_, *entries) in rows for entry in entries)
    return Table("transfer_slopes", note, ("", "runs", "code long", "code short"), tuple(rows)) if known else None


def _slope(points: Sequence[Mapping[str, float]]) -> float | None:
    """The slope of one run; None if LongReason never changed."""
    squares = sum(point["longreason"] ** 2 for point in points)
    return sum(point["longreason"] * point["code"] for point in points) / squares if squares else None


def _with_interval(values: Sequence[float], digits: int = 2) -> str:
    if not values or any(map(isnan, values)):
        return NOTHING
    mean = fmean(values)
    if len(values) < 2:
        return f"{mean:.{digits}f} (one run)".replace("-", MINUS)
    half = t_quantile(0.975, len(values) - 1) * stdev(values) / len(values) ** 0.5
    return f"{mean:.{digits}f} [{mean - half:.{digits}f}, {mean + half:.{digits}f}]".replace("-", MINUS)


def by_length(methods: Groups, fixed: Groups) -> Table:
    """Accuracy of each task at each context length."""
    groups = {**fixed, **methods}
    cells = sorted({cell for runs in groups.values() for run in runs for cell in run.cells})
    rows = []
    for suite, task, length in cells:
        column = Column("", "", suite, (task,), length)
        entries = tuple(level(runs, column) for runs in groups.values())
        rows.append((f"{suite} / {task} / {length or 'natural length'}", entries))
    return Table("scaling", INTERVALS, ("suite / task / tokens", *groups), tuple(rows))


def costs(groups: Groups) -> Table:
    """Total costs of the runs, and costs per prompt that they trained on. Means over runs."""
    rows = []
    for row, runs in groups.items():
        spent = [run.costs[step] for run in runs if (step := last_step(run)) in run.costs]
        if not spent:
            continue
        prompts = sum(total["prompts"] for total in spent)
        entries = [
            str(len(spent)),
            *(f"{fmean(total[name] for total in spent):,.0f}" for name in ("trained_tokens", "sampled_tokens")),
            f"{fmean(total['flops'] for total in spent):.3g}",
            f"{fmean(total['wall_seconds'] for total in spent):,.0f}",
            f"{sum(total['flops'] for total in spent) / prompts:.3g}" if prompts else NOTHING,
            f"{sum(total['wall_seconds'] for total in spent) / prompts:.3g}" if prompts else NOTHING,
            ", ".join(sorted({_lengths(run) for run in runs})),
        ]
        rows.append((row, tuple(entries)))
    spent_in_all = ("trained tokens", "sampled tokens", "FLOPs", "seconds")
    headings = ("", "runs", *spent_in_all, "FLOPs per prompt", "seconds per prompt", "prompt lengths")
    return Table("costs", "Means over runs, without evaluations.", headings, tuple(rows))


def _lengths(run: Result) -> str:
    lengths, share = run.config.get("data.lengths"), run.config.get("data.short.share")
    return str(lengths) if share is None else f"{lengths}; {percent(share)} % {run.config['data.short.lengths']}"


def listing(results: Sequence[Result], unplaced: Collection[str] = ()) -> Table:
    """Every result with its provenance and its problems.

    Args:
        unplaced: names of results that belong to no level of any axis.
    """
    rows = []
    for result in results:
        git = result.origin.get("git") or {}
        commit = f"{str(git.get('commit', ''))[:10]}{' + changes' if git.get('dirty') else ''}"
        weights = str(result.origin.get("student") or result.origin.get("weights") or "")[:10]
        problems = [*result.problems, *(["matches no level of axes.yaml"] if result.name in unplaced else [])]
        entries = (commit, weights, str(last_step(result) or 0), "; ".join(problems))
        rows.append((result.name, entries))
    return Table("runs", "Provenance of each row.", ("", "commit", "weights", "steps", "problems"), tuple(rows))


def _tenths(curve: Sequence[float | None]) -> tuple[float, float] | None:
    """Means of the first and the last tenth of a curve's known points (at least three each, if there are six).

    None if there are fewer than two points.
    """
    known = [value for value in curve if value is not None]
    size = min(max(3, len(known) // 10), len(known) // 2)
    return (fmean(known[:size]), fmean(known[-size:])) if size else None


def all_of(groups: Groups) -> list[Result]:
    return [run for runs in groups.values() for run in runs]


def count(runs: Sequence[Result], reading: Reading = final) -> str:
    """The number of runs of a row; empty for fixed weights."""
    return str(sum(reading(run) is not None for run in runs)) if any(run.trained for run in runs) else ""
