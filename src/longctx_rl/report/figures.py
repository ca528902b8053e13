"""Figures for papers, as SVG and PNG. The same results give the same bytes."""

import io
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import cycle
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib import style as styles
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from longctx_rl.report import length_costs
from longctx_rl.report.readings import Groups
from longctx_rl.report.results import Result
from longctx_rl.report.study import CODE_LONG, CODE_SHORT, METHODS, Column, level, transfer_points
from longctx_rl.stats import t_quantile

COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#F0E442", "#000000")
"""Okabe and Ito's palette, which colour-blind readers can tell apart. Markers encode the same rows."""
MARKERS = ("o", "s", "^", "v", "D", "P", "X", "*")
CROWDED = 6
"""Levels of an axis that fit below a panel side by side."""
FIXED = {"base": ("#777777", ":"), "teacher": ("#000000", "--")}
AXES = {
    "step": "steps",
    "progress/trained_tokens": "trained tokens",
    "progress/flops": "FLOPs",
    "progress/wall_seconds": "seconds",
}
DYNAMICS = {
    "rollout/reward_mean": "reward",
    "policy/entropy": "entropy, nats",
    "teacher/kl_reverse": "KL(student ‖ teacher), nats",
    "grad/norm": "gradient norm",
    "grad/pg_kd_cosine": "cosine of reward and\nteacher gradients",
    "rollout/length_mean": "response length, tokens",
}
STYLE: dict[str, Any] = {
    "svg.hashsalt": "longctx_rl",
    "font.size": 8.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "figure.dpi": 100.0,
    "savefig.dpi": 160.0,
}
Curve = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]
"""Points of an axis, the mean over runs, and half the width of its 95 % interval (nan for one run)."""


def drawn(make: Callable[[], Figure]) -> dict[str, bytes]:
    """Content of a figure's files by extension, without dates. ``make`` is called under this project's style."""
    kinds: dict[str, dict[str, Any]] = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}}
    files = {}
    with styles.context(["default", STYLE], after_reset=True):
        figure = make()
        layout = figure.get_layout_engine()
        assert layout is not None
        layout.execute(figure)  # once for both kinds
        figure.set_layout_engine(None)  # with any other engine, savefig draws every figure twice
        for kind, metadata in kinds.items():
            with io.BytesIO() as file:
                figure.savefig(file, format=kind, metadata=metadata)
                files[kind] = file.getvalue()
    return files


def level_figure(groups: Groups, fixed: Groups, columns: Sequence[Column]) -> Figure:
    """One panel for each column, with the mean and the interval of every row."""
    wide = min(5, len(columns))
    figure, panels = _grid(columns, wide, 1.7, 0.35 + 0.2 * len(groups))
    looks = _looks(groups)
    for place, (panel, column) in enumerate(zip(panels, columns, strict=False)):
        for index, (row, runs) in enumerate(groups.items()):
            value = level(runs, column)
            if value is not None:
                mean, low, high = value.estimate.value, value.estimate.low, value.estimate.high
                color, marker = looks[row]
                panel.plot([mean], [-index], marker=marker, color=color, markersize=4)
                panel.plot([low, high], [-index, -index], color=color)
        _reference_lines(panel.axvline, fixed, column)
        panel.set_title(column.title)
        panel.set_ylim(-len(groups) + 0.5, 0.5)
        panel.set_yticks([-index for index in range(len(groups))], list(groups) if place % wide == 0 else [])
    _legend_below(figure, panels)
    return figure


def transfer_figure(groups: Groups, base: Result) -> Figure:
    """Gain on LongReason against gain on long and short code: a point per evaluation of each run, larger at the end."""
    figure = Figure(figsize=(6.4, 3.0), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    looks = _looks(groups)
    for panel, column in zip(panels, (CODE_LONG, CODE_SHORT), strict=True):
        for row, runs in groups.items():
            color, marker = looks[row]
            for point in transfer_points(runs, base, column):
                panel.plot(
                    [100 * point["longreason"]],
                    [100 * point["code"]],
                    marker=marker,
                    color=color,
                    markersize=5.5 if point["last"] else 2.5,
                    alpha=0.9 if point["last"] else 0.45,
                    linestyle="none",
                )
            panel.plot([], [], marker=marker, color=color, linestyle="none", label=row)
        panel.axhline(0, color="#777777", linewidth=0.7)
        panel.axvline(0, color="#777777", linewidth=0.7)
        panel.set_title(f"{column.title}")
        panel.set_xlabel("gain on LongReason, points")
    panels[0].set_ylabel("gain on code, points")
    panels[1].legend()
    return figure


def dynamics_figure(groups: Groups) -> Figure:
    """Training curves with means and 95 % intervals over runs: a row for each metric, a column for each cost axis."""
    rows = recorded(groups)
    figure = Figure(figsize=(2.4 * len(AXES), 0.4 + 1.6 * len(rows)), layout="constrained")
    panels = figure.subplots(len(rows), len(AXES), squeeze=False)
    for panel_row, metric in zip(panels, rows, strict=True):
        for panel, axis in zip(panel_row, AXES, strict=True):
            _draw_curves(panel, groups, metric, axis, points=60, each=1)
        panel_row[0].set_ylabel(DYNAMICS[metric])
    for panel, words in zip(panels[-1], AXES.values(), strict=True):
        panel.set_xlabel(words)
    _legend_below(figure, list(panels.flat))
    return figure


def level_dynamics_figure(groups: Groups) -> Figure:
    """Training curves of the levels of an axis: a panel for each metric, over trained tokens."""
    rows = recorded(groups)
    figure, panels = _grid(rows, 3, 2.4, 1.6)
    for panel, metric in zip(panels, rows, strict=False):
        _draw_curves(
            panel, groups, metric, "progress/trained_tokens", points=12, each=5
        )  # few runs: fewer points, each an average
        panel.set_title(DYNAMICS[metric])
        panel.set_xlabel(AXES["progress/trained_tokens"])
    _legend_below(figure, panels)
    return figure


def recorded(groups: Groups) -> list[str]:
    """Training metrics of which some run has a curve."""
    return [name for name in DYNAMICS if any(name in run.curves for runs in groups.values() for run in runs)]


def _draw_curves(panel: Axes, groups: Groups, metric: str, axis: str, *, points: int, each: int) -> None:
    """Draw the mean and the 95 % interval over the runs of each row."""
    looks = _looks(groups)
    for row, runs in groups.items():
        curve = mean_curve(runs, metric, axis, points, each)
        if curve is not None:
            where, mean, half = curve
            color, marker = looks[row]
            panel.plot(where, mean, color=color, marker=marker, markevery=points // 5, markersize=3, label=row)
            panel.fill_between(where, mean - half, mean + half, color=color, alpha=0.15, linewidth=0)


def mean_curve(runs: Sequence[Result], metric: str, axis: str, points: int, each: int) -> Curve | None:
    """The mean curve of a metric over an axis, on the range that all runs cover; None if no run has two points.

    Args:
        points: points of the curve.
        each: interpolated values that are averaged for one point.
    """
    lines = []
    for run in runs:
        pairs = zip(run.curves.get(axis, []), run.curves.get(metric, []), strict=False)
        known = [(x, y) for x, y in pairs if x is not None and y is not None]
        if len(known) > 1:
            lines.append(np.array(known, dtype=np.float64).T)
    if not lines:
        return None
    start, end = max(line[0][0] for line in lines), min(line[0][-1] for line in lines)
    if end <= start:
        return None
    fine = np.linspace(start, end, points * each)
    values = np.array([np.interp(fine, line[0], line[1]).reshape(points, each).mean(1) for line in lines])
    grid = fine.reshape(points, each).mean(1)
    count = len(lines)
    quantile = t_quantile(0.975, count - 1) if count > 1 else float("nan")
    spread = values.std(0, ddof=1) if count > 1 else np.full(points, np.nan)
    return grid, values.mean(0), quantile * spread / count**0.5


def evaluated_lengths(groups: Groups) -> dict[tuple[str, str], list[int]]:
    """The context lengths of each suite and task that was evaluated at more than one."""
    lengths: dict[tuple[str, str], list[int]] = {}
    for suite, task, length in sorted({cell for runs in groups.values() for run in runs for cell in run.cells}):
        lengths.setdefault((suite, task), []).append(length)
    return {place: evaluated for place, evaluated in lengths.items() if len(evaluated) > 1}


def length_figure(groups: Groups, fixed: Groups) -> Figure:
    """Accuracy by context length: a panel for each task that was evaluated at several lengths."""
    several = evaluated_lengths(groups)
    figure, panels = _grid(several, min(4, len(several)), 2.0, 1.8)
    looks = _looks([*groups, *fixed])
    for panel, ((suite, task), lengths) in zip(panels, several.items(), strict=False):
        for row, runs in {**groups, **fixed}.items():
            values = [level(runs, Column("", "", suite, (task,), length)) for length in lengths]
            known = [
                (length, value.estimate) for length, value in zip(lengths, values, strict=True) if value is not None
            ]
            color, marker = looks[row]
            style = FIXED[row][1] if row in FIXED else "-"
            where = [length for length, _ in known]
            panel.plot(
                where, [estimate.value for _, estimate in known], marker=marker, color=color, linestyle=style, label=row
            )
            bounds = [estimate.low for _, estimate in known], [estimate.high for _, estimate in known]
            panel.fill_between(where, *bounds, color=color, alpha=0.12, linewidth=0)
        panel.set_title(f"{suite} / {task}" if suite != task else task)
        panel.set_xscale("log", base=2)
        panel.set_xticks(lengths, [str(length) for length in lengths])
        panel.minorticks_off()
    _legend_below(figure, panels)
    return figure


def length_cost_figure(groups: Groups) -> Figure:
    """Training FLOPs by context length: per prompt, and per trained token."""
    lengths = length_costs.lengths_of(groups)
    figure = Figure(figsize=(6.4, 3.0), layout="constrained")
    panels = figure.subplots(1, 2)
    looks = _looks(groups)
    for row, runs in groups.items():
        known = [(length, cost) for length in lengths if (cost := length_costs.costs_at(runs, length))]
        if not known:
            continue
        color, marker = looks[row]
        for panel, values in zip(panels, ([c.prompt for _, c in known], [c.token for _, c in known]), strict=True):
            panel.plot([length for length, _ in known], values, marker=marker, color=color, markersize=4, label=row)
    for panel, words in zip(panels, ("prompt", "trained token"), strict=True):
        panel.set_title(f"FLOPs per {words}")
        panel.set_xlabel("prompt length, tokens")
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.set_xticks(lengths, [str(length) for length in lengths], rotation=45)
        panel.minorticks_off()
    _legend_below(figure, list(panels))
    return figure


def axis_figure(axis: str, groups: Groups, fixed: Groups, columns: Sequence[Column]) -> Figure:
    """One panel for each column: the levels of an axis from left to right, with intervals."""
    figure, panels = _grid(columns, min(5, len(columns)), 1.9, 1.6)
    for panel, column in zip(panels, columns, strict=False):
        for place, runs in enumerate(groups.values()):
            value = level(runs, column)
            if value is not None:
                panel.plot([place], [value.estimate.value], marker="o", color=COLORS[0], markersize=4)
                panel.plot([place, place], [value.estimate.low, value.estimate.high], color=COLORS[0])
        _reference_lines(panel.axhline, fixed, column)
        panel.set_title(column.title)
        names = [name if len(groups) > CROWDED else fill(name, 5, break_long_words=False) for name in groups]
        turned: dict[str, Any] = (
            {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if len(groups) > CROWDED else {}
        )
        panel.set_xticks(range(len(groups)), names, **turned)
        panel.set_xlabel(axis)
    _legend_below(figure, panels)
    return figure


def _grid(items: Collection[Any], wide: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure with one panel for each item, ``wide`` in a row; unused panels are hidden."""
    high = -(-len(items) // wide)
    figure = Figure(figsize=(width * wide + 0.5, (height + 0.4) * high + 0.2), layout="constrained")
    panels = list(figure.subplots(high, wide, squeeze=False).ravel())
    for panel in panels[len(items) :]:
        panel.set_visible(False)
    return figure, panels


def _reference_lines(draw: Callable[..., object], fixed: Groups, column: Column) -> None:
    """Draw a line for each untrained model with ``draw``, which is ``axhline`` or ``axvline`` of a panel."""
    for row, runs in fixed.items():
        value = level(runs, column)
        if value is not None and row in FIXED:
            color, style = FIXED[row]
            draw(value.estimate.value, color=color, linestyle=style, linewidth=0.8, label=row)


def _legend_below(figure: Figure, panels: Sequence[Axes]) -> None:
    handles = {
        label: handle for panel in panels for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    if handles:
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles))


def _looks(rows: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each row: methods have the same ones in every figure, other rows take the remaining ones."""
    places = {row: METHODS.index(row) if row in METHODS else None for row in rows}
    free = cycle(place for place in range(len(COLORS)) if place not in places.values())
    taken = {row: next(free) if place is None else place for row, place in places.items()}
    return {row: (FIXED[row][0] if row in FIXED else COLORS[place], MARKERS[place]) for row, place in taken.items()}
