"""Behaviour that all commands share: help, output, one line per error, exit codes, stopping, and the parent process."""

import ctypes
import io
import logging
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from types import FrameType, TracebackType
from typing import NoReturn, TextIO

UNUSABLE = 2
"""Exit code of a configuration, directory or checkpoint that cannot be used."""
DIVERGED = 1
"""Exit code of a run that ended because its gradients were not finite."""
INTERRUPTED = 130
TRACEBACK_SWITCHES = ("LONGCTX_RL_TRACEBACK", "HYDRA_FULL_ERROR")
"""Environment variables that, if set to 1, also print the traceback of an error."""

MORE_MEMORY = "free memory, or use a machine with more"
"""Advice of a command without a setting that lowers what it takes."""
IMPORT_POLL_SECONDS = 0.1
_SET_PARENT_DEATH_SIGNAL = 1


def main(description: str, work: Callable[[list[str]], str], memory: str = MORE_MEMORY) -> NoReturn:
    """Entry point of a command: print ``description`` for --help or without arguments, else the result of ``work``."""
    arguments = sys.argv[1:]
    if not arguments or {"-h", "--help"} & set(arguments):
        run(lambda: show(description, 0 if arguments else UNUSABLE))
    command(lambda: work(arguments), memory)


def command(work: Callable[[], str], memory: str = MORE_MEMORY) -> NoReturn:
    """Run ``work``, print its result, and exit. An error is printed as one line, and finished work is kept."""
    run(lambda: show(work()), "interrupted: the same command continues where it stopped", memory)


def show(text: str, code: int = 0) -> int:
    """Print a command's result and return its exit code."""
    print(text, flush=True)
    return code


def run(work: Callable[[], int], interrupted: str = "interrupted", memory: str = MORE_MEMORY) -> NoReturn:
    """Exit with the code that ``work`` returns. An error or an interruption is printed as one line.

    Args:
        interrupted: what is printed after an interruption.
        memory: what to do when memory runs out.
    """
    start()
    try:
        sys.exit(work())
    except ValueError as error:
        complain(error)
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _is_unread(sys.stdout):
            _discard(sys.stdout)
            sys.exit(128 + signal.SIGPIPE)
        complain(
            f"{error.filename or 'a file'} cannot be read or written ({error.strerror or error}); finished work is kept"
        )
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        complain(f"{out_of_memory(error)}: {memory}; finished work is kept")
    except KeyboardInterrupt:
        write(sys.stderr, f"{interrupted}\n")
        leave(INTERRUPTED)  # without waiting for pending requests
    sys.exit(UNUSABLE)


def is_out_of_memory(error: Exception) -> bool:
    """Whether Python, or torch on a CPU or GPU, could not allocate memory."""
    by_torch = type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
    return by_torch or isinstance(error, MemoryError)


def out_of_memory(error: Exception) -> str:
    """Return the beginning of the message about an error for which ``is_out_of_memory``."""
    return f"out of memory ({' '.join(str(error).split()) or type(error).__name__})"


def start() -> None:
    """Prepare a process for its command: closed standard streams, characters they lack, and Ctrl-C during imports."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # the next file that is opened would get its number, and its output
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)


def interrupt(number: int, frame: FrameType | None) -> None:
    """Handle a signal by raising KeyboardInterrupt, once no import is under way: libraries swallow it there."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            later = threading.Timer(IMPORT_POLL_SECONDS, os.kill, (os.getpid(), number))
            later.daemon = True
            later.start()
            return
        frame = frame.f_back
    raise KeyboardInterrupt


def is_guard(command: Sequence[str]) -> bool:
    """Whether a process is a ``rollout/guard.py``, which ends by itself after its parent and cleans up."""
    return any(word.endswith("rollout/guard.py") for word in command)


def stop_signals() -> list[signal.Signals]:
    """Return the signals of a user, a scheduler or a closed terminal that stop a run; nohup ignores the last."""
    hangup = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGINT, signal.SIGTERM, *hangup]


def _say_interrupted(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if kind is KeyboardInterrupt:
        write(sys.stderr, "interrupted\n")
    else:
        sys.__excepthook__(kind, error, trace)


if str(getattr(getattr(sys.modules["__main__"], "__spec__", None), "name", None)).startswith("longctx_rl."):
    sys.excepthook = _say_interrupted  # commands import this module first, so this holds while they import the others


def write(stream: TextIO, text: str) -> None:
    """Write to a terminal or a pipe. Once it is gone, what is written is discarded, and the work goes on."""
    try:
        stream.write(text)
        stream.flush()
    except OSError:
        _discard(stream)


def _is_unread(stream: TextIO) -> bool:
    """Whether the reader of a pipe, such as head, is gone. Flushing does not tell: a failed write is not kept."""
    pipe = select.poll()
    pipe.register(stream, 0)
    return bool(pipe.poll(0))


def _discard(stream: TextIO) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def complain(problem: ValueError | str, main_rank: bool = True) -> None:
    """Print ``error: ...`` to stderr, after the traceback if LONGCTX_RL_TRACEBACK=1 or HYDRA_FULL_ERROR=1.

    A rank other than the main rank waits 15 seconds before it prints.
    """
    if not main_rank:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(15.0)  # Usually the main rank reports the same error meanwhile, and torchrun ends this process.
    if isinstance(problem, ValueError) and "1" in (os.environ.get(name) for name in TRACEBACK_SWITCHES):
        traceback.print_exception(problem)
    write(sys.stderr, f"error: {' '.join(str(problem).splitlines())}\n")


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
