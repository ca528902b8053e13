"""One synthetic grid for all tests of reports."""

import shutil
from pathlib import Path

import pytest

from longctx_rl.report.experiment import Experiment
from report.run_folders import write_grid


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
