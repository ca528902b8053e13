"""``python -m longctx_rl.report``: from run directories to committed results, and from those to tables and figures."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from longctx_rl import cli
from longctx_rl.__main__ import composed, composed_grids
from longctx_rl.report import marks, prose, results
from longctx_rl.report.collect import collect
from longctx_rl.report.experiment import Experiment, open_experiment

EXAMPLES = """examples:
  python -m longctx_rl.report collect table1                    # runs/table1 -> experiments/table1/results
  python -m longctx_rl.report collect table1 runs_root=/data/runs
  python -m longctx_rl.report tables table1                     # results -> tables, figures, marks in READMEs
  python -m longctx_rl.report check                             # do all of them fit together?
  python -m longctx_rl.report page --runs runs/table1           # report.html: one page that compares the runs
  python -m longctx_rl.report dashboard table1                  # a wandb workspace and report, needs WANDB_API_KEY
"""
CHECKOUT = Path()
"""Commands run at the top of a checkout: experiments/ lies there."""


def main() -> None:
    """Entry point. Exits with 0, with 1 if a check fails, with 2 for what cannot be used."""
    arguments = parser().parse_args()
    work: Callable[[argparse.Namespace], str] = arguments.work
    cli.command(lambda: work(arguments))


def parser() -> argparse.ArgumentParser:
    """All subcommands."""
    top = argparse.ArgumentParser(
        prog="python -m longctx_rl.report",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    collecting = commands.add_parser("collect", help="write the results of finished runs to experiments/NAME/results")
    collecting.add_argument("experiment", metavar="NAME")
    collecting.add_argument("setting", nargs="?", default="runs_root=runs", metavar="runs_root=runs")
    collecting.set_defaults(work=_collect)
    tables = commands.add_parser("tables", help="make tables, figures and the numbers in READMEs from the results")
    tables.add_argument("experiment", metavar="NAME", nargs="*", help="all that have results, if left out")
    tables.set_defaults(work=_tables)
    checking = commands.add_parser("check", help="fail if a committed result or number was not made by what it says")
    checking.add_argument("experiment", metavar="NAME", nargs="*", help="all that have results, if left out")
    checking.set_defaults(work=_check)
    page = commands.add_parser("page", help="make one HTML file that compares runs")
    page.add_argument("--runs", type=Path, default=Path("runs"), metavar="FOLDER", help="holds run directories: runs")
    page.add_argument("--out", type=Path, default=Path("report.html"), metavar="FILE", help="report.html")
    page.set_defaults(work=_page)
    dashboard = commands.add_parser("dashboard", help="save a wandb workspace and a report that compare the runs")
    dashboard.add_argument("experiment", metavar="NAME")
    dashboard.set_defaults(work=_dashboard)
    return top


def _collect(arguments: argparse.Namespace) -> str:
    key, _, value = arguments.setting.partition("=")
    if key != "runs_root" or not value:
        raise ValueError(f"{arguments.setting}: the one setting of collect is runs_root=FOLDER")
    return collect(open_experiment(CHECKOUT / "experiments" / arguments.experiment), Path(value))


def _tables(arguments: argparse.Namespace) -> str:
    from longctx_rl.report import outputs  # matplotlib

    chosen, without = _chosen(arguments.experiment)
    return "\n".join([*(outputs.write(experiment, CHECKOUT) for experiment in chosen), *without])


def _check(arguments: argparse.Namespace) -> str:
    from longctx_rl.report.check import check  # matplotlib

    chosen, without = _chosen(arguments.experiment)
    found = {
        experiment.name: check(experiment, CHECKOUT, composed, composed_grids(experiment.name)) for experiment in chosen
    }
    notes = [f"{name}: {note}" for name, (_, more) in found.items() for note in more] + without
    print(*notes, sep="\n", end="\n" if notes else "")
    if problems := [problem for wrong, _ in found.values() for problem in wrong] + prose.unfounded(CHECKOUT):
        print(*problems, sep="\n", file=sys.stderr)
        sys.exit(1)
    return f"{', '.join(found)}: results, tables, figures and READMEs fit together"


def _page(arguments: argparse.Namespace) -> str:
    from longctx_rl.report.page import document

    return document.write(arguments.runs, arguments.out)


def _dashboard(arguments: argparse.Namespace) -> str:
    from longctx_rl.report import workspace

    return workspace.save(open_experiment(CHECKOUT / "experiments" / arguments.experiment))


def _chosen(names: list[str]) -> tuple[list[Experiment], list[str]]:
    """The named experiments, or all that have results, and a line for each that could have some.

    Raises:
        ValueError: none has any.
    """
    folder = CHECKOUT / "experiments"
    if names:
        return [open_experiment(folder / name) for name in names], []
    studies = [open_experiment(folder / name) for name in marks.studies(CHECKOUT)]
    chosen = [one for one in studies if results.files(one.results) or (one.folder / "tables.md").is_file()]
    if not chosen:
        raise ValueError(
            "no experiment has results yet: make table1-runs, then python -m longctx_rl.report collect table1"
        )
    return chosen, [f"{one.name}: {results.missing(one.results)}" for one in studies if one not in chosen]


if __name__ == "__main__":
    main()
