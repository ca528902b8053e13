"""How the worker is kept from the machine: backends, probed when they are chosen.

``bwrap``: bubblewrap (Debian: ``apt install bubblewrap``). Namespaces of its own for processes, network, files and IPC;
of the host's files only the interpreter and its libraries, read-only, and nothing that can be written; an empty
environment. ``rlimit``: resource limits alone. A candidate could read what its user can read and reach the network, so
it is taken only when it is asked for by name.

In both, what root starts becomes ``nobody`` before it sees a candidate; what a user starts stays that user outside of
bubblewrap, and is nobody inside.
"""

import os
import shutil
import sys
from functools import lru_cache
from pathlib import Path
from typing import Literal

from longctx_rl.sandbox import worker

Backend = Literal["bwrap", "rlimit"]
SOURCE = Path(worker.__file__).read_text(encoding="utf-8")
SYSTEM_PYTHON = "/usr/bin/python3"
"""For ``nobody``, where root's own interpreter is in a folder that is closed to others."""
ENVIRONMENT = {"PYTHONHASHSEED": "0"}
"""Sets are read in the same order in every process: what is graded must not depend on chance."""


def command(backend: Backend) -> list[str]:
    """The command line of a worker."""
    # The virtual environment's interpreter is a link; what it links to needs nothing of the environment.
    interpreter = os.path.realpath(sys.executable)
    if backend == "rlimit" and os.geteuid() == 0 and not _open_to_all(interpreter) and os.path.exists(SYSTEM_PYTHON):
        interpreter = SYSTEM_PYTHON
    python = [interpreter, "-P", "-s", "-S", "-B", "-c", SOURCE]
    if backend == "rlimit":
        return [*python, "shared"]
    if os.geteuid() == 0:  # no user namespace: in one, files of root's would be this user's
        spaces = ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
        spaces += ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        spaces = ["--unshare-all", "--uid", str(worker.NOBODY), "--gid", str(worker.NOBODY), "--cap-drop", "ALL"]
    folders = _interpreter_folders()
    above = sorted({str(parent) for path in folders for parent in Path(path).parents} - {"/"})
    shown = [part for path in above for part in ("--perms", "0755", "--dir", path)]
    shown += [part for path in folders for part in ("--ro-bind", path, path)]
    return [
        shutil.which("bwrap") or "bwrap",
        *spaces,
        # The worker is the first process of its namespace, which nothing inside can kill, stop or take files from.
        *("--as-pid-1", "--die-with-parent", "--new-session", "--hostname", "sandbox", "--clearenv"),
        *(part for name, value in ENVIRONMENT.items() for part in ("--setenv", name, value)),
        *(part for path in ("/lib", "/lib64", "/lib32") for part in ("--ro-bind-try", path, path)),
        *shown,
        *("--dir", "/dev", "--dev-bind", "/dev/null", "/dev/null", "--dev-bind", "/dev/urandom", "/dev/urandom"),
        *("--remount-ro", "/", "--chdir", "/"),
        "--",
        *python,
        "alone",
    ]


def _open_to_all(path: str) -> bool:
    """Whether everybody may enter every folder on the way."""
    return all(parent.stat().st_mode & 0o001 for parent in Path(path).parents)


def _interpreter_folders() -> list[str]:
    """What the interpreter needs of the host: its own folder, and the libraries that it is linked with."""
    folders = {"/usr/lib", os.path.realpath(sys.base_prefix + "/bin"), os.path.realpath(sys.base_prefix + "/lib")}
    folders.add(os.path.dirname(os.path.realpath(sys.executable)))
    if os.path.isdir("/usr/lib64"):
        folders.add("/usr/lib64")
    return sorted(folder for folder in folders if os.path.isdir(folder))


@lru_cache(maxsize=8)
def failure(backend: Backend) -> str:
    """Why a backend does not work on this machine; empty if it does. Runs a candidate."""
    from longctx_rl.sandbox.pool import Call, SandboxFailed, Worker, read, request

    if not sys.platform.startswith("linux"):
        return f"generated code runs on Linux only, and this is {sys.platform}"
    if backend == "bwrap" and shutil.which("bwrap") is None:
        return "bubblewrap is not installed (Debian, Ubuntu: apt install bubblewrap)"
    try:
        one = Worker(backend)
    except SandboxFailed as error:
        return str(error)
    try:
        reply = one.ask(request(Call("import fractions\ndef probe(x):\n    return x + 1", "probe", [[1]])), 30.0)
    finally:
        one.stop()
    outcome = None if reply is None else read(reply, 1)
    right = outcome is not None and bool(outcome.results) and outcome.results[0].value == 2
    return "" if right else f"a trial candidate does not run ({outcome.status if outcome else 'worker lost'})"


def choose(wanted: str) -> Backend:
    """The backend of a setting: ``auto``, or one by name.

    Raises:
        ValueError: it does not work here, with what to do.
    """
    if wanted == "rlimit":
        if why := failure("rlimit"):
            raise ValueError(f"sandbox=rlimit does not work here: {why}")
        return "rlimit"
    if why := failure("bwrap"):
        raise ValueError(
            f"generated code would run without isolation: {why}. Install or allow bubblewrap, or set sandbox=rlimit to "
            "run it with resource limits alone"
        )
    return "bwrap"
