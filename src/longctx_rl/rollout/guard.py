"""Starts a server and ends it with the process that wanted it, however that process ends: ``guard.py PIPE FOLDER ...``.

A program of its own that needs the standard library alone. The parent holds the other end of the pipe; when the parent
has ended, even by ``kill -9``, reading the pipe gives its end. Everything in the server's process group is then killed,
and FOLDER, where weights were written for it, is removed; '' for none.
"""

import os
import select
import shutil
import signal
import subprocess
import sys
import time

GRACE = 10.0
"""Seconds in which the server and its workers may end by themselves."""


def main(pipe: int, folder: str, command: list[str]) -> int:
    """Run the command until it ends or the pipe is closed, and return its exit code."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the parent decides
    if not command:
        select.select([pipe], [], [])
        shutil.rmtree(folder, ignore_errors=True)
        return 0
    server = subprocess.Popen(command, start_new_session=True, preexec_fn=_default_signals)
    try:
        while server.poll() is None:
            if select.select([pipe], [], [], 0.2)[0]:
                _signal_group(server.pid, signal.SIGTERM)
                break
        until = time.monotonic() + GRACE
        while _signal_group(server.pid, 0) and time.monotonic() < until:
            server.poll()  # a zombie would still be a member of the group
            time.sleep(0.05)
    finally:
        _signal_group(server.pid, signal.SIGKILL)
        server.wait()
        if folder:
            shutil.rmtree(folder, ignore_errors=True)
    return server.returncode


def _default_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def _signal_group(group: int, number: int) -> bool:
    """Send a signal to all processes of a group; whether there are any."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    raise SystemExit(main(int(sys.argv[1]), sys.argv[2], sys.argv[3:]))
