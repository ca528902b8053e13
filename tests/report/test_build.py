"""From runs to tables and figures, the command line, and the check of committed files."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from longctx_rl.config.compose import composed
from longctx_rl.report import outputs, results
from longctx_rl.report.check import check_files, check_origin, same
from longctx_rl.report.collect import collect
from longctx_rl.report.experiment import Experiment, open_experiment
from report.conftest import Command
from report.run_folders import write_evaluation, write_grid

ROOT = Path(__file__).resolve().parents[2]
README = "# t\n\n<!-- mine/levels -->\n<!-- end -->\n\nmore\n"
BUILD = """
import sys
from longctx_rl.report.__main__ import main
for command in ("collect", "tables"):
    sys.argv = ["report", command, "mine"]
    try:
        main()
    except SystemExit as end:
        assert not end.code, end.code
assert "torch" not in sys.modules
"""
IMPORTED = """
import atexit, runpy, sys
heavy = ("numpy", "scipy", "matplotlib", "torch", "transformers", "hydra")
atexit.register(lambda: print("imported:", *(name for name in heavy if name in sys.modules)))
runpy.run_module("longctx_rl.report", run_name="__main__", alter_sys=True)
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout in which the grid was run, collected and built through the command line, without importing torch."""
    folder = tmp_path_factory.mktemp("checkout")
    (folder / "experiments" / "mine").mkdir(parents=True)
    (folder / "README.md").write_text(README)
    write_grid(folder / "runs", "mine")
    done = subprocess.run([sys.executable, "-c", BUILD], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_everything_is_made_and_made_again_byte_for_byte(checkout: Path) -> None:
    experiment = Experiment(checkout / "experiments" / "mine")
    made = outputs.files_of(experiment, checkout, results.read_all(experiment.results))
    assert {path: path.read_bytes() for path in made} == made
    names = {path.name for path in made}
    assert {"levels.csv", "levels.tex", "tables.md", "README.md", "transfer_points.csv"} <= names
    figures = ("levels", "transfer", "dynamics", "scaling")
    assert {f"{figure}.{kind}" for figure in figures for kind in ("svg", "png")} <= names
    text = (checkout / "README.md").read_text()
    assert text.startswith("# t\n\n<!-- mine/levels -->\n|  | runs | long reasoning |") and text.endswith("more\n")
    assert "| grpo | 3 | 65.0 [" in text and "| grpo | 3 | 65.0 [" in (experiment.folder / "tables.md").read_text()
    points = (experiment.folder / "tables" / "transfer_points.csv").read_text()
    assert "grpo,2,10,1,code_long,0.5,0.5\n" in points and "sft,0,5,0,code_short,0.1,0\n" in points


def test_what_differs_from_the_results_is_named(checkout: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(checkout, tmp_path / "checkout"))
    experiment = Experiment(copy / "experiments" / "mine")
    for path in (copy / "README.md", experiment.folder / "tables" / "gains.csv"):
        path.write_text(path.read_text().replace("0.0", "0.1"))
    (experiment.folder / "figures" / "levels.png").unlink()
    (experiment.folder / "tables" / "old.csv").write_text("")
    problems = check_files(experiment, copy, results.read_all(experiment.results))
    assert [problem.removeprefix(f"{copy}/").split(":")[0] for problem in problems] == [
        "experiments/mine/tables/gains.csv differs from what the committed results give",
        "README.md differs from what the committed results give",
        "experiments/mine/figures/levels.png is missing",
        "experiments/mine/tables/old.csv is no table or figure of mine",
    ]
    assert all(problem.endswith("python -m longctx_rl.report tables mine") for problem in problems)


@pytest.mark.parametrize(
    "folder", sorted(path.parent for path in ROOT.glob("experiments/table*/results")), ids=lambda it: it.name
)
def test_committed_tables_are_what_their_results_give(folder: Path) -> None:
    """Of this repository, as people read them: tables.md and the numbers in READMEs. ``check`` looks at every file."""
    experiment = open_experiment(folder)
    texts = outputs.texts_of(experiment, ROOT, results.read_all(experiment.results))
    pages = {path: text for path, text in texts.items() if path.suffix == ".md"}
    assert {folder / "tables.md", folder / "README.md", ROOT / "README.md"} <= pages.keys()
    for path, text in pages.items():
        assert path.read_text(encoding="utf-8") == text, f"make {folder.name}"


def test_pictures_are_compared_by_their_pixels(checkout: Path) -> None:
    pictures = checkout / "experiments" / "mine" / "figures"
    first, second = ((pictures / f"{name}.png").read_bytes() for name in ("levels", "scaling"))
    assert same(first, first, ".png") and not same(first, second, ".png") and not same(b"no picture", first, ".png")


def test_a_result_whose_command_gives_another_configuration_is_named(checkout: Path) -> None:
    result = results.read(checkout / "experiments" / "mine" / "results" / "sft-mini-mix-s1.jsonl")
    assert check_origin(result, composed) == ([], [])
    unsaid = {key: value for key, value in result.config.items() if key != "eval.times"}
    assert len(unsaid) < len(result.config) and check_origin(replace(result, config=unsaid), composed) == ([], [])
    changed = replace(result, config=result.config | {"optim.lr": 0.5, "old.key": 1})
    changed.config.pop("seed")
    problems, notes = check_origin(changed, composed)
    (problem,) = problems
    assert problem.startswith("sft-mini-mix-s1 differs from `python -m longctx_rl +algo=sft seed=1")
    assert problem.endswith(": optim.lr was 0.5 and is 0.001 today; run it again")
    assert notes == ["key added since then: seed=1", "key removed since then: old.key=1"]
    for command in (None, "python -m longctx_rl +algo=nope"):
        (problem,), _ = check_origin(replace(result, origin={"command": command}), composed)
        assert problem.startswith(result.name) and "again" in problem and (command or "") in problem


@pytest.mark.parametrize(
    ("arguments", "value", "fix"),
    [
        (("collect", "table1", "root=x"), "root=x", "runs_root=FOLDER"),
        (("collect", "table1", "runs_root=nowhere"), "nowhere/table1", "runs_root=FOLDER"),
        (("collect", "table9"), "experiments/table9", "create it"),
        (("tables",), "no experiment has results", "make table1-runs"),
        (("tables", "table1"), "experiments/table1/results", "train its runs (experiment_name=table1"),
        (("dashboard", "table1"), "WANDB_API_KEY", "https://wandb.ai/authorize"),
    ],
)
def test_a_refused_command_is_one_sentence(
    arguments: tuple[str, ...], value: str, fix: str, tmp_path: Path, command: Command
) -> None:
    (tmp_path / "experiments" / "table1").mkdir(parents=True)
    done = command(tmp_path, *arguments)
    assert (done.code, done.out) == (2, "") and done.err.startswith("error: ") and done.err.count("\n") == 1
    assert value in done.err and fix in done.err


@pytest.mark.parametrize(
    ("arguments", "code"), [(("--help",), 0), (("tables", "nope"), 2), (("collect", "table1", "root=x"), 2)]
)
def test_help_and_refusals_import_nothing_heavy(arguments: tuple[str, ...], code: int, tmp_path: Path) -> None:
    run = [sys.executable, "-c", IMPORTED, *arguments]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert done.stdout.rpartition("imported:")[2].split() == []
    assert (code == 0) == ("python -m longctx_rl.report collect table1" in done.stdout)


def test_studies_without_results_stop_nobody(tmp_path: Path, command: Command) -> None:
    experiment = Experiment(tmp_path / "experiments" / "mine")
    marked = "<!-- {}/levels -->\n<!-- end -->\n"
    for name, text in (("mine", marked), ("table2", marked), ("bench", "no marks")):
        (tmp_path / "experiments" / name).mkdir(parents=True)
        (tmp_path / "experiments" / name / "README.md").write_text(text.format(name))
    (tmp_path / "README.md").write_text(README)
    write_evaluation(tmp_path / "runs" / "mine" / "base", {("code", "short", 0): [1.0, 0.0]})
    collect(experiment, tmp_path / "runs")
    for arguments, expected in ((("tables",), "mine: "), (("check",), "mine: results, tables, figures and READMEs")):
        done = command(tmp_path, *arguments)
        assert done.code == 0, done.err
        assert expected in done.out and "bench" not in done.out
        assert "table2: no results in experiments/table2/results yet: train its runs" in done.out
    assert not (experiment.folder / "figures").exists()  # of untrained models alone
    with (tmp_path / "README.md").open("a") as readme:
        readme.write("+98.7 [+95.0, +99.0]\n")
    done = command(tmp_path, "check")
    assert done.code == 1 and "README.md quotes +98.7 [+95.0, +99.0], which no" in done.err
