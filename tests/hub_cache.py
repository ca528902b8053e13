"""A cache of the Hugging Face Hub on disk, as a download would leave it."""

import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants


def use(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process find Hub models in ``cache`` only, and without network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def download(cache: Path, name: str, model: Path, commit: str) -> Path:
    """Make ``model`` the snapshot of ``name`` that ``main`` refers to; returns its folder."""
    root = cache / f"models--{name.replace('/', '--')}"
    (root / "refs").mkdir(parents=True, exist_ok=True)
    (root / "refs" / "main").write_text(commit)
    return Path(shutil.copytree(model, root / "snapshots" / commit))
