"""The whole way from runs to files, the command line, and the check of what is committed."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from longctx_rl.config.compose import composed
from longctx_rl.report import outputs, prose, results
from longctx_rl.report.check import check_files, check_origin, same
from longctx_rl.report.experiment import Experiment, open_experiment
from report.run_folders import write_grid

ROOT = Path(__file__).resolve().parents[2]
README = "# t\n\n<!-- mine/levels -->\n<!-- end -->\n\nmore\n"


def report(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """``python -m longctx_rl.report`` in a process that fails if torch is imported."""
    code = (
        "import sys\nfrom longctx_rl.report.__main__ import main\ntry:\n    main()\n"
        "finally:\n    assert 'torch' not in sys.modules"
    )
    environment = {key: value for key, value in os.environ.items() if key != "WANDB_API_KEY"}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False, env=environment)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout in which the grid was run, collected and built through the command line."""
    folder = tmp_path_factory.mktemp("checkout")
    (folder / "experiments" / "mine").mkdir(parents=True)
    (folder / "README.md").write_text(README)
    write_grid(folder / "runs", "mine")
    for command in ("collect", "tables"):
        done = report(folder, command, "mine")
        assert done.returncode == 0, done.stderr
    return folder


def test_everything_is_made_and_made_again_byte_for_byte(checkout: Path) -> None:
    experiment = Experiment(checkout / "experiments" / "mine")
    made = outputs.files_of(experiment, checkout)
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
    said = check_files(experiment, copy)
    assert [sentence.removeprefix(f"{copy}/").split(":")[0] for sentence in said] == [
        "experiments/mine/tables/gains.csv is not what the committed results give",
        "README.md is not what the committed results give",
        "experiments/mine/figures/levels.png is missing",
        "experiments/mine/tables/old.csv is made by nothing",
    ]


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


def test_estimates_that_prose_quotes_stand_in_tables(tmp_path: Path) -> None:
    folder = tmp_path / "experiments" / "mine"
    folder.mkdir(parents=True)
    (folder / "tables.md").write_text("| sft | 5 | \u221228.6 [\u221233.2, \u221224.1]* |\n")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "paper.md").write_text("sft is lower: +28.6 points [+24.1, +33.2]\n")
    (tmp_path / "README.md").write_text("<!-- mine/gains -->\n| +1.0 [+0.5, +1.5] |\n<!-- end -->\n28.6 [24.1, 33.2]\n")
    assert prose.unfounded(tmp_path) == []
    wrong = "\u221228.7 [\u221233.2, \u221224.1]"
    (folder / "README.md").write_text(f"{wrong}, a 5 [see](file)\n")
    assert prose.unfounded(tmp_path) == [
        f"{folder}/README.md says {wrong}, which stands in no table of an experiment: correct it"
    ]


def test_this_repository_quotes_what_its_tables_have() -> None:
    assert prose.unfounded(ROOT) == []


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
    assert (
        len(problems) == 1 and "sft-mini-mix-s1 was not made by `python -m longctx_rl +algo=sft seed=1" in problems[0]
    )
    assert problems[0].endswith(": optim.lr 0.5 is 0.001 today")
    assert notes == ["new since then: seed=1", "gone since then: old.key=1"]
    commands = {None: "its command is not known", "python -m longctx_rl +algo=nope": "no configuration today"}
    for command, said in commands.items():
        (problem,), _ = check_origin(replace(result, origin={"command": command}), composed)
        assert said in problem


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("collect", "table1", "root=x"), "error: root=x: the one setting of collect is runs_root=FOLDER"),
        (("collect", "table1", "runs_root=nowhere"), "error: no runs under nowhere/table1: name the folder above it"),
        (("collect", "table9"), "error: experiments/table9 does not exist"),
        (("tables",), "error: no experiment has results yet: make table1-runs, then"),
        (
            ("tables", "table1"),
            "error: no results in experiments/table1/results yet: train its runs (experiment_name=table1",
        ),
        (("dashboard", "table1"), "error: set WANDB_API_KEY"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    (tmp_path / "experiments" / "table1").mkdir(parents=True)
    done = report(tmp_path, *arguments)
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.startswith(said) and done.stderr.count("\n") == 1


def test_studies_without_results_stop_nobody(checkout: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(checkout, tmp_path / "checkout"))
    marked = "<!-- {}/levels -->\n<!-- end -->\n"
    for name, text in (("mine", marked), ("table2", marked), ("bench", "no marks")):
        (copy / "experiments" / name).mkdir(exist_ok=True)
        (copy / "experiments" / name / "README.md").write_text(text.format(name))
    (copy / "experiments" / "mine" / "tables.md").unlink()
    for command, first in (("tables", "2 changed"), ("check", "results, tables, figures and READMEs fit together")):
        done = report(copy, command)
        assert done.returncode == 0, done.stderr
        assert first in done.stdout and "bench" not in done.stdout
        assert "table2: no results in experiments/table2/results yet: train its runs" in done.stdout
    with (copy / "README.md").open("a") as readme:
        readme.write("+98.7 [+95.0, +99.0]\n")
    done = report(copy, "check")
    assert done.returncode == 1 and "README.md says +98.7 [+95.0, +99.0], which stands in no table" in done.stderr


def test_help_shows_examples(tmp_path: Path) -> None:
    done = report(tmp_path, "--help")
    assert done.returncode == 0 and "python -m longctx_rl.report collect table1" in done.stdout
