"""The isolation backends: the command line that starts a worker in each.

``bwrap``: bubblewrap (Debian: ``apt install bubblewrap``). The worker has its own namespaces for processes, network,
files and IPC, and an empty environment; of the host's files it sees only the interpreter and its libraries, read-only,
and it can write nothing. ``rlimit``: resource limits alone. A candidate could read what its user can read and reach the
network, so this backend is used only when it is requested by name.

A worker that root starts becomes ``nobody`` before it sees a candidate, in both backends. A worker that another user
starts keeps that user under ``rlimit`` and is ``nobody`` inside bubblewrap.
"""

import os
import shutil
import sys
from pathlib import Path
from typing import Literal

from longctx_rl.sandbox import worker

Backend = Literal["bwrap", "rlimit"]
SOURCE = Path(worker.__file__).read_text(encoding="utf-8")
SYSTEM_PYTHON = "/usr/bin/python3"
"""The interpreter for ``nobody`` where root's own lies in a folder that is closed to other users."""
ENVIRONMENT = {"PYTHONHASHSEED": "0"}
"""A fixed hash seed: sets iterate in the same order in every process, so that grades are deterministic."""


def command(backend: Backend) -> list[str]:
    """Return the command line that starts a worker."""
    # The virtual environment's interpreter is a link; its target needs no file of the environment.
    interpreter = os.path.realpath(sys.executable)
    if backend == "rlimit" and os.geteuid() == 0 and not _open_to_all(interpreter) and os.path.exists(SYSTEM_PYTHON):
        interpreter = SYSTEM_PYTHON
    python = [interpreter, "-P", "-s", "-S", "-B", "-c", SOURCE]
    if backend == "rlimit":
        return [*python, "shared"]
    if os.geteuid() == 0:  # no user namespace: inside one, root's files would belong to this user
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
        # The worker is process 1 of its namespace: no process inside can kill or stop it, or take its files.
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
    """Whether every user may enter all folders above the path."""
    return all(parent.stat().st_mode & 0o001 for parent in Path(path).parents)


def _interpreter_folders() -> list[str]:
    """The host folders that the interpreter needs: its own, and those of the libraries it is linked with."""
    folders = {"/usr/lib", os.path.realpath(sys.base_prefix + "/bin"), os.path.realpath(sys.base_prefix + "/lib")}
    folders.add(os.path.dirname(os.path.realpath(sys.executable)))
    if os.path.isdir("/usr/lib64"):
        folders.add("/usr/lib64")
    return sorted(folder for folder in folders if os.path.isdir(folder))
