"""Starts a server and ends it with the process that wanted it, however that process ends: ``guard.py PIPE FOLDER ...``.

A program of its own that needs the standard library alone. The parent holds the other end of the pipe; when the parent
has ended, even by ``kill -9``, reading the pipe gives its end. Everything in the server's process group is then killed,
and FOLDER, where weights were written for it, is removed; '' for none.
"""

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import time

GRACE = 10.0
"""Seconds in which the server may end by itself after SIGTERM."""


def main(pipe: int, folder: str, command: list[str]) -> int:
    """Run the command until it ends or the pipe is closed, and return its exit code."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the parent decides
    server = subprocess.Popen(command, start_new_session=True, preexec_fn=_default_signals)
    try:
        while server.poll() is None:
            if select.select([pipe], [], [], 0.2)[0]:
                _signal_group(server.pid, signal.SIGTERM)
                until = time.monotonic() + GRACE
                while server.poll() is None and time.monotonic() < until:
                    time.sleep(0.05)
                break
    finally:
        _signal_group(server.pid, signal.SIGKILL)  # its workers too
        server.wait()
        if folder:
            shutil.rmtree(folder, ignore_errors=True)
    return server.returncode


def _default_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def _signal_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)


if __name__ == "__main__":
    raise SystemExit(main(int(sys.argv[1]), sys.argv[2], sys.argv[3:]))
