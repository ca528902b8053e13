"""Behaviour that all commands share: help, one line per error, exit codes, and ending with the parent process."""

import ctypes
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import NoReturn

UNUSABLE = 2
"""Exit code of a configuration, directory or checkpoint that cannot be used."""
DIVERGED = 1
"""Exit code of a run that ended because its gradients were not finite."""
INTERRUPTED = 130
TRACEBACK_SWITCHES = ("LONGCTX_RL_TRACEBACK", "HYDRA_FULL_ERROR")
"""Environment variables that, if set to 1, also print the traceback of an error."""

_SET_PARENT_DEATH_SIGNAL = 1


def main(description: str, work: Callable[[list[str]], str]) -> NoReturn:
    """Entry point of a command: print ``description`` for --help or without arguments, else the result of ``work``."""
    arguments = sys.argv[1:]
    if not arguments or {"-h", "--help"} & set(arguments):
        print(description)
        sys.exit(0 if arguments else UNUSABLE)
    command(lambda: work(arguments))


def command(work: Callable[[], str]) -> NoReturn:
    """Run ``work``, print its result, and exit. An error is printed as one line, and completed work is kept."""
    try:
        print(work())
        sys.exit(0)
    except ValueError as error:
        complain(error)
    except OSError as error:
        complain(f"{error.filename or 'a file'} cannot be read or written ({error.strerror}); completed work is kept")
    except KeyboardInterrupt:
        print("interrupted: the same command continues where it stopped", file=sys.stderr)
        leave(INTERRUPTED)  # without waiting for pending requests
    sys.exit(UNUSABLE)


def complain(problem: ValueError | str, main_rank: bool = True) -> None:
    """Print ``error: ...`` to stderr, after the traceback if LONGCTX_RL_TRACEBACK=1 or HYDRA_FULL_ERROR=1.

    A rank other than the main rank waits 15 seconds before it prints.
    """
    if not main_rank:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(15.0)  # Usually the main rank reports the same error meanwhile, and torchrun ends this process.
    if isinstance(problem, ValueError) and "1" in (os.environ.get(name) for name in TRACEBACK_SWITCHES):
        traceback.print_exception(problem)
    print(f"error: {problem}", file=sys.stderr, flush=True)


def leave(code: int) -> NoReturn:
    """End a launched process after all its work is completed and its files are closed.

    A regular exit destroys gloo's threads in an order that occasionally aborts the process ("terminate called without
    an active exception", exit code 134), which would turn a finished run into a failed one.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def die_with(parent: int) -> None:
    """Let the kernel end this process when its parent ends for whatever reason. Linux only; no effect elsewhere."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        raise SystemExit("the parent process has ended")
