"""The environment of a run: versions, commit, command line, machine."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import longctx_rl

PACKAGES = (
    "torch",
    "transformers",
    "deepspeed",
    "hydra-core",
    "omegaconf",
    "wandb",
    "datasets",
    "numpy",
    "safetensors",
)


def describe() -> dict[str, Any]:
    """Return the contents of ``environment.json`` as plain data. Unknown values are null."""
    import torch  # imported late, so that reading a configuration stays fast

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command(),
        "directory": os.getcwd(),
        "longctx_rl": longctx_rl.__version__,
        "git": git_state(Path(__file__).resolve().parents[3]),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "host": {
            "name": platform.node(),
            "system": platform.platform(),
            "cores": cores(),
            "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
            "gpus": gpus,
        },
    }


def command() -> str | None:
    """Return the command line that starts this run, as recorded by the launcher."""
    return os.environ.get("LONGCTX_RL_COMMAND")


def cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def git_state(checkout: Path) -> dict[str, Any] | None:
    """Return the commit and whether tracked files differ from it; None outside a checkout of this project."""
    if not (checkout / ".git").exists() or not (checkout / "conf" / "config.yaml").is_file():
        return None
    commit = _git(checkout, "rev-parse", "HEAD")
    changes = _git(checkout, "status", "--porcelain", "--untracked-files=no")
    return None if commit is None else {"commit": commit, "dirty": bool(changes)}


def _git(checkout: Path, *arguments: str) -> str | None:
    try:
        result = subprocess.run(
            ["git", "-C", str(checkout), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
