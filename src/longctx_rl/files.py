"""Files that survive a crash: replaced in one move, read as JSON Lines, locked while a process lives.

This module needs only the standard library, so every room of the package can import it.
"""

import dataclasses
import fcntl
import json
import math
import os
import time
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TextIO, TypeVar

T = TypeVar("T")

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
        value, problem = parsed_unicode(raw)
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


def parsed_json(raw: bytes) -> tuple[Any, str]:
    """Return the value of JSON text and an empty string, or None and the problem: it ``is ...``, see ``Line``."""
    try:
        return json.loads(raw.decode("utf-8")), ""
    except UnicodeDecodeError:
        return None, "not UTF-8"
    except json.JSONDecodeError:
        return None, "not JSON"
    except (ValueError, RecursionError):  # an integer of thousands of digits, or deep nesting
        return None, "beyond the limits of the JSON parser"


def parsed_unicode(raw: bytes) -> tuple[Any, str]:
    r"""Like ``parsed_json``, but half of a surrogate pair, which an escape such as ``\ud83d`` spells, is a problem."""
    value, problem = parsed_json(raw)
    if not problem and b"\\u" in raw:
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            return None, "text with an unpaired surrogate"
    return value, problem


def read_object(path: Path, fix: str, **fields: Any) -> dict[str, Any]:
    """Read a JSON file that holds one object.

    Args:
        fix: what to do about a file that cannot be used; the end of the error's sentence.
        fields: the type of each field that is used, such as ``cost=float``; ``float | None`` may be missing.

    Raises:
        ValueError: the file cannot be read, is not JSON, or lacks a field of that type.
    """
    try:
        value, problem = parsed_unicode(path.read_bytes().removeprefix(BYTE_ORDER_MARK))
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): {fix}") from error
    if problem := problem or mismatch(value, fields):
        raise ValueError(f"{path} is {problem}: {fix}")
    assert isinstance(value, dict)
    return value


def built(cls: type[T], fields: Any) -> T:
    """Build a dataclass of plain values from a parsed object. Lists become tuples.

    Raises:
        ValueError: a field is missing, unknown, or has another type; says which. The caller adds the file.
    """
    if problem := mismatch(fields, cls):
        raise ValueError(f"it is {problem}")
    return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()})


def mismatch(value: Any, kind: Any, name: str = "") -> str:
    """Say why a parsed value does not have a type: it ``is ...``, as in ``Line.problem``. Empty if it has.

    A float is a finite number, also a whole one; an int has at most 64 bits.

    Args:
        kind: Any, a type of JSON values, a dataclass of such types, or a list, tuple, mapping or union of them. Also
            ``{"name": kind}`` for an object with at least these fields, where a missing one is None, and ``[kind]``.
        name: dotted path of the value; empty for the whole.
    """
    if kind is Any or (_is_number(value, kind) if kind in (int, float) else type(value) is kind):
        return ""
    items: list[tuple[str, Any, Any]] | None = None
    origin, inner, hints, required = (None, (), {}, set()) if isinstance(kind, dict | list) else _parts(kind)
    if origin in (types.UnionType, typing.Union) and any(not mismatch(value, each) for each in inner):
        return ""
    if isinstance(kind, dict) and isinstance(value, dict):
        items = [(key, value.get(key), expected) for key, expected in kind.items()]
    elif isinstance(kind, list) and isinstance(value, list):
        items = [(str(place), item, kind[0]) for place, item in enumerate(value)]
    elif hints and isinstance(value, dict):
        if unknown := [key for key in value if key not in hints]:
            return f"an object with the unknown field {unknown[0]}"
        items = [(key, value.get(key), hints[key]) for key in hints if key in value or key in required]
    elif origin in (dict, Mapping) and isinstance(value, dict):
        items = [(key, item, inner[1]) for key, item in value.items()]
    elif origin in (list, tuple, Sequence) and isinstance(value, list):
        kinds = inner if origin is tuple and inner[1:] != (...,) else inner[:1] * len(value)
        if len(kinds) == len(value):
            items = [(str(place), item, kinds[place]) for place, item in enumerate(value)]
    if items is None and not name:
        return f"not a JSON {'list' if isinstance(kind, list) else 'object'}"
    if items is None:
        return f"without a valid {name} ({json.dumps(value)[:SHOWN]})"
    problems = (mismatch(item, expected, f"{name}.{key}" if name else key) for key, item, expected in items)
    return next((problem for problem in problems if problem), "")


def _is_number(value: Any, kind: type) -> bool:
    if type(value) is int:
        return abs(value) < 2**63
    return kind is float and type(value) is float and math.isfinite(value)


@cache
def _parts(kind: Any) -> tuple[Any, tuple[Any, ...], dict[str, Any], set[str]]:
    """Return a type's origin and arguments, and a dataclass's field types and the names of those without a default."""
    if not dataclasses.is_dataclass(kind):
        return typing.get_origin(kind), typing.get_args(kind), {}, set()
    missing = dataclasses.MISSING
    required = {f.name for f in dataclasses.fields(kind) if f.default is missing and f.default_factory is missing}
    return None, (), typing.get_type_hints(kind), required


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
