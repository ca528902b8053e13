"""The tiny models that all runs of this folder train."""

import pytest

from small_runs import save_models


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Overrides that name a tiny student and a wider teacher with random weights."""
    return save_models(tmp_path_factory.mktemp("models"))
