"""``make mini-models``: Ctrl-C reaches a stage, which gets the time to save."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

BUILD = Path(__file__).parents[2] / "experiments" / "mini_models" / "build.py"
STAGE = """#!{python}
import pathlib, signal, sys, time
def save(*_):
    time.sleep(0.5)
    pathlib.Path("saved").touch()
    sys.exit(130)
signal.signal(signal.SIGINT, save)
pathlib.Path("training").touch()
time.sleep(60)
"""


@pytest.mark.slow
def test_an_interrupted_stage_saves_before_the_build_ends(tmp_path: Path) -> None:
    stage = tmp_path / "stage"
    stage.write_text(STAGE.format(python=sys.executable))
    stage.chmod(0o755)
    script = f"import runpy, sys; train = runpy.run_path({str(BUILD)!r})['train']; sys.executable = {str(stage)!r}\n"
    command = [sys.executable, "-c", script + "train('copy', None, 'runs', [])"]
    with subprocess.Popen(command, cwd=tmp_path, start_new_session=True) as build:
        until = time.monotonic() + 120
        while not (tmp_path / "training").exists() and time.monotonic() < until:
            time.sleep(0.02)
        os.killpg(build.pid, signal.SIGINT)
        assert build.wait(30) == 130
    assert (tmp_path / "saved").exists()
