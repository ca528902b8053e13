"""Curves, thinned so that they can be embedded."""

from collections.abc import Sequence
from typing import Any

from longctx_rl.report.runs import Run
from longctx_rl.runs.metrics import Row

POINTS = 400
"""Maximum number of points of a metric of a run."""
AXES = ("trained_tokens", "flops", "wall_seconds")
"""``progress/`` metrics that can be the axis of a curve, beside steps."""
DIGITS = 5

Curve = tuple[list[int], list[float | None]]
"""Steps and values."""


def curves_of(run: Run) -> dict[str, Curve]:
    """Metric to its curve, without the costs."""
    curves: dict[str, Curve] = {}
    for row in run.metrics:
        for name, value in row.items():
            if name != "step" and not name.startswith("progress/"):
                steps, values = curves.setdefault(name, ([], []))
                steps.append(int(row["step"] or 0))
                values.append(value)
    return {name: thinned(*curve) for name, curve in curves.items()}


def axes_of(run: Run) -> dict[str, list[float]]:
    """``step`` and the cumulative costs, starting at 0; the page interpolates linearly between the points."""
    rows: list[Row] = [row for row in run.metrics if all(row.get(f"progress/{name}") is not None for name in AXES)]
    if len(rows) > POINTS:
        rows = [rows[round(index * (len(rows) - 1) / (POINTS - 1))] for index in range(POINTS)]
    axes: dict[str, list[float]] = {"step": [0, *(row["step"] or 0 for row in rows)]}
    for name in AXES:
        axes[name] = [0, *(rounded(row[f"progress/{name}"] or 0.0) for row in rows)]
    return axes


def thinned(steps: list[int], values: list[float | None], points: int = POINTS) -> Curve:
    """At most ``points`` points of a curve: its ends, and the least and the greatest value of each stretch between."""
    if len(steps) <= points:
        return steps, [None if value is None else rounded(value) for value in values]
    inner = range(1, len(steps) - 1)
    stretches = (points - 2) // 2
    kept = {0, len(steps) - 1}
    for stretch in range(stretches):
        start, end = (len(inner) * edge // stretches for edge in (stretch, stretch + 1))
        known = [index for index in inner[start:end] if values[index] is not None]
        if known:
            ordered = sorted(known, key=lambda index: values[index] or 0.0)
            kept |= {ordered[0], ordered[-1]}
    chosen = sorted(kept)
    return thinned([steps[index] for index in chosen], [values[index] for index in chosen], points=len(chosen))


def rounded(value: float) -> float:
    """A number rounded to ``DIGITS`` significant digits; whole numbers are written without a point."""
    short = float(f"{value:.{DIGITS}g}")
    return int(short) if short == int(short) and abs(short) < 1e15 else short


def embedded(runs: Sequence[Run]) -> dict[str, list[list[Any]]]:
    """Metric to ``[index of the run, steps, values]`` of each run that has it, most general metrics first.

    ``steps`` is 0 where it equals the steps of the run's axes.
    """
    by_metric: dict[str, list[list[Any]]] = {}
    for index, run in enumerate(runs):
        usual = axes_of(run)["step"][1:]
        for name, (steps, values) in curves_of(run).items():
            by_metric.setdefault(name, []).append([index, 0 if steps == usual else steps, values])
    return {name: by_metric[name] for name in sorted(by_metric, key=_importance)}


def _importance(name: str) -> tuple[int, str]:
    suite_mean = name.startswith("eval/") and name.endswith("/mean")
    places = ("eval/", "rollout/", "loss/", "teacher/", "policy/", "grad/", "optim/", "perf/", "time/")
    return (0 if suite_mean else 1 + next((i for i, p in enumerate(places) if name.startswith(p)), len(places)), name)
