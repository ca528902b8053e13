"""One run of a sweep as a process on this machine, and where it says what it says."""

import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import psutil

from longctx_rl import cli
from longctx_rl.config import load as configuration
from longctx_rl.config.schema import Config
from longctx_rl.launch import single
from longctx_rl.runs import directory


class Running(Protocol):
    """A run that was started."""

    log: Path
    """File of what it says, or of its errors."""

    def code(self) -> int | None:
        """Its exit code; None while it runs."""

    def stop(self, asked: int) -> bool:
        """Tell it that the user asked to stop, for the ``asked``-th time; False if it goes on by itself."""

    def said(self) -> str:
        """What it has said so far, as far as that can be known."""


class Child:
    """A run in a process of its own on this machine.

    Args:
        command: what starts this run alone.
        log: file of what it says.
        jobs: runs at a time. One alone keeps the terminal for itself, but for its errors.
    """

    def __init__(self, config: Config, command: str, log: Path, jobs: int) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="longctx_rl-")
        path = Path(self._folder.name, "config.yaml")
        path.write_text(configuration.dump(config), encoding="utf-8")
        self.log, self._config, self._shown, self._told = log, config, 0, 0
        self._echo = jobs == 1
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "longctx_rl.launch.single", str(path)],
                env={
                    **os.environ,
                    "LONGCTX_RL_COMMAND": command,
                    **single.for_children(config, self._folder.name, jobs),
                },
                stdout=None if self._echo else output,
                stderr=output,
                start_new_session=True,  # Ctrl-C reaches the sweep alone, which passes it on
            )

    def code(self) -> int | None:
        code = self._process.poll()
        if self._echo and len(text := self.said()) > self._shown:
            sys.stderr.write(text[self._shown :])
            sys.stderr.flush()
            self._shown = len(text)
        if code is None:
            return None
        interrupted = Path(self._folder.name, "interrupted").exists() or (self._told and code)
        self._folder.cleanup()
        if interrupted:
            code = cli.INTERRUPTED
        elif code < 0:
            code = 128 - code  # as shells count a process that a signal ended
        if code:
            directory.discard_untrained(self._config)
        return code

    def stop(self, asked: int) -> bool:
        if asked > self._told and self._process.poll() is None:
            if asked == 1:
                self._process.send_signal(signal.SIGINT)
            else:
                family = psutil.Process(self._process.pid)
                for one in [*family.children(recursive=True), family]:
                    with suppress(psutil.NoSuchProcess):
                        one.kill()
            self._told = asked
        return True

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")


def log_of(config: Config) -> Path:
    """Where a run's process says what it says: beside the run directories, which are made and removed by runs alone."""
    path = Path(config.run_dir)
    return path.parent / ".sweep" / f"{path.name}.txt"


def make_folder(folder: Path) -> None:
    """Make a folder of logs. Raises ValueError if it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"cannot write {folder.parent} ({error.strerror}): set runs_root=<a directory you can write to>"
        ) from error


def remove_if_empty(folder: Path) -> None:
    """Remove a folder of logs that are all gone, and that of an experiment that made no run directory."""
    for path in (folder, folder.parent):
        if path.name and path.is_dir() and not any(path.iterdir()):
            path.rmdir()
