"""One run of a sweep as a process on this machine, and the log of its output."""

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
    """The file that receives the run's output, or at least its errors."""

    def code(self) -> int | None:
        """Return the exit code, or None while the run is under way."""

    def stop(self, requests: int) -> bool:
        """Pass on that the user has requested a stop ``requests`` times. False: the run continues on its own."""

    def output(self) -> str:
        """Return the output so far, as far as it is known."""


class Child:
    """A run in a process of its own on this machine.

    Args:
        command: the command line that starts this run alone.
        log: the file for the run's output.
        jobs: number of runs at a time. A single run writes to the terminal itself, and only its errors go to ``log``.
    """

    def __init__(self, config: Config, command: str, log: Path, jobs: int) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="longctx_rl-")
        path = Path(self._folder.name, "config.yaml")
        path.write_text(configuration.dump(config), encoding="utf-8")
        self.log, self._config, self._shown, self._stops_sent = log, config, 0, 0
        self._echo = jobs == 1
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "longctx_rl.launch.single", str(path)],
                env={
                    **os.environ,
                    "LONGCTX_RL_COMMAND": command,
                    **single.for_children(config, self._folder.name, jobs),
                },
                stdout=None if self._echo else file,
                stderr=file,
                start_new_session=True,  # so that Ctrl-C reaches only the sweep, which passes it on
            )

    def code(self) -> int | None:
        code = self._process.poll()
        if self._echo and len(text := self.output()) > self._shown:
            cli.write(sys.stderr, text[self._shown :])
            self._shown = len(text)
        if code is None:
            return None
        interrupted = Path(self._folder.name, "interrupted").exists() or (self._stops_sent and code)
        self._folder.cleanup()
        if interrupted:
            code = cli.INTERRUPTED
        elif code < 0:
            code = 128 - code  # the shells' convention for a process that a signal ended
        if code:
            directory.discard_untrained(self._config)
        return code

    def stop(self, requests: int) -> bool:
        if requests > self._stops_sent and self._process.poll() is None:
            if requests == 1:
                self._process.send_signal(signal.SIGINT)
            else:
                family = psutil.Process(self._process.pid)
                for process in [*family.children(recursive=True), family]:
                    with suppress(psutil.NoSuchProcess):
                        if not cli.is_guard(process.cmdline()):
                            process.kill()
            self._stops_sent = requests
        return True

    def output(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")


def log_path(config: Config) -> Path:
    """Return the log of a run's process. It lies beside the run directories, which only runs create and remove."""
    path = Path(config.run_dir)
    return path.parent / ".sweep" / f"{path.name}.txt"


def make_folder(folder: Path) -> None:
    """Create a folder for logs. Raises ValueError if it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"cannot write {folder.parent} ({error.strerror}): set runs_root=<a directory you can write to>"
        ) from error


def remove_if_empty(folder: Path) -> None:
    """Remove a log folder that is empty, and then the experiment's folder if it has no run directory either."""
    for path in (folder, folder.parent):
        if path.name and path.is_dir() and not any(path.iterdir()):
            path.rmdir()
