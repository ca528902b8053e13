"""``python -m longctx_rl`` as processes of their own."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

SOURCE = str(Path(__file__).parents[1] / "src")


def start(arguments: Sequence[str], directory: Path) -> "subprocess.Popen[str]":
    """Start the command in ``directory``, with one thread per process."""
    return subprocess.Popen(
        [sys.executable, "-m", "longctx_rl", *arguments],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": SOURCE, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    """Wait for the process; returns its exit code, standard output and standard error."""
    stdout, stderr = process.communicate(timeout=240)
    return process.returncode, stdout, stderr


def wait_for(process: "subprocess.Popen[str]", beginning: str) -> None:
    """Read the output up to the first line that begins so."""
    assert process.stdout
    for line in process.stdout:
        if line.startswith(beginning):
            return
    raise AssertionError(process.communicate()[1])
