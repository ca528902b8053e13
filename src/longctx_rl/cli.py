"""What every training process does around the loop: run directory, errors, exit codes."""

import ctypes
import errno
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import NoReturn

from longctx_rl.config.schema import Config
from longctx_rl.runs import directory

UNUSABLE = 2
"""Exit code of a configuration, directory or checkpoint that cannot be used."""
DIVERGED = 1
"""Exit code of a run that ended because its gradients were not finite."""
INTERRUPTED = 130
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)
"""Errors of a disk that a person can mend."""
HANDOVER = "LONGCTX_RL_HANDOVER"
"""Environment variable: the launcher's folder for its children, and the launcher's process id."""

_SET_PARENT_DEATH_SIGNAL = 1


def command(work: Callable[[], str]) -> NoReturn:
    """Run what a command line asks for, print what it says, and exit: each error in one line, nothing done is lost."""
    try:
        print(work())
        sys.exit(0)
    except ValueError as error:
        complain(error)
    except OSError as error:
        complain(f"{error.filename or 'a file'} cannot be written ({error.strerror}); what is done is kept")
    except KeyboardInterrupt:
        print("interrupted: the same command goes on where it stopped", file=sys.stderr)
        leave(INTERRUPTED)  # without waiting for requests that are under way
    sys.exit(UNUSABLE)


def execute(config: Config, run: Callable[[Config], None]) -> int:
    """Train in this process and return its exit code.

    The main rank owns the run directory. A ValueError is for the user: one line, exit code 2.
    """
    die_with_launcher()
    main_rank = os.environ.get("RANK", "0") == "0"
    try:
        with directory.opened(config) if main_rank else nullcontext():
            run(config)
    except ValueError as error:
        complain(error, main_rank)
        return UNUSABLE
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        complain(
            f"cannot write {error.filename or config.run_dir} ({os.strerror(error.errno)}): free space or fix the "
            f"permissions, then continue with {directory.resume_command(config)}",
            main_rank,
        )
        return UNUSABLE
    except RuntimeError as error:
        from longctx_rl.engine.optimizer import TrainingDiverged  # torch: loaded by now

        if not isinstance(error, TrainingDiverged):
            raise
        complain(str(error), main_rank)
        return DIVERGED
    except KeyboardInterrupt:
        return INTERRUPTED
    except SystemExit as stop:
        if stop.code != INTERRUPTED or HANDOVER not in os.environ:
            raise
        # A rank that ends with an error makes torchrun end the others, which may still be closing their files.
        Path(os.environ[HANDOVER].partition(":")[2], "interrupted").touch()
    return 0


def leave(code: int) -> NoReturn:
    """End a launched process whose work is done and closed.

    The regular end destroys gloo's threads in an order that now and then aborts the process ("terminate called without
    an active exception", exit code 134), which would make a finished run a failed one.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def complain(problem: ValueError | str, main_rank: bool = True) -> None:
    """``error: ...`` on stderr; the traceback too if LONGCTX_RL_TRACEBACK=1 or HYDRA_FULL_ERROR=1."""
    if not main_rank:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(15.0)  # Usually the main rank says the same, and torchrun ends this one meanwhile.
    if isinstance(problem, ValueError) and "1" in (os.environ.get(name) for name in TRACEBACK_SWITCHES):
        traceback.print_exception(problem)
    print(f"error: {problem}", file=sys.stderr, flush=True)


TRACEBACK_SWITCHES = ("LONGCTX_RL_TRACEBACK", "HYDRA_FULL_ERROR")


def die_with(parent: int) -> None:
    """End this process when its parent ends, however that happens: on Linux the kernel sees to it."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        raise SystemExit("the parent has ended")


def die_with_launcher() -> None:
    """A child must not train on when its launcher was killed."""
    if HANDOVER in os.environ:
        die_with(int(os.environ[HANDOVER].partition(":")[0]))
