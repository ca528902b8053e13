"""Which isolation backend works on this machine, established by running a trial candidate."""

import shutil
import sys
from functools import lru_cache

from longctx_rl.sandbox.isolation import Backend
from longctx_rl.sandbox.pool import Call, SandboxFailed, Worker, read, request

TRIAL = Call("import fractions\ndef probe(x):\n    return x + 1", "probe", [[1]])
TRIAL_SECONDS = 30.0


@lru_cache(maxsize=8)
def failure(backend: Backend) -> str:
    """Return why a backend does not work on this machine, or an empty string if it does. Runs a trial candidate."""
    if not sys.platform.startswith("linux"):
        return f"generated code runs on Linux only, and this is {sys.platform}"
    if backend == "bwrap" and shutil.which("bwrap") is None:
        return "bubblewrap is not installed (Debian, Ubuntu: apt install bubblewrap)"
    try:
        worker = Worker(backend)
    except SandboxFailed as error:
        return str(error)
    try:
        reply = worker.ask(request(TRIAL), TRIAL_SECONDS)
    finally:
        worker.stop()
    outcome = None if reply is None else read(reply, 1)
    right = outcome is not None and bool(outcome.results) and outcome.results[0].value == 2
    return "" if right else f"a trial candidate does not run ({outcome.status if outcome else 'worker lost'})"


def choose(setting: str) -> Backend:
    """Return the backend of a setting: ``auto``, ``bwrap`` or ``rlimit``. Probes that backend, once per process.

    Raises:
        ValueError: the backend does not work on this machine; the message says what to do.
    """
    if setting == "rlimit":
        if why := failure("rlimit"):
            raise ValueError(f"sandbox=rlimit does not work here: {why}")
        return "rlimit"
    if why := failure("bwrap"):
        raise ValueError(
            f"generated code would run without isolation: {why}. Install or allow bubblewrap, or set sandbox=rlimit to "
            "run it with resource limits alone"
        )
    return "bwrap"
