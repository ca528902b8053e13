"""The untrusted side: a warm interpreter that runs each candidate in its own processes. Standard library only.

An isolated interpreter receives the source of this file through ``-c``, so the file must stay self-contained; the
trusted side imports constants and ``descendants`` from it. There are three kinds of process: the *zygote*, which never
sees a candidate's data; the *handler*, forked from the zygote for each request, which reads the request, collects the
candidate's output and sends the reply; and the *candidate*, forked from the handler. A candidate's memory therefore
holds no request but its own, and nothing of it remains for the next candidate.

Requests arrive as frames on fd 0 and replies leave as frames on fd 1: a 4-byte big-endian length and that many bytes. A
reply starts with a status byte, followed, if the status is OK, by the JSON that the candidate's process wrote.
"""

import contextlib
import ctypes
import gc
import importlib.abc
import importlib.util
import json
import os
import resource
import select
import signal
import struct
import sys
import time
import types
from importlib.machinery import ModuleSpec
from typing import Any

OK, TIMEOUT, OUTPUT, DIED = b"O", b"T", b"L", b"D"
"""Status bytes: values were returned; time limit reached; too much was returned; ended without returning."""
NOBODY = 65534
"""User and group id of ``nobody``."""
SET_DEATH_SIGNAL, SET_DUMPABLE, SET_CHILD_SUBREAPER = 1, 4, 36
"""Options of prctl(2)."""
WARM = """
bisect collections copy dataclasses datetime functools heapq itertools math operator random re statistics string typing
"""
"""Modules that candidates often import, loaded once in the zygote."""
MAX_PROCESSES = 64
"""Process limit of the user that candidates run as: machine-wide if that user has no namespace of its own."""
MAX_FILES = 32
"""Limit on open files of a candidate."""
MAX_DEPTH = 64
"""Nesting limit of containers."""
MAX_BITS = 10_000
"""Size limit of an integer: longer ones cannot be written as JSON."""
BASES = (dict, list, tuple, set, frozenset, str, float, int)


def main() -> None:
    """Run the zygote: fork a handler for each request, and kill what its candidate left behind.

    The one argument is ``alone`` if this is process 1 of a process namespace, else ``shared``.
    """
    requests, replies = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    for name in WARM.split():
        __import__(name)
    drop_rights()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    alone = sys.argv[1] == "alone"
    gc.freeze()
    send(replies, b"ready")
    poll = select.poll()
    poll.register(requests, select.POLLIN)
    while True:
        if not poll.poll()[0][1] & select.POLLIN:  # the trusted side closed the pipe
            return
        handler = os.fork()
        if handler == 0:
            done = 1
            try:
                done = handle(requests, replies)
            finally:
                os._exit(done)
        _, status = os.waitpid(handler, 0)
        clear(alone)
        if status:  # the handler was killed, perhaps in the middle of a reply
            return


def drop_rights() -> None:
    """Become ``nobody`` if this is root, end with the parent process, and adopt the orphans of candidates."""
    libc = ctypes.CDLL(None)
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    libc.prctl(SET_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)  # after the change of user, which clears it
    libc.prctl(SET_DUMPABLE, 0, 0, 0, 0)
    libc.prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def handle(requests: int, replies: int) -> int:
    """Read one request, run its candidate and send the reply. Return 0, or 1 if no request arrived."""
    frame = receive(requests)
    if frame is None:
        return 1
    request = json.loads(frame)
    woken, waking = os.pipe()
    for end in (woken, waking):
        os.set_blocking(end, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waking)
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            candidate(request, writing)
        finally:
            os._exit(1)
    os.close(writing)
    send(replies, collect(pid, reading, woken, request["wall_seconds"], request["output_bytes"]))
    return 0


def receive(fd: int) -> bytes | None:
    """Return one frame, or None at the end of the stream."""
    head = read_exactly(fd, 4)
    return None if head is None else read_exactly(fd, struct.unpack(">I", head)[0])


def read_exactly(fd: int, count: int) -> bytes | None:
    """Return ``count`` bytes, or None if the stream ends first."""
    parts = []
    while count:
        part = os.read(fd, min(count, 1 << 20))
        if not part:
            return None
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def send(fd: int, payload: bytes) -> None:
    """Write one frame."""
    write_all(fd, struct.pack(">I", len(payload)) + payload)


def write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def collect(pid: int, reading: int, woken: int, seconds: float, most: int) -> bytes:
    """Return the status byte and the candidate's output.

    Collection ends when the candidate's first process ends, whatever processes it leaves behind.

    Args:
        reading: pipe that the candidate writes to.
        woken: pipe that gets a byte when a child process ends.
        seconds: wall-clock limit.
        most: limit on the output in bytes.
    """
    deadline = time.monotonic() + seconds
    parts: list[bytes] = []
    size, ended, closed, status = 0, False, False, 0
    os.set_blocking(reading, False)
    while not (ended and closed):
        left = deadline - time.monotonic()
        if left <= 0:
            return TIMEOUT
        if not ended:
            select.select([woken] if closed else [reading, woken], [], [], left)
            ended_pid, status = os.waitpid(pid, os.WNOHANG)
            ended = ended_pid != 0
            with contextlib.suppress(BlockingIOError):
                os.read(woken, 64)
        try:
            part = b"" if closed else os.read(reading, 1 << 16)
            closed = closed or not part
        except BlockingIOError:
            part, closed = b"", ended  # other processes may hold the pipe open; the output of the first is complete
        parts.append(part)
        size += len(part)
        if size > most:
            return OUTPUT
    if size:
        return OK + b"".join(parts)
    return TIMEOUT if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU else DIED


def clear(alone: bool) -> None:
    """Kill the processes that the candidate left behind."""
    if alone:  # as process 1 of a namespace: every other process
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while True:
                os.waitpid(-1, 0)
        return
    while leftovers := descendants(os.getpid()):
        for pid in leftovers:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def descendants(root: int) -> set[int]:
    """Return the live processes below ``root``, which adopts the orphans among them."""
    parents = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open("/proc/" + name + "/stat") as file:
                    text = file.read()
            except OSError:
                continue
            parents[int(name)] = int(text.rpartition(")")[2].split()[1])
    pids = set()
    for pid in parents:
        above = pid
        while above in parents and above != root:
            above = parents[above]
        if above == root and pid != root:
            pids.add(pid)
    return pids


def candidate(request: dict[str, Any], writing: int) -> None:
    """Run the candidate in the forked process, whose only way out is ``writing``, and write its results there."""
    os.setsid()
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGXCPU):
        signal.signal(number, signal.SIG_DFL)
    os.dup2(writing, 3)
    os.closerange(4, 1024)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")
    limit_resources(request["cpu_seconds"], request["memory_bytes"])
    try:
        result = execute(request["code"], request["modules"], request["entry"], request["inputs"])
    except BaseException as error:
        result = {"error": named(error)}
    write_all(3, json.dumps(result).encode())
    os._exit(0)


def limit_resources(cpu_seconds: int, memory_bytes: int) -> None:
    """Set the resource limits of this process, within the hard limits that it already has."""
    limits = {
        resource.RLIMIT_CPU: cpu_seconds,
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_NPROC: MAX_PROCESSES,
        resource.RLIMIT_NOFILE: MAX_FILES,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
    }
    for name, limit in limits.items():
        # The soft CPU limit sends SIGXCPU, which names the cause; one second later the hard limit kills the process.
        extra = 1 if name == resource.RLIMIT_CPU else 0
        hard = resource.getrlimit(name)[1]
        if hard != resource.RLIM_INFINITY:
            limit = min(limit, hard - extra)
        resource.setrlimit(name, (limit, limit + extra))


class CandidateModules(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Imports modules from their sources, which are compiled at import."""

    def __init__(self, sources: dict[str, str]) -> None:
        self.sources = sources

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return importlib.util.spec_from_loader(name, self) if name in self.sources else None

    def get_source(self, name: str) -> str:
        return self.sources[name]


def execute(code: str, modules: dict[str, str], entry: str, inputs: list[list[Any]]) -> dict[str, Any]:
    """Return what ``entry`` returns for each input, or the name of the exception it raises."""
    sys.meta_path.insert(0, CandidateModules(modules))
    sys.modules["candidate"] = module = types.ModuleType("candidate")
    exec(compile(code, "candidate.py", "exec"), module.__dict__)
    function = module.__dict__[entry]
    outputs = []
    for arguments in inputs:
        try:
            outputs.append({"value": plain(function(*[restored(argument) for argument in arguments]), 0)})
        except BaseException as error:
            outputs.append({"error": named(error)})
    return {"outputs": outputs}


def named(error: BaseException) -> str:
    """Return the name of an exception's type."""
    return str(type(error).__name__)[:80]


def plain(value: Any, depth: int) -> Any:
    """Return a value as JSON data: containers are tagged, and subclasses of built-in types become those types.

    Raises:
        TypeError: any other type.
        ValueError: the value is nested too deeply, or an integer is too long.
    """
    if depth > MAX_DEPTH:
        raise ValueError("nested too deeply")
    if value is None or value is True or value is False:
        return value
    kind = type(value)
    base = kind if kind in BASES else next((builtin for builtin in BASES if issubclass(kind, builtin)), None)
    if base is int:
        value = int.__index__(value)
        if value.bit_length() > MAX_BITS:
            raise ValueError("too long an integer")
        return value
    if base is float:
        return float.__add__(value, 0.0)
    if base is str:
        return str.__str__(value)
    if base is dict:
        return {"dict": [[plain(a, depth + 1), plain(b, depth + 1)] for a, b in dict.items(value)]}
    if base is list:
        return [plain(item, depth + 1) for item in list.__iter__(value)]
    if base in (tuple, set, frozenset):
        name = "tuple" if base is tuple else "set"
        return {name: [plain(item, depth + 1) for item in base.__iter__(value)]}
    raise TypeError("not plain data")


def restored(value: Any) -> Any:
    """Invert ``plain``."""
    if type(value) is list:
        return [restored(item) for item in value]
    if type(value) is dict:
        ((name, items),) = value.items()
        if name == "dict":
            return {restored(key): restored(item) for key, item in items}
        return (tuple if name == "tuple" else set)(restored(item) for item in items)
    return value


if __name__ == "__main__":
    main()
