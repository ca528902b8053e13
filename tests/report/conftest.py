"""One synthetic grid for all tests of reports, collected once, and commands that run within the test process."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from longctx_rl.report import __main__ as report
from longctx_rl.report import results
from longctx_rl.report.collect import collect
from longctx_rl.report.experiment import Experiment
from longctx_rl.report.results import Result
from report.run_folders import write_grid


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str


Command = Callable[..., Done]


@pytest.fixture(scope="session")
def written_grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("grid")
    write_grid(root)
    return root


@pytest.fixture
def grid(written_grid: Path, tmp_path: Path) -> Path:
    """A copy of the grid's runs, to be changed."""
    return Path(shutil.copytree(written_grid, tmp_path / "runs"))


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    """``experiments/table1`` in an empty checkout."""
    folder = tmp_path / "experiments" / "table1"
    folder.mkdir(parents=True)
    return Experiment(folder)


@pytest.fixture(scope="session")
def collected(written_grid: Path, tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """``experiments/table1`` with the results of the grid, which no test changes."""
    experiment = Experiment(tmp_path_factory.mktemp("collected") / "experiments" / "table1")
    collect(experiment, written_grid)
    return experiment


@pytest.fixture(scope="session")
def found(collected: Experiment) -> Sequence[Result]:
    """The results of the grid."""
    return tuple(results.read_all(collected.results))


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """``python -m longctx_rl.report`` in a folder, within this process and without a key of wandb."""
    monkeypatch.delenv("WANDB_API_KEY", raising=False)

    def run(folder: Path, *arguments: str) -> Done:
        monkeypatch.chdir(folder)
        monkeypatch.setattr("sys.argv", ["report", *arguments])
        with pytest.raises(SystemExit) as stopped:
            report.main()
        output = capsys.readouterr()
        return Done(int(stopped.value.code or 0), output.out, output.err)

    return run
