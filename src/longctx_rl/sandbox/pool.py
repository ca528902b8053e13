"""A pool of warm workers that run candidates and return their results. The trusted side."""

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
from longctx_rl.sandbox.isolation import Backend

Status = Literal["returned", "raised", "timeout", "too much output", "died", "not plain"]
"""How a candidate ended. ``raised``: the code failed before its function could be called. ``not plain``: the reply is
not a list of results."""
CPU_SECONDS = 2
"""CPU limit of a candidate, over all its calls."""
WALL_FACTOR = 3
"""Wall-clock limit as a multiple of the CPU limit, so that a busy machine does not change a grade."""
MEMORY, OUTPUT = 512 * 2**20, 2**20
"""Limits in bytes: a candidate's address space, and the data it returns."""
GRACE = 5.0
"""Seconds past a candidate's wall-clock limit after which its worker is replaced."""
MAX_WORKERS = 16
STATUS: dict[bytes, Status] = {worker.TIMEOUT: "timeout", worker.OUTPUT: "too much output", worker.DIED: "died"}


class SandboxFailed(Exception):
    """No worker can be started."""


@dataclass(frozen=True, slots=True)
class Call:
    """A candidate and the inputs of its calls."""

    code: str
    entry: str
    """Name of the function."""
    inputs: Sequence[Sequence[Any]]
    """[n] The arguments of each call, as plain data."""
    modules: Mapping[str, str] = field(default_factory=dict)
    """Modules that the code can import: name to source."""
    cpu_seconds: int = CPU_SECONDS


@dataclass(frozen=True, slots=True)
class Returned:
    """The result of one call."""

    value: Any = None
    error: str = ""
    """Name of the exception; empty if the call returned a value."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a candidate."""

    status: Status
    results: tuple[Returned, ...] = ()
    """[n] The result of each input if the status is ``returned``, else empty."""
    error: str = ""


class Sandbox:
    """Runs candidates concurrently, each in its own processes.

    Args:
        backend: how workers are isolated; ``probe.choose`` says which backend works on this machine.
        workers: number of workers; None: one per CPU, at most 16, divided among ``ranks``.
        ranks: processes on this machine that each have a pool.

    Raises:
        ValueError: a worker cannot be started.
    """

    def __init__(self, backend: Backend, *, workers: int | None = None, ranks: int = 1) -> None:
        self.backend = backend
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
        """Run candidates and return their outcomes, in order.

        A candidate whose worker is lost runs once more on a new worker: another process may have ended the first.

        Raises:
            SandboxFailed: workers can no longer be started.
        """
        return list(self._threads.map(self._outcome, calls))

    def _outcome(self, call: Call) -> Outcome:
        frame = request(call)
        chosen_worker = self._idle.get()
        try:
            for _ in range(2):
                reply = chosen_worker.ask(frame, WALL_FACTOR * call.cpu_seconds + GRACE)
                if reply is not None:
                    return read(reply, len(call.inputs))
            return Outcome("died", error="its worker was lost twice")
        finally:
            self._idle.put(chosen_worker)

    def close(self) -> None:
        """Stop the workers, after the candidates that are running."""
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
    """Return the payload of a request to a worker, as JSON."""
    parts = {
        "code": call.code,
        "entry": call.entry,
        "inputs": [[values.encode(argument) for argument in arguments] for arguments in call.inputs],
        "modules": dict(call.modules),
        "cpu_seconds": call.cpu_seconds,
        "wall_seconds": WALL_FACTOR * call.cpu_seconds,
        "memory_bytes": MEMORY,
        "output_bytes": OUTPUT,
    }
    return json.dumps(parts).encode()


def read(reply: bytes, expected: int) -> Outcome:
    """Parse a worker's reply, which the candidate may have forged.

    Args:
        expected: number of results that a valid reply has.
    """
    status, text = reply[:1], reply[1:]
    if status in STATUS:
        return Outcome(STATUS[status])
    try:
        data = values.parse(text)
        if not isinstance(data, dict):
            raise values.NotPlain("not an object")
        if isinstance(error := data.get("error"), str):
            return Outcome("raised", error=error[:80])
        outputs = data.get("outputs")
        if not isinstance(outputs, list) or len(outputs) != expected:
            raise values.NotPlain("not one result per input")
        return Outcome("returned", tuple(_returned(output) for output in outputs))
    except values.NotPlain as error:
        return Outcome("not plain", error=str(error))


def _returned(data: Any) -> Returned:
    if not isinstance(data, dict):
        raise values.NotPlain("not an object")
    if "value" in data:
        return Returned(values.decode(data["value"]))
    if isinstance(error := data.get("error"), str) and error:
        return Returned(error=error[:80])
    raise values.NotPlain("neither value nor error")


class Worker:
    """A worker process, restarted when it is lost. Raises SandboxFailed if it cannot be started."""

    def __init__(self, backend: Backend) -> None:
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
        raise SandboxFailed(f"a worker for generated code cannot be started: {lines[-1] if lines else 'no output'}")

    def ask(self, frame: bytes, seconds: float) -> bytes | None:
        """Send a request and return the reply, or None if the worker was lost and has been replaced."""
        if self.process.returncode is not None:  # an earlier restart failed
            self._start()
        assert self.process.stdin is not None and self.process.stdout is not None
        deadline = time.monotonic() + seconds
        reply = None
        if not _ready(self.process.stdout.fileno(), select.POLLIN, 0.0):  # no reply is due: bytes here are forged
            with contextlib.suppress(OSError):
                _write(self.process.stdin.fileno(), struct.pack(">I", len(frame)) + frame, deadline)
                reply = self._receive(seconds, OUTPUT + (1 << 17))
        if not reply:
            self.stop()
            self._start()
            return None
        return reply

    def _receive(self, seconds: float, most: int) -> bytes | None:
        """Return a frame; None if it is late, exceeds ``most`` bytes, or the worker has ended."""
        assert self.process.stdout is not None
        fd, deadline = self.process.stdout.fileno(), time.monotonic() + seconds
        head = _read(fd, 4, deadline)
        if head is None:
            return None
        (length,) = struct.unpack(">I", head)
        return _read(fd, length, deadline) if length <= most else None

    def stop(self) -> None:
        """Kill the worker and every process that its candidate started."""
        process = self.process
        if process.poll() is None:
            if self.backend == "rlimit":
                process.send_signal(signal.SIGSTOP)  # so that it adopts no new process in the meantime
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
    """Write all of ``data``. Raises OSError if the worker has ended or does not read."""
    view = memoryview(data)
    while view:
        if not _ready(fd, select.POLLOUT, deadline):
            raise TimeoutError("the worker does not read")
        view = view[os.write(fd, view[: select.PIPE_BUF]) :]


def _ready(fd: int, event: int, deadline: float) -> bool:
    # Not select, which fails for file descriptors above 1023: a training process can have more open.
    poll = select.poll()
    poll.register(fd, event)
    return bool(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))
