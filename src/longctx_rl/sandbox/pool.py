"""Warm workers, and what candidates returned in them. The trusted side."""

import contextlib
import json
import os
import queue
import select
import signal
import struct
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal

from longctx_rl.sandbox import isolation, values, worker

Status = Literal["returned", "raised", "timeout", "too much output", "died", "not plain"]
"""``raised``: before anything could be called. ``not plain``: what came back is no list of results."""
CPU_SECONDS = 2
"""Of a candidate, all its calls together."""
WALL_FACTOR = 3
"""Wall-clock limit over the CPU's: a busy machine must not decide what is right."""
MEMORY, OUTPUT = 512 * 2**20, 2**20
"""Bytes of a candidate's address space, and of what it returns."""
GRACE = 5.0
"""Seconds beyond a candidate's own after which its worker is given up."""
MAX_WORKERS = 16
STATUS: dict[bytes, Status] = {worker.TIMEOUT: "timeout", worker.OUTPUT: "too much output", worker.DIED: "died"}


class SandboxFailed(Exception):
    """No worker can be had."""


@dataclass(frozen=True, slots=True)
class Call:
    """A candidate, and the inputs it is called with."""

    code: str
    entry: str
    """Name of the function."""
    inputs: Sequence[Sequence[Any]]
    """[n] the arguments of each call: plain data."""
    modules: Mapping[str, str] = field(default_factory=dict)
    """Modules that the code can import: name to source."""
    cpu_seconds: int = CPU_SECONDS


@dataclass(frozen=True, slots=True)
class Returned:
    """What one call came to."""

    value: Any = None
    error: str = ""
    """Name of the exception; empty if a value was returned."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a candidate came to; ``results`` [n] if its status is ``returned``, else none."""

    status: Status
    results: tuple[Returned, ...] = ()
    error: str = ""


class Sandbox:
    """Runs candidates, each in processes of its own, several at a time.

    Args:
        backend: ``auto``, ``bwrap`` or ``rlimit``. See isolation.py.
        workers: processes; None: one for each processor, 16 at most, shared by ``ranks`` that have a pool each.

    Raises:
        ValueError: the backend does not work here.
    """

    def __init__(self, backend: str = "auto", *, workers: int | None = None, ranks: int = 1) -> None:
        self.backend = isolation.choose(backend)
        count = workers or max(1, min(len(os.sched_getaffinity(0)), MAX_WORKERS) // ranks)
        self._idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        self._threads = ThreadPoolExecutor(count)
        try:
            for _ in range(count):
                self._idle.put(Worker(self.backend))
        except SandboxFailed as error:
            self.close()
            raise ValueError(str(error)) from error

    def run(self, calls: Sequence[Call]) -> list[Outcome]:
        """The outcome of each candidate, in order.

        A candidate whose worker is lost is run once more on a new one: something else may have ended it.

        Raises:
            SandboxFailed: workers cannot be started any more.
        """
        return list(self._threads.map(self._outcome, calls))

    def _outcome(self, call: Call) -> Outcome:
        frame = request(call)
        one = self._idle.get()
        try:
            for _ in range(2):
                reply = one.ask(frame, WALL_FACTOR * call.cpu_seconds + GRACE)
                if reply is not None:
                    return read(reply, len(call.inputs))
            return Outcome("died", error="its worker was lost, twice")
        finally:
            self._idle.put(one)

    def close(self) -> None:
        """End the workers. Waits for candidates that are being run."""
        self._threads.shutdown()
        while not self._idle.empty():
            self._idle.get().stop()

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def request(call: Call) -> bytes:
    """What a worker is sent."""
    parts = {
        "code": call.code,
        "entry": call.entry,
        "inputs": [[values.encode(one) for one in arguments] for arguments in call.inputs],
        "modules": dict(call.modules),
        "cpu_seconds": call.cpu_seconds,
        "wall_seconds": WALL_FACTOR * call.cpu_seconds,
        "memory_bytes": MEMORY,
        "output_bytes": OUTPUT,
    }
    return json.dumps(parts).encode()


def read(reply: bytes, expected: int) -> Outcome:
    """A worker's reply, which may be of the candidate's making."""
    status, text = reply[:1], reply[1:]
    if status in STATUS:
        return Outcome(STATUS[status])
    try:
        data = values.parse(text)
        if not isinstance(data, dict):
            raise values.NotPlain("no object")
        if isinstance(error := data.get("error"), str):
            return Outcome("raised", error=error[:80])
        outputs = data.get("outputs")
        if not isinstance(outputs, list) or len(outputs) != expected:
            raise values.NotPlain("not a result for each input")
        return Outcome("returned", tuple(_returned(one) for one in outputs))
    except values.NotPlain as error:
        return Outcome("not plain", error=str(error))


def _returned(data: Any) -> Returned:
    if not isinstance(data, dict):
        raise values.NotPlain("no object")
    if "value" in data:
        return Returned(values.decode(data["value"]))
    if isinstance(error := data.get("error"), str) and error:
        return Returned(error=error[:80])
    raise values.NotPlain("neither value nor error")


class Worker:
    """A worker's process, started again when it is lost. Raises SandboxFailed if it cannot be started."""

    def __init__(self, backend: isolation.Backend) -> None:
        self.backend = backend
        self._start()

    def _start(self) -> None:
        with tempfile.TemporaryFile() as said:
            try:
                self.process = subprocess.Popen(
                    isolation.command(self.backend),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=said,
                    env=isolation.ENVIRONMENT,
                    cwd="/",
                    start_new_session=True,
                    bufsize=0,
                )
            except (OSError, subprocess.SubprocessError) as error:
                raise SandboxFailed(f"a worker for generated code cannot be started: {error}") from error
            if self._receive(30.0, 16) == b"ready":
                return
            self.stop()
            said.seek(0)
            lines = said.read().decode(errors="replace").strip().splitlines()
        raise SandboxFailed(f"a worker for generated code cannot be started: {lines[-1] if lines else 'no sign of it'}")

    def ask(self, frame: bytes, seconds: float) -> bytes | None:
        """The reply, or None if the worker was lost; then there is a new one."""
        if self.process.returncode is not None:  # it could not be started again
            self._start()
        assert self.process.stdin is not None and self.process.stdout is not None
        deadline = time.monotonic() + seconds
        reply = None
        if not _ready(self.process.stdout.fileno(), select.POLLIN, 0.0):  # nothing is owed: what is there is forged
            with contextlib.suppress(OSError):
                _write(self.process.stdin.fileno(), struct.pack(">I", len(frame)) + frame, deadline)
                reply = self._receive(seconds, OUTPUT + (1 << 17))
        if not reply:
            self.stop()
            self._start()
            return None
        return reply

    def _receive(self, seconds: float, most: int) -> bytes | None:
        """A frame; None if it does not come in time, is too long, or the worker has ended."""
        assert self.process.stdout is not None
        fd, deadline = self.process.stdout.fileno(), time.monotonic() + seconds
        head = _read(fd, 4, deadline)
        if head is None:
            return None
        (length,) = struct.unpack(">I", head)
        return _read(fd, length, deadline) if length <= most else None

    def stop(self) -> None:
        """End the worker, and what its candidate started."""
        process = self.process
        if process.poll() is None:
            if self.backend == "rlimit":
                process.send_signal(signal.SIGSTOP)  # so that nothing new is adopted meanwhile
            below = worker.descendants(process.pid) if self.backend == "rlimit" else set()
            for pid in (process.pid, *below):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()


def _read(fd: int, count: int, deadline: float) -> bytes | None:
    parts: list[bytes] = []
    while count:
        if not _ready(fd, select.POLLIN, deadline):
            return None
        part = os.read(fd, min(count, 1 << 20))
        if not part:
            return None
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def _write(fd: int, data: bytes, deadline: float) -> None:
    """Raises OSError if the worker has ended or does not read."""
    view = memoryview(data)
    while view:
        if not _ready(fd, select.POLLOUT, deadline):
            raise TimeoutError("the worker does not read")
        view = view[os.write(fd, view[: select.PIPE_BUF]) :]


def _ready(fd: int, event: int, deadline: float) -> bool:
    poll = select.poll()  # a trainer can have more files open than select takes
    poll.register(fd, event)
    return bool(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))
