"""Preparation of a data set as a store: rows are cleaned and measured, and every dropped row is counted by reason.

Rows are processed in parts: an interrupted preparation keeps its finished parts, and the same command resumes after
them. Memory grows with the data set only by one hash per row, for the detection of duplicates.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from longctx_rl.data import books as institutional
from longctx_rl.data.books import Books
from longctx_rl.data.longblocks import RESPONSE_PREFIX, read_evidence
from longctx_rl.data.reading import CHAT, REQUIRED, Origin, Problems, Row
from longctx_rl.data.store import (
    REPORT,
    Counts,
    Store,
    digest,
    part_counts,
    parts,
    reading_part,
    row_hash,
    write_part,
)
from longctx_rl.data.tasks import place_of
from longctx_rl.files import lock, write_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VERSION = 3
"""Version of the rules in this file and in ``tasks``: part of a store's name."""
PART_CHARACTERS = 2**26
"""Characters of text in one part."""
BATCH_CHARACTERS = 2**22
"""Characters of text that are tokenised together, on all cores."""
ANSWER_END = "</think>"
"""In the replies of a chat data set, the text before this marker is reasoning."""


def prepare(origin: Origin, tokenizer: PreTrainedTokenizerBase, root: Path, books: Path | None = None) -> Store:
    """Open the store of a data set, which is created now if it is missing or incomplete.

    Args:
        root: folder of all stores.
        books: local copy of Institutional Books, for rows without a document.

    Raises:
        ValueError: there is nothing to read, a column is missing, no row is usable, or the disk is full.
        KeyboardInterrupt: finished parts are kept.
    """
    origin = origin.pinned()
    name = "-".join(part for part in Path(origin.path).parts[-2:] if part not in "./~")
    version = (origin.path, origin.revision or "", origin.split, _state(Path(origin.path).expanduser()))
    key = digest(str(VERSION), *version, fingerprint(tokenizer), _state(books) if books else "")[:12]
    folder = root.expanduser() / f"{name}-{key}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with lock(folder / ".lock", math.inf):  # other processes on this machine wait and find it complete
            if not (folder / REPORT).exists():
                _write(folder, origin, tokenizer, books)
    except OSError as error:
        cause = error.strerror or str(error)
        raise ValueError(f"{folder} cannot be written ({cause}): free space there, or set another cache") from error
    return Store(folder)


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash everything that determines how the tokenizer splits text."""
    return digest(tokenizer.backend_tokenizer.to_str())


def _state(path: Path) -> str:
    """List names, sizes and times of local files, so that a changed folder is prepared again; empty for the Hub."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    statuses = [(str(file), file.stat()) for file in files if file.exists()]
    return json.dumps([[name, status.st_size, status.st_mtime_ns] for name, status in statuses])


def _write(folder: Path, origin: Origin, tokenizer: PreTrainedTokenizerBase, books: Path | None) -> None:
    problems = Problems()
    shelf = None
    if books is not None:
        shelf = Books(books, folder / "books.sqlite")
        shelf.collect(str(row.get("id")) for row in origin.rows(Problems()) if not row.get("document"))
    done = parts(folder)
    counts = part_counts(done[-1]) if done else Counts()
    seen = {digest for path in done for digest in _hashes(path)}
    measure = Measure(tokenizer)
    rows = itertools.islice(origin.rows(problems), counts.read, None)
    with tqdm(desc=f"preparing {origin.path}", unit=" rows", initial=counts.read, disable=None) as bar:
        number = len(done)
        while True:
            part = list(_part(rows, counts, seen, measure, shelf, bar))
            if not part:
                break
            write_part(folder / f"part-{number:05}.arrow", part, counts)
            number += 1
    if shelf is not None:
        shelf.close()
    kept = len(seen)
    if not kept:
        reasons = ", ".join(f"{count} {why}" for (why, _), count in counts.dropped.most_common())
        raise ValueError(
            f"{origin.path} has no usable row ({reasons or 'it is empty'}): document, question and answer must be text"
        )
    report = {
        "origin": {"path": origin.path, "revision": origin.revision, "split": origin.split},
        "tokenizer": fingerprint(tokenizer),
        "kept": kept,
        "counts": counts.as_json(),
        "files": problems.files,
        "lines": dict(problems.lines),
        "columns": sorted(problems.columns),
    }
    write_text(folder / REPORT, json.dumps(report, indent=2) + "\n")
    if kept < counts.read or problems.files or problems.lines:
        skipped = f"{len(problems.files)} files and {problems.lines.total()} lines were skipped"
        usable = f"{kept} of {counts.read} rows of {origin.path} are usable, and {skipped}"
        print(f"{usable}: python -m longctx_rl.data inspect says why", file=sys.stderr)


def _hashes(path: Path) -> list[str]:
    with reading_part(path) as reader:
        hashes: list[str] = reader.read_all()["row_hash"].to_pylist()
    return hashes


def _part(
    rows: Iterator[Row], counts: Counts, seen: set[str], measure: Measure, shelf: Books | None, bar: Any
) -> Iterator[Row]:
    """Yield usable rows, measured batch by batch, until their text fills a part."""
    batch: list[Row] = []
    in_batch = in_part = 0
    for raw in rows:
        counts.read += 1
        bar.update()
        row, reason = clean(raw, shelf)
        counts.noted["rows with messages beside a document, which are not read"] += bool(raw.get(CHAT)) and not is_chat(
            raw
        )
        if not reason and row["row_hash"] in seen:
            reason = "duplicate"
        if reason:
            counts.dropped[reason, str(row["source"] or "no source")] += 1
            continue
        seen.add(row["row_hash"])
        batch.append(row)
        size = len(row["document"]) + len(row["question"]) + len(row["answer"])
        in_batch, in_part = in_batch + size, in_part + size
        if in_batch >= BATCH_CHARACTERS or in_part >= PART_CHARACTERS:
            yield from measure(batch, counts)
            batch, in_batch = [], 0
        if in_part >= PART_CHARACTERS:
            return
    yield from measure(batch, counts)


def clean(raw: Row, shelf: Books | None) -> tuple[Row, str]:
    """Return a row in the store's columns, and the reason to drop it; empty if it is usable."""
    chat = is_chat(raw)
    row: Row = from_chat(raw) if chat else {name: raw.get(name) for name in REQUIRED}
    row["answer"] = answer_text(row["answer"])
    if row["document"] is None and shelf is not None:
        row["document"] = shelf.text(str(row["id"]))
    if row["document"] is None and row["source"] == institutional.SOURCE:
        return row, "document is not part of the data set"
    for name in ("document", "question", "answer"):
        if row[name] is None:
            return row, f"no {name}"
        if not isinstance(row[name], str):
            return row, f"{name} of type {type(row[name]).__name__}"
        if not row[name].strip() and not (chat and name == "document"):
            return row, f"empty {name}"
    row |= {name: "" if row[name] is None else str(row[name]) for name in ("id", "source", "language")}
    named = {name: text for name, text in raw.items() if name.startswith(RESPONSE_PREFIX)}
    responses = {name: text for name, text in named.items() if isinstance(text, str) and text.strip()}
    row |= {
        "responses": responses,
        "targets": sorted(responses),
        "named_task": raw.get("task") or "",
        "evidence": raw.get("evidence") or "[]",
        "family_id": raw.get("family_id") or "",
    }
    if reason := _malformed(row):
        return row, reason
    return row | {"document_hash": digest(row["document"] or row["question"]), "row_hash": row_hash(row)}, ""


def is_chat(raw: Row) -> bool:
    """Whether a row is a chat: it has messages, and no document, question or answer beside a document column."""
    named = any(raw.get(name) is not None for name in ("document", "question", "answer"))
    return CHAT in raw and ("document" not in raw or (raw[CHAT] is not None and not named))


def answer_text(value: Any) -> Any:
    """Return an answer as text if it has only one meaning as text; otherwise unchanged, and null for NaN.

    The one item of a list stands for itself. A float without decimals stays: it may have been a whole number.
    """
    if isinstance(value, list) and len(value) == 1:
        return answer_text(value[0])
    if isinstance(value, float) and math.isnan(value):
        return None
    exact = isinstance(value, int) or (isinstance(value, float) and not value.is_integer() and math.isfinite(value))
    return str(value) if exact else value


def _malformed(row: Row) -> str:
    """Return why a row would fail later: a column of the wrong type, or malformed evidence."""
    for name in ("named_task", "evidence", "family_id"):
        if not isinstance(row[name], str):
            return f"{name.removeprefix('named_')} is not text"
    try:
        read_evidence(row["evidence"])
    except ValueError:
        return "malformed evidence"
    return ""


def from_chat(raw: Row) -> Row:
    """Convert a chat row to LongBlocks' columns: the first user turn, after the system messages, and the reply to it.

    The question or answer is null if it is missing, is not text, or comes after another turn, such as that of a tool.
    """
    system: list[str] = []
    request = reply = None
    for turn in raw[CHAT] if isinstance(raw[CHAT], list) else []:
        role, content = (turn.get("role"), _turn_text(turn.get("content"))) if isinstance(turn, dict) else (None, None)
        if role in ("system", "developer") and request is None and content is not None:
            system.append(content)
        elif role == "user" and request is None and content is not None:
            request = content
        elif role != "assistant" or request is not None:  # an assistant may greet first
            reply = content if role == "assistant" else None
            break
    return {
        "id": raw.get("id") or raw.get("uuid") or digest(str(request), str(reply)),
        "document": "",
        "source": raw.get("source") or raw.get("category") or "chat",
        "language": raw.get("language") or "",
        "question": "\n\n".join([*filter(None, system), request]) if request else request,
        "answer": reply.rpartition(ANSWER_END)[2].strip() if reply else reply,
    }


def _turn_text(content: Any) -> str | None:
    """Return a turn's text, which may be given in parts; None if it has none, or other parts such as images."""
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        texts = [part.get("text") for part in content]
        return "".join(texts) if texts and all(isinstance(text, str) for text in texts) else None
    return content if isinstance(content, str) else None


class Measure:
    """Counts tokens on all cores. Data never become special tokens, even where the text spells one out."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        backend = type(tokenizer.backend_tokenizer).from_str(tokenizer.backend_tokenizer.to_str())
        backend.encode_special_tokens = True
        backend.no_padding()
        backend.no_truncation()
        self._backend = backend
        self._special = sorted({str(token) for token in tokenizer.all_special_tokens} - {""})

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text."""
        return [len(encoding) for encoding in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def __call__(self, rows: Sequence[Row], counts: Counts) -> list[Row]:
        """Return the rows with their measured columns."""
        texts = [
            text
            for row in rows
            for text in (
                *(row["document"], f"\n\n{row['question']}", row["answer"]),
                *(row["responses"][name] for name in row["targets"]),
            )
        ]
        lengths = iter(self.lengths(texts))
        for row in rows:
            row |= {f"{name}_tokens": next(lengths) for name in ("document", "question", "answer")}
            row["target_tokens"] = [next(lengths) for _ in row["targets"]]
            row["verbatim"] = place_of(row["document"], row["answer"]) is not None
            row["spells_special"] = any(token in row["document"] or token in row["question"] for token in self._special)
            counts.noted["documents that spell a special token, read as plain text"] += row["spells_special"]
            counts.noted["rows with a teacher's response"] += bool(row["responses"])
        return list(rows)
