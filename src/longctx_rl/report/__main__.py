"""``python -m longctx_rl.report``: from run directories to committed results, and from those to tables and figures."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from longctx_rl import cli

if TYPE_CHECKING:
    from longctx_rl.report.experiment import Experiment

# Help and refused commands answer at once: every command imports what it needs when it runs.

EXAMPLES = """examples:
  python -m longctx_rl.report collect table1                    # runs/table1 -> experiments/table1/results
  python -m longctx_rl.report collect table1 runs_root=/data/runs
  python -m longctx_rl.report tables table1                     # results -> tables, figures, blocks in READMEs
  python -m longctx_rl.report check                             # does everything committed agree with the results?
  python -m longctx_rl.report page --runs runs/table1           # report.html: one page that compares the runs
  python -m longctx_rl.report answers runs/mini-student         # index.html: one page of an evaluation's answers
  python -m longctx_rl.report dashboard table1                  # a wandb workspace and report, needs WANDB_API_KEY
"""
CHECKOUT = Path()
"""Commands run at the top of a checkout, which contains experiments/."""


def main() -> None:
    """Entry point. The exit code is 0, 1 if a check fails, or 2 if the input cannot be used."""
    arguments = parser().parse_args()
    work: Callable[[argparse.Namespace], str] = arguments.work
    cli.command(lambda: work(arguments))


def parser() -> argparse.ArgumentParser:
    """The command line with all its commands."""
    top = argparse.ArgumentParser(
        prog="python -m longctx_rl.report",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    collecting = commands.add_parser("collect", help="write the results of finished runs to experiments/NAME/results")
    collecting.add_argument("experiment", metavar="NAME", help="a folder of experiments/, such as table1")
    collecting.add_argument("setting", nargs="?", default="runs_root=runs", metavar="runs_root=runs")
    collecting.set_defaults(work=_collect)
    tables = commands.add_parser("tables", help="make tables, figures and the blocks in READMEs from the results")
    tables.add_argument("experiment", metavar="NAME", nargs="*", help="default: every experiment that has results")
    tables.set_defaults(work=_tables)
    checking = commands.add_parser("check", help="fail if a committed result, table or number does not fit its source")
    checking.add_argument("experiment", metavar="NAME", nargs="*", help="default: every experiment that has results")
    checking.set_defaults(work=_check)
    page = commands.add_parser("page", help="make one HTML file that compares runs")
    page.add_argument(
        "--runs", type=Path, default=Path("runs"), metavar="FOLDER", help="folder of run directories (default: runs)"
    )
    page.add_argument(
        "--out", type=Path, default=Path("report.html"), metavar="FILE", help="the page (default: report.html)"
    )
    page.set_defaults(work=_page)
    answers = commands.add_parser("answers", help="make one HTML file of an evaluation's results, FOLDER/index.html")
    answers.add_argument("folder", type=Path, metavar="FOLDER", help="the out= folder of python -m longctx_rl.evaluate")
    answers.set_defaults(work=_answers)
    dashboard = commands.add_parser("dashboard", help="save a wandb workspace and a report that compare the runs")
    dashboard.add_argument("experiment", metavar="NAME", help="a folder of experiments/, such as table1")
    dashboard.set_defaults(work=_dashboard)
    return top


def _collect(arguments: argparse.Namespace) -> str:
    key, _, value = arguments.setting.partition("=")
    if key != "runs_root" or not value:
        raise ValueError(f"{arguments.setting}: the only setting of collect is runs_root=FOLDER")
    experiment = _experiment(arguments.experiment)
    from longctx_rl.report.collect import collect

    return collect(experiment, Path(value))


def _tables(arguments: argparse.Namespace) -> str:
    chosen, without = _chosen(arguments.experiment)
    from longctx_rl.report import outputs

    return "\n".join([*(outputs.write(experiment, CHECKOUT) for experiment in chosen), *without])


def _check(arguments: argparse.Namespace) -> str:
    chosen, without = _chosen(arguments.experiment)
    from longctx_rl.config.compose import composed, composed_grids
    from longctx_rl.report import readmes
    from longctx_rl.report.check import check

    checked = {
        experiment.name: check(experiment, CHECKOUT, composed, composed_grids(experiment.name)) for experiment in chosen
    }
    notes = [f"{name}: {note}" for name, (_, more) in checked.items() for note in more] + without
    print(*notes, sep="\n", end="\n" if notes else "")
    if problems := [problem for wrong, _ in checked.values() for problem in wrong] + readmes.unfounded(CHECKOUT):
        print(*problems, sep="\n", file=sys.stderr)
        sys.exit(1)
    return f"{', '.join(checked)}: results, tables, figures and READMEs agree"


def _page(arguments: argparse.Namespace) -> str:
    from longctx_rl.report.page import document

    return document.write(arguments.runs, arguments.out)


def _answers(arguments: argparse.Namespace) -> str:
    if not (arguments.folder / "evaluation.json").is_file():
        raise ValueError(f"{arguments.folder} has no evaluation.json: give the out= folder of an evaluation")
    from longctx_rl.report.answers import page

    return page.write(arguments.folder)


def _dashboard(arguments: argparse.Namespace) -> str:
    experiment = _experiment(arguments.experiment)
    from longctx_rl.report import workspace

    return workspace.save(experiment)


def _experiment(name: str) -> "Experiment":
    from longctx_rl.report.experiment import open_experiment

    folder = _experiments() / name
    if name == ".." or folder.name != name:
        raise ValueError(f"{name!r} is a path: give the name of a folder of experiments/, such as table1")
    return open_experiment(folder)


def _experiments() -> Path:
    folder = CHECKOUT / "experiments"
    if not folder.is_dir():
        raise ValueError("there is no experiments/ here: run this command at the top of a checkout of longctx_rl")
    return folder


def _chosen(names: list[str]) -> "tuple[list[Experiment], list[str]]":
    """The named experiments, or all that have results; and a line for each study that has none yet.

    Raises:
        ValueError: no experiment has results, or a named one does not exist.
    """
    from longctx_rl.report import readmes, results

    _experiments()
    if names:
        return [_experiment(name) for name in names], []
    studies = [_experiment(name) for name in readmes.studies(CHECKOUT)]
    chosen = [study for study in studies if results.files(study.results) or (study.folder / "tables.md").is_file()]
    if not chosen:
        raise ValueError(
            "no experiment has results yet: make table1-runs, then python -m longctx_rl.report collect table1"
        )
    return chosen, [f"{study.name}: {results.missing(study.results)}" for study in studies if study not in chosen]


if __name__ == "__main__":
    main()
