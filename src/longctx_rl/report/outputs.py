"""``tables``: every file that is made from an experiment's committed results. All are made before any is written."""

import csv
import io
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from longctx_rl.files import replacing
from longctx_rl.report import ablation, comparison, descriptions, figures, length_costs, readmes, results
from longctx_rl.report.experiment import Experiment, check_cells
from longctx_rl.report.readings import Groups
from longctx_rl.report.results import Result
from longctx_rl.report.study import (
    CODE_LONG,
    CODE_SHORT,
    LONGREASON,
    Column,
    base_of,
    columns_of,
    methods_of,
    transfer_points,
)
from longctx_rl.report.tables import Table, comma_separated, latex, markdown

MADE = ("tables", "figures")
"""Folders of an experiment that contain nothing but files made here."""


def files_of(experiment: Experiment, checkout: Path, committed: Sequence[Result]) -> dict[Path, bytes]:
    """Path to content: tables, figures, and READMEs with their blocks filled.

    Raises:
        ValueError: the results do not fit together, or a README has an invalid block.
    """
    made = {path: text.encode() for path, text in texts_of(experiment, checkout, committed).items()}
    for name, make in _figures(experiment, committed, columns_of(committed)).items():
        for kind, content in figures.drawn(make).items():
            made[experiment.folder / "figures" / f"{name}.{kind}"] = content
    return made


def texts_of(experiment: Experiment, checkout: Path, committed: Sequence[Result]) -> dict[Path, str]:
    """All files of ``files_of`` except the figures. Raises ValueError as ``files_of`` does."""
    if problems := check_cells(experiment, committed):
        raise ValueError(problems[0])
    tables = ablation.tables_of(experiment, committed) if experiment.axes else comparison.tables_of(committed)
    made: dict[Path, str] = {}
    for table in tables:
        made[experiment.folder / "tables" / f"{table.name}.csv"] = comma_separated(table)
        made[experiment.folder / "tables" / f"{table.name}.tex"] = latex(table)
    made[experiment.folder / "tables.md"] = _page(experiment, tables)
    if not experiment.axes and {LONGREASON, CODE_LONG, CODE_SHORT} <= set(columns_of(committed)):
        made[experiment.folder / "tables" / "transfer_points.csv"] = _transfer_points(committed)
    texts = {table.name: markdown(table) for table in tables}
    for path in readmes.readmes(checkout):
        made[path] = readmes.filled(path, experiment.name, texts)
    return made


def stale(experiment: Experiment, made: dict[Path, bytes]) -> list[Path]:
    """Files in ``MADE`` folders that no table or figure makes any more."""
    there = [path for folder in MADE for path in sorted((experiment.folder / folder).glob("[!.]*.*"))]
    return [path for path in there if path.is_file() and path not in made]


def write(experiment: Experiment, checkout: Path) -> str:
    """Write every file, remove stale ones, and return a summary in lines. Raises ValueError as ``files_of`` does."""
    made = files_of(experiment, checkout, results.read_all(experiment.results))
    changed = [path for path, content in made.items() if not path.is_file() or path.read_bytes() != content]
    for path in changed:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_bytes(made[path])
    gone = stale(experiment, made)
    for path in gone:
        path.unlink()
    return "\n".join(
        [f"{experiment.name}: {len(made)} files, {len(changed)} changed", *(f"removed: {path}" for path in gone)]
    )


def _page(experiment: Experiment, tables: Sequence[Table]) -> str:
    parts = [f"# {experiment.name}: all tables", f"Made by `python -m longctx_rl.report tables {experiment.name}`."]
    for table in tables:
        parts += [f"## {table.name}", markdown(table)]
    return "\n\n".join(parts) + "\n"


def _figures(
    experiment: Experiment, committed: Sequence[Result], columns: Sequence[Column]
) -> dict[str, Callable[[], Figure]]:
    """Name of each figure to the function that draws it."""
    base = base_of(committed)
    fixed = descriptions.fixed_of(committed, base)
    drawings: dict[str, Callable[[], Figure]] = {}
    if experiment.axes:
        for axis in experiment.axes:
            groups = ablation.groups_of(experiment, axis, committed)
            if groups and columns:
                drawings[axis] = partial(figures.axis_figure, axis, groups, fixed, columns)
                drawings |= _dynamics(f"{axis}_dynamics", groups, figures.level_dynamics_figure)
        return drawings
    methods = methods_of(committed)
    if methods and columns:
        drawings["levels"] = partial(figures.level_figure, methods, fixed, columns)
    if figures.evaluated_lengths(methods):
        drawings["scaling"] = partial(figures.length_figure, methods, fixed)
    if length_costs.table(methods) is not None:
        drawings["scaling_costs"] = partial(figures.length_cost_figure, methods)
    if base is not None and {LONGREASON, CODE_LONG, CODE_SHORT} <= set(columns):
        drawings["transfer"] = partial(figures.transfer_figure, methods, base)
    return drawings | _dynamics("dynamics", methods, figures.dynamics_figure)


def _dynamics(name: str, groups: Groups, draw: Callable[[Groups], Figure]) -> dict[str, Callable[[], Figure]]:
    return {name: partial(draw, groups)} if figures.recorded(groups) else {}


def _transfer_points(committed: Sequence[Result]) -> str:
    base = base_of(committed)
    methods = methods_of(committed) if base is not None else {}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["method", "seed", "step", "last", "code", "gain_longreason", "gain_code"])
    for method, runs in methods.items():
        for column in (CODE_LONG, CODE_SHORT):
            assert base is not None
            for point in transfer_points(runs, base, column):
                gains = [f"{point[key]:.6g}" for key in ("longreason", "code")]
                writer.writerow([method, *(int(point[key]) for key in ("seed", "step", "last")), column.key, *gains])
    return text.getvalue()
