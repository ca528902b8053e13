"""Files that survive a crash: replaced in one move, read as JSON Lines, locked while a process lives.

This module needs only the standard library, so every room of the package can import it.
"""

import fcntl
import json
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
"""What some editors write before the first line of a UTF-8 file."""
SHOWN = 60
"""Characters of a broken line that a message shows."""
LOCK_POLL_SECONDS = 0.1


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; the file written there replaces ``path`` when the block ends.

    Readers see the old file or the new one, also after a power failure. If the block raises, the old file stays and the
    temporary one is removed.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file in one move. See ``replacing``."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a JSON Lines file, parsed or broken. Callers decide whether to raise, skip or count."""

    number: int
    """From 1."""
    raw: bytes
    """The line without its newline and without a byte order mark."""
    value: Any
    """The parsed value; None if there is a ``problem``."""
    problem: str
    """Why the line has no value: it ``is ...``, such as ``not JSON``. Empty if it has one."""
    cut: bool
    """The file ends in this line without a newline. In a file that is appended to, a crash cut the line short."""

    @property
    def blank(self) -> bool:
        return not self.raw.strip()

    @property
    def start(self) -> str:
        """The first characters, for messages."""
        return self.raw.decode("utf-8", errors="replace")[:SHOWN]

    def checked(self) -> Any:
        """Return the value. Raises ValueError with the line's number for a broken line; the caller adds the file."""
        if self.problem:
            raise ValueError(f"line {self.number} is {self.problem}: {self.start!r}")
        return self.value


def parse_lines(lines: Iterable[bytes]) -> Iterator[Line]:
    """Parse the lines of a binary stream as JSON, one at a time. Never raises for the content of a line.

    Only a newline character separates lines: U+2028 and others that ``str.splitlines`` knows may stand in JSON text.

    Args:
        lines: each with its newline, as a binary file yields them.
    """
    for number, line in enumerate(lines, 1):
        raw = (line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line).removesuffix(b"\n")
        value, problem = _parsed(raw)
        yield Line(number, raw, value, problem, cut=not line.endswith(b"\n"))


def json_lines(path: Path) -> Iterator[Line]:
    """Read a JSON Lines file line by line. See ``parse_lines``. Raises OSError if the file cannot be read."""
    with path.open("rb") as lines:
        yield from parse_lines(lines)


def json_values(path: Path) -> Iterator[Any]:
    """Yield the values of a file that a run appends to; a last line that a crash cut short is dropped.

    Raises:
        ValueError: another line is broken; names the file and the line.
    """
    for line in json_lines(path):
        if line.cut:
            return
        if line.problem:
            raise ValueError(f"{path}, line {line.number} is {line.problem}: {line.start!r}; restore the file")
        yield line.value


def _parsed(raw: bytes) -> tuple[Any, str]:
    """The value and an empty string, or None and the problem."""
    try:
        return json.loads(raw.decode("utf-8")), ""
    except UnicodeDecodeError:
        return None, "not UTF-8"
    except json.JSONDecodeError:
        return None, "not JSON"
    except (ValueError, RecursionError):  # an integer of thousands of digits, or deep nesting
        return None, "beyond the limits of the JSON parser"


class InUse(ValueError):
    """Another process holds a lock. ``owner``: which one, such as ``process 12 on node3``."""

    def __init__(self, path: Path, owner: str) -> None:
        super().__init__(f"{path} is locked by {owner}: wait for it or end it")
        self.owner = owner


def _is_at(file: TextIO, path: Path) -> bool:
    """Whether an open file is still the one at ``path``."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def lock(path: Path, patience: float = 0.0) -> TextIO:
    """Lock a file, which is created if it is missing, and return it open: closing it frees the lock.

    The kernel frees the lock when its process ends, however it ends. The file names its owner, and stays.

    Args:
        patience: seconds to wait for another owner; ``math.inf`` waits for as long as it takes.

    Raises:
        InUse: another process, or another part of this one, still holds it.
        OSError: the file cannot be opened or locked.
    """
    deadline = time.monotonic() + patience
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _is_at(file, path):  # its owner removed it after it was opened here: a lock on it excludes nobody
                file.close()
                continue
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "another process"
            file.close()
            if time.monotonic() >= deadline:
                raise InUse(path, owner) from None
            time.sleep(LOCK_POLL_SECONDS)
            continue
        except OSError:
            file.close()
            raise
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename}\n")
        file.flush()
        return file
