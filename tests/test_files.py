"""Files replaced in one move, JSON Lines read line by line, and locks that die with their process."""

import io
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from longctx_rl import files
from longctx_rl.files import (
    InUse,
    Line,
    built,
    json_lines,
    json_values,
    lock,
    mismatch,
    parse_lines,
    read_object,
    replacing,
    write_text,
)

SOURCE = Path(__file__).parents[1] / "src"
DEEP = b"[" * 100_000
HUGE = b"9" * 5_000
LIMITS = "beyond the limits of the JSON parser"
SURROGATE = "text with an unpaired surrogate"


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_it_needs_the_standard_library_only() -> None:
    code = (
        "import sys, longctx_rl.files\n"
        "loaded = {name for name in sys.modules if name.startswith('longctx_rl.')}\n"
        "print(sorted(loaded), 'torch' in sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": str(SOURCE)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "['longctx_rl.files'] False\n"


def test_text_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    write_text(path, "old")
    write_text(path, "né\n")
    assert path.read_bytes() == "né\n".encode() and names(tmp_path) == ["config.yaml"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "half \ud83d")
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:
        temporary.write_bytes(b"ne")
        assert path.read_text() == "old"
        raise KeyboardInterrupt
    assert path.read_text() == "old" and names(tmp_path) == ["config.yaml"]


def test_content_is_on_disk_before_it_takes_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config.yaml"
    write_text(path, "old")
    synced: list[tuple[str, str]] = []

    def noting(descriptor: int) -> None:
        synced.append((Path(f"/proc/self/fd/{descriptor}").read_text(), path.read_text()))

    monkeypatch.setattr(files.os, "fsync", noting)
    write_text(path, "new")
    assert synced == [("new", "old")]


def test_readers_see_one_text_or_the_other(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    texts = {"a" * 200_000, "b" * 300_000}
    write_text(path, max(texts))
    done = threading.Event()

    def write() -> None:
        for _ in range(20):
            for text in texts:
                write_text(path, text)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = set()
    while not done.is_set():
        seen.add(path.read_text())
    writer.join()
    assert seen <= texts


def read(path: Path, content: bytes) -> list[Line]:
    path.write_bytes(content)
    return list(json_lines(path))


def test_lines_are_parsed_one_by_one(tmp_path: Path) -> None:
    found = read(tmp_path / "a.jsonl", '{"a": "né"}\r\nnull\n \n[1]\n'.encode())
    assert [(line.number, line.value, line.problem, line.blank, line.cut) for line in found] == [
        (1, {"a": "né"}, "", False, False),
        (2, None, "", False, False),
        (3, None, "not JSON", True, False),
        (4, [1], "", False, False),
    ]
    assert found[0].raw == '{"a": "né"}\r'.encode()
    assert read(tmp_path / "empty.jsonl", b"") == []


@pytest.mark.parametrize(
    ("broken", "problem"),
    [
        (b"oops", "not JSON"),
        (b'{"a": 1', "not JSON"),
        (b"", "not JSON"),
        (b'"\xff"', "not UTF-8"),
        (b'{"a": "n\xc3', "not UTF-8"),
        (DEEP, LIMITS),
        (DEEP + b"]" * len(DEEP), LIMITS),
        (HUGE, LIMITS),
        (b'{"a": -' + HUGE + b"}", LIMITS),
        (b'{"a": ["\\ud83d"]}', SURROGATE),
        (b'{"\\uDE00": 1}', SURROGATE),
    ],
    ids=[
        *("word", "half", "empty", "bytes", "half-a-letter", "deep", "deep-and-closed", "huge", "huge-inside"),
        *("surrogate", "surrogate-key"),
    ],
)
def test_a_broken_line_costs_itself_alone(tmp_path: Path, broken: bytes, problem: str) -> None:
    path = tmp_path / "a.jsonl"
    first, line, last = read(path, b"1\n" + broken + b"\n2\n")
    assert (first.value, last.value, line.value, line.problem, line.raw) == (1, 2, None, problem, broken)
    assert first.checked() == 1
    start = broken.decode("utf-8", "replace")[:60]
    with pytest.raises(ValueError) as caught:
        line.checked()
    assert str(caught.value) == f"line 2 is {problem}: {start!r}"
    with pytest.raises(ValueError) as caught:
        list(json_values(path))
    assert str(caught.value) == f"{path}, line 2 is {problem}: {start!r}; restore the file"


@pytest.mark.parametrize("rest", [b'{"step": 3, "lo', b'{"step": 3}', b'"n\xc3', DEEP])
def test_a_last_line_cut_short_is_told_apart(tmp_path: Path, rest: bytes) -> None:
    path = tmp_path / "a.jsonl"
    found = read(path, b'{"step": 1}\n{"step": 2}\n' + rest)
    assert [line.cut for line in found] == [False, False, True]
    assert found[-1].value == ({"step": 3} if rest.endswith(b"}") else None)
    assert list(json_values(path)) == [{"step": 1}, {"step": 2}]


def test_a_byte_order_mark_counts_at_the_start_only(tmp_path: Path) -> None:
    mark = files.BYTE_ORDER_MARK
    first, second = read(tmp_path / "a.jsonl", mark + b'{"a": 1}\n' + mark + b'{"a": 2}\n')
    assert (first.value, first.raw) == ({"a": 1}, b'{"a": 1}')
    assert second.problem == "not JSON"
    assert [line.problem for line in read(tmp_path / "b.jsonl", mark)] == ["not JSON"]


def test_only_a_newline_separates_lines(tmp_path: Path) -> None:
    """``str.splitlines`` would break text at any of these, which JSON allows inside a string."""
    rows = [{"completion": "a\u2028b\u2029c\x85d"}, {"completion": "e"}]
    path = tmp_path / "a.jsonl"
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    assert list(json_values(path)) == rows


def test_a_surrogate_pair_is_a_character(tmp_path: Path) -> None:
    (line,) = read(tmp_path / "a.jsonl", b'{"a": "\\ud83d\\ude00 \\\\ud83d"}\n')
    assert line.value == {"a": "\U0001f600 \\ud83d"}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b'\xef\xbb\xbf{"step": 1, "costs": {"a": 0.5}, "more": null}', None),
        (b'{"step": 1, "costs": {}}', None),
        (None, "cannot be read (No such file or directory)"),
        (b"", "is not JSON"),
        ('{"step": 1}'.encode("utf-16"), "is not UTF-8"),
        (DEEP, f"is {LIMITS}"),
        (b'{"step": ' + HUGE + b"}", f"is {LIMITS}"),
        (b'{"step": 1, "costs": {"\\ud83d": 1}}', f"is {SURROGATE}"),
        (b"[]", "is not a JSON object"),
        (b"null", "is not a JSON object"),
        (b'{"costs": {}}', "is without a valid step (null)"),
        (b'{"step": true, "costs": {}}', "is without a valid step (true)"),
        (b'{"step": 99999999999999999999, "costs": {}}', "is without a valid step (99999999999999999999)"),
        (b'{"step": 1, "costs": [1]}', "is without a valid costs ([1])"),
        (b'{"step": 1, "costs": {"a": "x"}}', 'is without a valid costs.a ("x")'),
        (b'{"step": 1, "costs": {"a": NaN}}', "is without a valid costs.a (NaN)"),
        (b'{"step": 1, "costs": {}, "more": [["a", "b"]]}', 'is without a valid more ([["a", "b"]])'),
    ],
)
def test_an_object_is_read_with_its_types_or_refused(
    tmp_path: Path, content: bytes | None, problem: str | None
) -> None:
    path = tmp_path / "state.json"
    if content is not None:
        path.write_bytes(content)

    def opened() -> dict[str, Any]:
        return read_object(path, "restore it", step=int, costs=dict[str, float], more=list[tuple[str, int]] | None)

    if problem is None:
        assert opened()["step"] == 1
        return
    with pytest.raises(ValueError) as caught:
        opened()
    assert str(caught.value) == f"{path} {problem}: restore it"


@dataclass(frozen=True)
class Measured:
    name: str
    values: Sequence[float] = ()
    weight: float | None = None


def test_a_dataclass_is_built_from_a_parsed_object() -> None:
    assert built(Measured, {"name": "a", "values": [1, 2.5]}) == Measured("a", (1, 2.5))
    for fields, problem in (
        ([], "not a JSON object"),
        ({}, "without a valid name (null)"),
        ({"name": "a", "values": [None]}, "without a valid values.0 (null)"),
        ({"name": "a", "weight": float("inf")}, "without a valid weight (Infinity)"),
        ({"name": "a", "step": 1}, "an object with the unknown field step"),
    ):
        with pytest.raises(ValueError) as caught:
            built(Measured, fields)
        assert str(caught.value) == f"it is {problem}"
    assert mismatch([{"name": "a", "more": 1}], [{"name": str}]) == ""
    assert mismatch({}, [{"name": str}]) == "not a JSON list"


def test_a_stream_is_read_as_it_is_asked_for() -> None:
    stream = io.BytesIO(b"1\n2\n3\n")
    lines = parse_lines(stream)
    assert next(lines).value == 1 and stream.tell() == 2


HOLDER = """
import sys
from pathlib import Path
from longctx_rl.files import lock
with lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(path: Path) -> "subprocess.Popen[str]":
    """A process that has the lock by now, until its standard input is closed."""
    started = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(SOURCE)},
    )
    assert started.stdout and started.stdout.readline() == "held\n"
    return started


def test_a_lock_names_its_owner_and_ends_with_a_killed_process(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    other = holder(path)
    try:
        with pytest.raises(InUse) as caught:
            lock(path)
        owner = f"process {other.pid} on {os.uname().nodename}"
        assert caught.value.owner == owner
        assert str(caught.value) == f"{path} is locked by {owner}: wait for it or end it"
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()
    with lock(path, 2.0):
        assert path.read_text() == f"process {os.getpid()} on {os.uname().nodename}\n"


def test_a_lock_holds_within_one_process_and_is_free_when_closed(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with lock(path), pytest.raises(InUse, match=f"is locked by process {os.getpid()} on"):
        lock(path)
    lock(path).close()
    lock(path).close()
    assert names(tmp_path) == [".lock"]


def test_patience_waits_for_the_owner_and_no_longer(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    other = holder(path)
    assert other.stdin
    began = time.monotonic()
    with pytest.raises(InUse):
        lock(path, 0.3)
    assert time.monotonic() - began >= 0.3
    threading.Timer(0.3, other.stdin.close).start()
    with lock(path, math.inf):
        assert path.read_text().startswith(f"process {os.getpid()} ")
    assert other.wait(timeout=60) == 0


def test_a_lock_in_no_folder_is_an_error_of_the_disk(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        lock(tmp_path / "absent" / ".lock")


def test_a_lock_whose_file_was_removed_and_created_anew_is_not_held(tmp_path: Path) -> None:
    """Its owner removes the folder before it lets go; whoever had opened the old file must lock the new one."""
    path = tmp_path / ".lock"
    old = lock(path)
    entered = threading.Event()

    def wait() -> None:
        entered.set()
        lock(path, 5.0).close()

    waiting = threading.Thread(target=wait)
    waiting.start()
    entered.wait()
    time.sleep(0.3)
    path.unlink()
    new = lock(path)
    old.close()
    waiting.join(0.5)
    assert waiting.is_alive()
    new.close()
    waiting.join(5.0)
    assert not waiting.is_alive()
