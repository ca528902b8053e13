"""Preparation of messy rows: every trap is handled and counted, and an interruption loses nothing."""

import json
import shutil
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from make_fixture import make

from longctx_rl.data import preparation
from longctx_rl.data.preparation import Measure, prepare
from longctx_rl.data.prompts import encode_text
from longctx_rl.data.reading import Origin, Problems, _hub_rows
from longctx_rl.data.store import Store
from longctx_rl.files import lock
from longctx_rl.policy.loading import load_tokenizer

FIXTURE = Path(__file__).parent / "fixture"
ROWS = Origin(str(FIXTURE / "rows"))
TOKENIZER = load_tokenizer("mini-student")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return prepare(ROWS, TOKENIZER, tmp_path_factory.mktemp("cache"))


def everything(store: Store) -> list[dict[str, Any]]:
    return [store.row(index) for index in range(len(store))]


def test_the_fixture_matches_its_script(tmp_path: Path) -> None:
    make(tmp_path)
    for folder in ("rows", "books", "chat"):
        assert {f.name for f in (tmp_path / folder).iterdir()} == {f.name for f in (FIXTURE / folder).iterdir()}
    for kind in ("rows/a", "rows/b", "books/0", "books/1"):
        new, old = (pyarrow.parquet.read_table(root / f"{kind}.parquet") for root in (tmp_path, FIXTURE))
        assert new.equals(old)
    for kind in ("rows/d", "chat/chat"):
        assert (tmp_path / f"{kind}.jsonl").read_bytes() == (FIXTURE / f"{kind}.jsonl").read_bytes()


def test_every_dropped_row_is_counted_by_reason(store: Store) -> None:
    dropped = Counter({why: 0 for why, _ in store.counts.dropped})
    for (why, _), count in store.counts.dropped.items():
        dropped[why] += count
    assert dropped == {
        "document is not part of the data set": 6,
        "empty answer": 2,
        "empty document": 1,
        "no question": 1,
        "no document": 1,
        "duplicate": 1,
    }
    assert store.counts.read == len(store) + dropped.total()
    assert store.report["lines"] == {"not JSON": 1, "not UTF-8": 1, "not a JSON object": 1}
    assert list(store.report["files"]) == ["c-broken.parquet"]


def test_rows_are_unchanged(store: Store) -> None:
    rows = {row["id"]: row for row in everything(store)}
    for original in pyarrow.parquet.read_table(FIXTURE / "rows" / "a.parquet").to_pylist():
        row = rows[original["id"]]
        assert all(row[name] == original[name] for name in ("document", "question", "answer", "source", "language"))
        given = {name: text for name, text in original.items() if name.startswith("response_") and text}
        assert row["responses"] == given and row["targets"] == sorted(given)


def test_lengths_match_the_prompt_and_special_tokens_are_plain_text(store: Store) -> None:
    special = [row for row in everything(store) if row["spells_special"]]
    assert [row["id"] for row in special] == ["special"]
    assert store.counts.noted["documents that spell a special token, read as plain text"] == 1
    for row in everything(store):
        assert row["document_tokens"] == len(encode_text(TOKENIZER, row["document"]))
        assert row["question_tokens"] == len(encode_text(TOKENIZER, f"\n\n{row['question']}"))
        assert row["answer_tokens"] == len(encode_text(TOKENIZER, row["answer"]))
    ids = set(encode_text(TOKENIZER, special[0]["document"]))
    assert not ids & set(TOKENIZER.all_special_ids)


def test_books_are_restored_by_barcode(tmp_path: Path) -> None:
    store = prepare(ROWS, TOKENIZER, tmp_path, FIXTURE / "books")
    found = {row["id"]: row["document"] for row in everything(store) if row["source"] == "Institutional-Books-1.0"}
    assert sorted(found) == ["HV100", "HV101", "HV102"]
    assert found["HV100"].startswith("The press") and found["HV102"].startswith("Better: ")
    assert found["HV101"].count("\n") == 1  # pages without text leave no trace
    assert store.counts.dropped["document is not part of the data set", "Institutional-Books-1.0"] == 3


def test_chat_rows(tmp_path: Path) -> None:
    store = prepare(Origin(str(FIXTURE / "chat")), TOKENIZER, tmp_path)
    rows = everything(store)
    assert [(row["question"], row["answer"]) for row in rows[:2]] == [
        ("What is 0 and 0?", "0"),
        ("Be brief.\n\nWhat is 1 and 1?", "2"),
    ]
    assert len(rows) == 8 and store.counts.dropped == {("no answer", "chat"): 1}


def test_an_interrupted_preparation_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = everything(prepare(ROWS, TOKENIZER, tmp_path / "whole"))
    monkeypatch.setattr(preparation, "PART_CHARACTERS", 5000)
    monkeypatch.setattr(preparation, "BATCH_CHARACTERS", 2000)
    measured: list[str] = []
    measure = Measure.__call__

    def stopping(self: Measure, rows: Any, counts: Any) -> Any:
        if len(measured) > 12:
            raise KeyboardInterrupt
        measured.extend(row["id"] for row in rows)
        return measure(self, rows, counts)

    with monkeypatch.context() as stopped:
        stopped.setattr(Measure, "__call__", stopping)
        with pytest.raises(KeyboardInterrupt):
            prepare(ROWS, TOKENIZER, tmp_path / "parts")
    (folder,) = (tmp_path / "parts").iterdir()
    kept = len(list(folder.glob("part-*.arrow")))
    assert kept and not (folder / "report.json").exists()
    again: list[str] = []

    def noting(self: Measure, rows: Any, counts: Any) -> Any:
        again.extend(row["id"] for row in rows)
        return measure(self, rows, counts)

    monkeypatch.setattr(Measure, "__call__", noting)
    store = prepare(ROWS, TOKENIZER, tmp_path / "parts")
    assert everything(store) == whole
    assert len(again) < len(whole)  # finished parts are not measured again
    assert store.counts == prepare(ROWS, TOKENIZER, tmp_path / "whole").counts


def test_a_changed_folder_is_prepared_again(tmp_path: Path) -> None:
    line = json.dumps({"id": "1", "document": "D.", "source": "s", "language": "en", "question": "q", "answer": "D"})
    file = tmp_path / "data.jsonl"
    file.write_text(line + "\n")
    assert len(prepare(Origin(str(file)), TOKENIZER, tmp_path / "cache")) == 1
    file.write_text(line + "\n" + line.replace('"1"', '"2"').replace("D.", "E. D.") + "\n")
    assert len(prepare(Origin(str(file)), TOKENIZER, tmp_path / "cache")) == 2


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (
            {"id": "1", "document": "d", "source": "s", "language": "en", "question": "q"},
            "no column 'answer'.*id, document, source, language, question, answer",
        ),
        (
            {"id": "1", "document": None, "source": "s", "language": "en", "question": "q", "answer": "a"},
            "no usable row",
        ),
        ("not json", "no readable row.*1 lines not JSON"),
    ],
)
def test_a_data_set_without_usable_rows_is_reported(tmp_path: Path, content: Any, sentence: str) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text((content if isinstance(content, str) else json.dumps(content)) + "\n")
    with pytest.raises(ValueError, match=sentence):
        prepare(Origin(str(file)), TOKENIZER, tmp_path / "cache")


def test_broken_lines_are_counted_and_the_others_read(tmp_path: Path) -> None:
    """The file starts with a byte order mark and ends without a newline."""
    rows = [
        json.dumps({"id": str(n), "document": "D.", "source": "s", "language": "en", "question": "q", "answer": "D"})
        for n in range(2)
    ]
    lines = [b"\xef\xbb\xbf" + rows[0].encode(), b"", b"[" * 100_000, b"9" * 5_000, b"\xff", b"oops", b"[1]"]
    file = tmp_path / "data.jsonl"
    file.write_bytes(b"\n".join([*lines, rows[1].encode()]))
    problems = Problems()
    assert [row["id"] for row in Origin(str(file)).rows(problems)] == ["0", "1"]
    assert problems.lines == {
        "beyond the limits of the JSON parser": 2, "not UTF-8": 1, "not JSON": 1, "not a JSON object": 1,
    }  # fmt: skip


def test_a_second_process_waits_for_the_first(tmp_path: Path) -> None:
    whole = prepare(ROWS, TOKENIZER, tmp_path)
    (whole.folder / "report.json").rename(tmp_path / "report.json")
    held = lock(whole.folder / ".lock")

    def finish() -> None:
        (tmp_path / "report.json").rename(whole.folder / "report.json")
        held.close()

    threading.Timer(0.5, finish).start()
    assert everything(prepare(ROWS, TOKENIZER, tmp_path)) == everything(whole) and held.closed


def test_an_empty_folder_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"{tmp_path} .*\.parquet or \.jsonl.*Hub id"):
        list(Origin(str(tmp_path)).rows(Problems()))


@pytest.mark.parametrize("streaming", [False, True])
def test_the_hub_reader_gives_the_same_rows(tmp_path: Path, streaming: bool) -> None:
    """With ``datasets``, as for a Hub id, on a local folder."""
    folder = tmp_path / "rows"
    folder.mkdir()
    for name in ("a", "b"):
        shutil.copy(FIXTURE / "rows" / f"{name}.parquet", folder)
    found = list(_hub_rows(Origin(str(folder), streaming=streaming), Problems()))
    assert found == list(Origin(str(folder)).rows(Problems())) and len(found) > 30


def test_malformed_rows_are_dropped_by_reason(tmp_path: Path) -> None:
    good = {"id": "1", "document": "D d.", "source": "s", "language": "en", "question": "q", "answer": "D"}
    rows = [
        good,
        good | {"task": 3},
        good | {"evidence": [1]},
        good | {"evidence": "[{}]"},
        good | {"family_id": 7},
        good | {"answer": {"text": "D"}},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    store = prepare(Origin(str(file)), TOKENIZER, tmp_path / "cache")
    assert len(store) == 1
    assert {why for why, _ in store.counts.dropped} == {
        "task is not text", "evidence is not text", "malformed evidence", "family_id is not text",
        "answer of type dict",
    }  # fmt: skip


def test_malformed_messages_are_dropped(tmp_path: Path) -> None:
    def turns(*contents: Any) -> dict[str, Any]:
        roles = ("user", "assistant")
        return {"messages": [{"role": r, "content": c} for r, c in zip(roles, contents, strict=True)]}

    rows = [turns("q", "a"), {"messages": "[]"}, {"messages": ["q", "a"]}, turns(["q"], "a"), turns("q", {"a": 1})]
    file = tmp_path / "chat.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    store = prepare(Origin(str(file)), TOKENIZER, tmp_path / "cache")
    assert len(store) == 1 and store.counts.dropped.total() == 4


def test_books_added_later_are_found(tmp_path: Path) -> None:
    shelf = tmp_path / "books"
    shelf.mkdir()
    shutil.copy(FIXTURE / "books" / "0.parquet", shelf)
    assert len(prepare(ROWS, TOKENIZER, tmp_path / "cache", shelf)) == len(prepare(ROWS, TOKENIZER, tmp_path)) + 2
    shutil.copy(FIXTURE / "books" / "1.parquet", shelf)
    assert len(prepare(ROWS, TOKENIZER, tmp_path / "cache", shelf)) == len(prepare(ROWS, TOKENIZER, tmp_path)) + 3


def test_a_missing_data_set_is_reported_with_the_download_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    command = (
        "from longctx_rl.data.reading import Origin, Problems\n"
        "try:\n    next(Origin('nobody/nothing', 'abc').rows(Problems()))\n"
        "except ValueError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert "hf download --repo-type dataset nobody/nothing --revision abc" in done.stdout
