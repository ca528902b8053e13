"""The untrusted side: a warm interpreter that grades each candidate in processes of its own. Standard library only.

This file's source is handed to an isolated interpreter with -c; of it the trusted side uses constants alone. Three
kinds of process: the *zygote*, which never sees a candidate's data; for each request a *handler*, forked from it, which
reads the request, collects what comes and answers; and the *candidate*, forked from the handler. So what a candidate
finds in its own memory is its own request, and nothing of it is left for the next.

Requests come as frames on fd 0, replies go as frames on fd 1: a 4-byte big-endian length and that many bytes. A reply
begins with one byte of status and carries, if that is OK, the JSON that the candidate's process wrote.
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
"""Status: values were returned; took too long; returned too much; ended without returning."""
NOBODY = 65534
SET_DEATH_SIGNAL, SET_DUMPABLE, SET_CHILD_SUBREAPER = 1, 4, 36
WARM = """
bisect collections copy dataclasses datetime functools heapq itertools math operator random re statistics string typing
"""
"""Modules that candidates often import, loaded once."""
MAX_PROCESSES = 64
"""Of the user that candidates run as, on the whole machine where that user has no namespace of its own."""
MAX_DEPTH = 64
"""Of nested containers."""
MAX_BITS = 10_000
"""Of an integer: longer ones cannot be written as JSON."""
BASES = (dict, list, tuple, set, frozenset, str, float, int)


def main() -> None:
    requests, replies = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    for name in WARM.split():
        __import__(name)
    libc = ctypes.CDLL(None)
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    libc.prctl(SET_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)  # changing users clears it
    libc.prctl(SET_DUMPABLE, 0, 0, 0, 0)
    libc.prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    alone = sys.argv[1] == "alone"
    gc.freeze()
    send(replies, b"ready")
    poll = select.poll()
    poll.register(requests, select.POLLIN)
    while True:
        if not poll.poll()[0][1] & select.POLLIN:  # closed
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
        if status:  # somebody ended it, perhaps in the middle of a reply
            return


def handle(requests: int, replies: int) -> int:
    """Read one request, run its candidate, send the reply. 0 if that went well."""
    frame = receive(requests)
    if frame is None:
        return 1
    request = json.loads(frame)
    noted, note = os.pipe()
    for end in (noted, note):
        os.set_blocking(end, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(note)
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            candidate(request, writing)
        finally:
            os._exit(1)
    os.close(writing)
    send(replies, collect(pid, reading, noted, request["wall_seconds"], request["output_bytes"]))
    return 0


def receive(fd: int) -> bytes | None:
    """One frame, or None at the end."""
    head = read_exactly(fd, 4)
    return None if head is None else read_exactly(fd, struct.unpack(">I", head)[0])


def read_exactly(fd: int, count: int) -> bytes | None:
    parts = []
    while count:
        part = os.read(fd, min(count, 1 << 20))
        if not part:
            return None
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def send(fd: int, payload: bytes) -> None:
    write_all(fd, struct.pack(">I", len(payload)) + payload)


def write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def collect(pid: int, reading: int, noted: int, seconds: float, most: int) -> bytes:
    """Status and output. Ends with the candidate's first process, whatever it leaves behind."""
    deadline = time.monotonic() + seconds
    parts: list[bytes] = []
    size, ended, closed, status = 0, False, False, 0
    os.set_blocking(reading, False)
    while not (ended and closed):
        left = deadline - time.monotonic()
        if left <= 0:
            return TIMEOUT
        if not ended:
            select.select([noted] if closed else [reading, noted], [], [], left)
            found, status = os.waitpid(pid, os.WNOHANG)
            ended = found != 0
            with contextlib.suppress(BlockingIOError):
                os.read(noted, 64)
        try:
            part = b"" if closed else os.read(reading, 1 << 16)
            closed = closed or not part
        except BlockingIOError:
            part, closed = b"", ended  # others may hold the pipe open; what the first process wrote is read
        parts.append(part)
        size += len(part)
        if size > most:
            return OUTPUT
    if size:
        return OK + b"".join(parts)
    return TIMEOUT if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU else DIED


def clear(alone: bool) -> None:
    """End what the candidate left behind."""
    if alone:  # first of a process namespace: everything but this process
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while True:
                os.waitpid(-1, 0)
        return
    while found := descendants(os.getpid()):
        for each in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(each, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def descendants(root: int) -> set[int]:
    """Living processes below ``root``, which adopts those whose parents ended."""
    parents = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open("/proc/" + name + "/stat") as file:
                    text = file.read()
            except OSError:
                continue
            parents[int(name)] = int(text.rpartition(")")[2].split()[1])
    found = set()
    for one in parents:
        above = one
        while above in parents and above != root:
            above = parents[above]
        if above == root and one != root:
            found.add(one)
    return found


def candidate(request: dict[str, Any], writing: int) -> None:
    """In the forked process: no way back but ``writing``, then the code."""
    os.setsid()
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGXCPU):
        signal.signal(number, signal.SIG_DFL)
    os.dup2(writing, 3)
    os.closerange(4, 1024)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")
    limits = {resource.RLIMIT_CPU: request["cpu_seconds"], resource.RLIMIT_AS: request["memory_bytes"]}
    limits |= {resource.RLIMIT_NPROC: MAX_PROCESSES, resource.RLIMIT_NOFILE: 32}
    limits |= {resource.RLIMIT_FSIZE: 0, resource.RLIMIT_CORE: 0}
    for name, limit in limits.items():
        hard = resource.getrlimit(name)[1]
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard - (name == resource.RLIMIT_CPU))
        # The processor's soft limit sends a signal that says what it is; a second later the hard one ends the process.
        resource.setrlimit(name, (limit, limit + (name == resource.RLIMIT_CPU)))
    try:
        found = execute(request["code"], request["modules"], request["entry"], request["inputs"])
    except BaseException as error:
        found = {"error": named(error)}
    write_all(3, json.dumps(found).encode())
    os._exit(0)


class CandidateModules(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Modules from their sources, compiled when they are imported."""

    def __init__(self, sources: dict[str, str]) -> None:
        self.sources = sources

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return importlib.util.spec_from_loader(name, self) if name in self.sources else None

    def get_source(self, name: str) -> str:
        return self.sources[name]


def execute(code: str, modules: dict[str, str], entry: str, inputs: list[list[Any]]) -> dict[str, Any]:
    """What ``entry`` returns for each input, or why it does not."""
    sys.meta_path.insert(0, CandidateModules(modules))
    sys.modules["candidate"] = module = types.ModuleType("candidate")
    exec(compile(code, "candidate.py", "exec"), module.__dict__)
    function = module.__dict__[entry]
    outputs = []
    for arguments in inputs:
        try:
            outputs.append({"value": plain(function(*[restored(one) for one in arguments]), 0)})
        except BaseException as error:
            outputs.append({"error": named(error)})
    return {"outputs": outputs}


def named(error: BaseException) -> str:
    return str(type(error).__name__)[:80]


def plain(value: Any, depth: int) -> Any:
    """A value as JSON: containers tagged, subclasses of built-in types as what they hold. Any other type is refused."""
    if depth > MAX_DEPTH:
        raise ValueError("nested too deeply")
    if value is None or value is True or value is False:
        return value
    kind = type(value)
    base = kind if kind in BASES else next((one for one in BASES if issubclass(kind, one)), None)
    if base is int:
        value = int.__index__(value)
        if value.bit_length() > MAX_BITS:
            raise ValueError("too long a number")
        return value
    if base is float:
        return float.__add__(value, 0.0)
    if base is str:
        return str.__str__(value)
    if base is dict:
        return {"dict": [[plain(a, depth + 1), plain(b, depth + 1)] for a, b in dict.items(value)]}
    if base is list:
        return [plain(one, depth + 1) for one in list.__iter__(value)]
    if base in (tuple, set, frozenset):
        name = "tuple" if base is tuple else "set"
        return {name: [plain(one, depth + 1) for one in base.__iter__(value)]}
    raise TypeError("not plain data")


def restored(value: Any) -> Any:
    """The reverse of ``plain``."""
    if type(value) is list:
        return [restored(one) for one in value]
    if type(value) is dict:
        ((name, items),) = value.items()
        if name == "dict":
            return {restored(key): restored(one) for key, one in items}
        return (tuple if name == "tuple" else set)(restored(one) for one in items)
    return value


if __name__ == "__main__":
    main()
