"""Figures as SVG text for pages: a function of plain data, with the same bytes for the same data.

Text stays text. Lines and text take the colour of the text around the figure, and the CSS variables ``--first`` and
``--second`` are the series' colours, so one figure works on a light page, on a dark page and as a separate file.
"""

import html
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from matplotlib import colormaps, style
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from longctx_rl.stats import Estimate

INK = "#010101"
COLOURS = ("#020202", "#030303")
THEME = {INK: "currentColor", COLOURS[0]: "var(--first, #0072b2)", COLOURS[1]: "var(--second, #a65e00)"}
"""Placeholder colours, with which matplotlib draws, to the values that replace them in the SVG text."""
MARKERS = ("o", "s")
SCALE = colormaps["cividis"]
"""Colour map of shares from 0 to 1, dark blue to yellow; readable with colour vision deficiency."""
STYLE = {
    "axes.edgecolor": INK,
    "axes.facecolor": "none",
    "axes.labelcolor": INK,
    "axes.labelsize": 8,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "none",
    "font.sans-serif": ["DejaVu Sans"],
    "legend.fontsize": 7,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "longctx_rl",
    "text.color": INK,
    "xtick.color": INK,
    "xtick.labelsize": 8,
    "ytick.color": INK,
    "ytick.labelsize": 8,
}
WIDTH, HEIGHT = 2.9, 2.0
"""Size of a figure of curves, in inches."""
CELL_WIDTH, CELL_HEIGHT = 0.44, 0.36
"""Size of a map's cell, in inches."""
FAINT = 0.45
"""Opacity of reference lines and of outlines of empty cells."""


@dataclass(frozen=True, slots=True)
class Series:
    """Means with confidence intervals by length, drawn as one line."""

    name: str
    points: Mapping[int, Estimate]


def length_curves(
    series: Sequence[Series], lengths: Sequence[int], references: Sequence[float], *, name: str, alt: str
) -> str:
    """Curves of shares by context length on a logarithmic axis.

    Args:
        series: one or two.
        lengths: ticks of the axis, in tokens.
        references: heights of dashed lines, which the caller explains beside the figure.
        name: unique within the page.
        alt: a description of the figure in words.
    """
    assert 1 <= len(series) <= len(COLOURS) and lengths
    with _figure(WIDTH, HEIGHT) as figure:
        axes = figure.add_axes((0.15, 0.19, 0.83, 0.76))
        axes.set_xscale("log", base=2)
        axes.set_xlim(min(lengths) / 1.25, max(lengths) * 1.25)
        axes.set_xticks(list(lengths), [tokens(length) for length in lengths])
        axes.minorticks_off()
        _percent_axis(axes)
        axes.set_xlabel("prompt tokens", labelpad=1)
        for value in references:
            axes.axhline(value, color=INK, linewidth=0.9, linestyle=(0, (4, 3)), alpha=FAINT, zorder=1)
        for index, curve in enumerate(series):
            _line(axes, curve, index, shift=1.04 ** (index - (len(series) - 1) / 2))
        if len(series) > 1:
            axes.legend(loc="best", handlelength=1.4, borderaxespad=0.1)
        return _svg(figure, name, alt)


def heat_map(
    cells: Mapping[tuple[int, int], tuple[float, int]],
    columns: Sequence[str],
    rows: Sequence[str],
    *,
    labels: tuple[str, str],
    name: str,
    alt: str,
) -> str:
    """Shares in a grid, in percent, each with its number of items; a cell without items has a dotted outline.

    Args:
        cells: column and row to share and number of items.
        labels: labels of the horizontal and the vertical axis.
        name: unique within the page.
        alt: a description of the figure in words.
    """
    left, bottom = 0.72, 0.42
    width, height = len(columns) * CELL_WIDTH, len(rows) * CELL_HEIGHT
    full_width, full_height = left + width + 0.05, bottom + height + 0.05
    with _figure(full_width, full_height) as figure:
        axes = figure.add_axes((left / full_width, bottom / full_height, width / full_width, height / full_height))
        axes.set_xlim(0, len(columns))
        axes.set_ylim(len(rows), 0)
        axes.set_xticks([column + 0.5 for column in range(len(columns))], columns)
        axes.set_yticks([row + 0.5 for row in range(len(rows))], rows)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_xlabel(labels[0], labelpad=2)
        axes.set_ylabel(labels[1], labelpad=2)
        for column in range(len(columns)):
            for row in range(len(rows)):
                _cell(axes, column, row, cells.get((column, row)))
        return _svg(figure, name, alt)


def colour_scale(*, name: str) -> str:
    """The colour scale of the maps, from 0 to 100 %."""
    steps = 20
    with _figure(2.0, 0.3) as figure:
        axes = figure.add_axes((0.06, 0.55, 0.85, 0.4))
        axes.set_xlim(0, 1)
        axes.set_yticks([])
        axes.set_xticks([0, 0.5, 1], ["0 %", "50 %", "100 %"])
        axes.tick_params(length=0, pad=1)
        axes.spines[:].set_visible(False)
        for step in range(steps):
            axes.add_patch(Rectangle((step / steps, 0), 1 / steps, 1, color=SCALE((step + 0.5) / steps), linewidth=0.2))
        return _svg(figure, name, "Colours from 0 %, dark blue, to 100 %, yellow")


def tokens(length: int) -> str:
    """Format a length in tokens as ``512``, ``2k`` or ``128k``."""
    return f"{length // 1024}k" if length % 1024 == 0 else str(length)


def _line(axes: Axes, series: Series, index: int, *, shift: float) -> None:
    points = sorted(series.points.items())
    x = [length * shift for length, _ in points]
    y = [estimate.value for _, estimate in points]
    below = [max(estimate.value - estimate.low, 0.0) for _, estimate in points]
    above = [max(estimate.high - estimate.value, 0.0) for _, estimate in points]
    axes.errorbar(
        x,
        y,
        yerr=(below, above),
        color=COLOURS[index],
        marker=MARKERS[index],
        markersize=4,
        linewidth=1.4,
        linestyle=("-", "--")[index],
        elinewidth=1.0,
        capsize=2.5,
        label=series.name,
        zorder=2 + index,
        clip_on=False,
    )


def _cell(axes: Axes, column: int, row: int, value: tuple[float, int] | None) -> None:
    middle = (column + 0.5, row + 0.5)
    if value is None:
        axes.add_patch(
            Rectangle((column + 0.05, row + 0.07), 0.9, 0.86, fill=False, edgecolor=INK, linestyle=":", alpha=FAINT)
        )
        axes.text(*middle, "-", ha="center", va="center_baseline", alpha=0.7, fontsize=8)
        return
    share, count = value
    fill = SCALE(share)
    letters = "#ffffff" if sum(w * c for w, c in zip((0.30, 0.59, 0.11), fill, strict=False)) < 0.5 else "#000001"
    axes.add_patch(Rectangle((column + 0.02, row + 0.03), 0.96, 0.94, color=fill, linewidth=0))
    axes.text(column + 0.5, row + 0.46, f"{100 * share:.0f}", ha="center", va="bottom", color=letters, fontsize=9)
    axes.text(column + 0.5, row + 0.58, f"n {count}", ha="center", va="top", color=letters, fontsize=7)


def _percent_axis(axes: Axes) -> None:
    axes.set_ylim(0, 1)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25", "50", "75", "100"])
    axes.grid(axis="y", color=INK, alpha=0.15, linewidth=0.6)
    axes.set_axisbelow(True)


@contextmanager
def _figure(width: float, height: float) -> Iterator[Figure]:
    """A figure with this module's style, whatever the user's matplotlibrc says."""
    with style.context(["default", STYLE], after_reset=True):
        figure = Figure(figsize=(width, height))
        FigureCanvasSVG(figure)
        yield figure


def _svg(figure: Figure, name: str, alt: str) -> str:
    """The figure as an ``<svg>`` element without a date; its ids are unique within a page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = buffer.getvalue()
    text = text[text.index("<svg") :].strip()
    for placeholder, css in THEME.items():
        text = text.replace(placeholder, css)
    prefix = re.sub(r"[^A-Za-z0-9]+", "-", name)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", text)
    return text.replace("<svg ", f'<svg role="img" aria-label="{html.escape(alt)}" ', 1)
