"""Data sets as others write them: every row is read right, or counted under its reason, or the whole is refused."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from longctx_rl.data.preparation import prepare
from longctx_rl.data.reading import Origin
from longctx_rl.data.store import Store
from longctx_rl.policy.loading import load_tokenizer

TOKENIZER = load_tokenizer("mini-student")
ROW = {"id": "1", "document": "D d.", "source": "s", "language": "en", "question": "q", "answer": "D"}
TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n"
OTHER_SPLIT, OTHER_FORMAT = "of another split", "neither .parquet nor .jsonl"
LFS = "a pointer of Git LFS: git lfs pull fetches the file"
ARRAY = "a JSON array: write one object in each line"
HIDDEN = {"README.md": "#", ".b.jsonl": "x", ".cache/c.jsonl": "x", "report.json": "{}"}
ARROW = {"train/data-00000-of-00001.arrow": b"", "train/state.json": b"{}"}
EVIDENCE = '[{"text": "a", "statement": "b", "depth": "x"}]'
Files = dict[str, Any]


def row(number: Any, **values: Any) -> dict[str, Any]:
    return ROW | {"id": number, "document": f"D {number}."} | values


def lines(*rows: Any) -> str:
    return "".join(json.dumps(one) + "\n" for one in rows)


def table(*rows: dict[str, Any]) -> pyarrow.Table:
    return pyarrow.Table.from_pylist(list(rows))


def chat(*turns: tuple[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def prepared(tmp_path: Path, files: Files, split: str = "train") -> Store:
    folder = tmp_path / "rows"
    for name, content in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, pyarrow.Table):
            pyarrow.parquet.write_table(content, file)
        else:
            file.write_bytes(content.encode() if isinstance(content, str) else content)
    return prepare(Origin(str(folder), split=split), TOKENIZER, tmp_path / "cache")


def asked(store: Store) -> list[tuple[str, str, str]]:
    """Document, question and answer of each row."""
    rows = [store.row(index) for index in range(len(store))]
    return [(one["document"], one["question"], one["answer"]) for one in rows]


@pytest.mark.parametrize(
    ("answer", "read"),
    [
        (42, "42"),
        (0, "0"),
        (-1.5, "-1.5"),
        (True, "True"),
        (["a"], "a"),
        ([7], "7"),
        (None, "no answer"),
        (float("nan"), "no answer"),
        (" ", "empty answer"),
        (3.0, "answer of type float"),
        ([], "answer of type list"),
        (["a", "b"], "answer of type list"),
        ({"text": ["a"], "answer_start": [1]}, "answer of type dict"),
    ],
)
def test_an_answer_that_is_not_text(tmp_path: Path, answer: Any, read: str) -> None:
    store = prepared(tmp_path, {"a.jsonl": lines(row(1, answer=answer), row(2))})
    answers = [answer for _, _, answer in asked(store)]
    assert answers == ([read, "D"] if len(store) == 2 else ["D"])
    assert [why for why, _ in store.counts.dropped] == ([] if len(store) == 2 else [read])


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"question": 5}, "question of type int"),
        ({"question": "  "}, "empty question"),
        ({"document": ["a", "b"]}, "document of type list"),
        ({"evidence": "[" * 100_000}, "malformed evidence"),
        ({"evidence": EVIDENCE}, "malformed evidence"),
        ({"evidence": '[{"text": "\\ud83d", "statement": "b", "depth": 0}]'}, "malformed evidence"),
        ({"evidence": "the second paragraph"}, "malformed evidence"),
        ({"id": None, "source": None, "language": ["en"], "question": "<|im_end|>"}, ""),
        ({"id": 10**4000, "answer": "d"}, ""),
        ({"evidence": "", "response_x": {"a": 1}, "when": [[[]]]}, ""),
    ],
)
def test_other_columns(tmp_path: Path, values: dict[str, Any], reason: str) -> None:
    store = prepared(tmp_path, {"a.jsonl": lines(row(1, **values), row(2))})
    assert len(store) == (1 if reason else 2)
    assert [why for why, _ in store.counts.dropped] == ([reason] if reason else [])


def test_lines_that_are_not_rows_are_counted(tmp_path: Path) -> None:
    text = "\r\n".join(
        [json.dumps(row(1)), "", json.dumps(row(2)) + ",", json.dumps(row(3, note="\ud83d")), json.dumps(row(4))]
    )
    store = prepared(tmp_path, {"a.jsonl": b"\xef\xbb\xbf" + text.encode(), "b.jsonl": lines(row(5), {}, row(6))})
    assert [document for document, _, _ in asked(store)] == ["D 1.", "D 4.", "D 5.", "D 6."]
    assert store.report["lines"] == {"not JSON": 1, "text with an unpaired surrogate": 1}
    assert store.counts.dropped == {("no document", "no source"): 1}
    assert store.report["columns"] == []


@pytest.mark.parametrize(
    ("turns", "question", "answer"),
    [
        ((("system", "S"), ("developer", "T"), ("user", "q"), ("assistant", "a")), "S\n\nT\n\nq", "a"),
        ((("assistant", "hi"), ("user", "q"), ("assistant", "<think>r</think>a")), "q", "a"),
        ((("user", [{"type": "text", "text": "q"}]), ("assistant", [{"type": "text", "text": "a"}])), "q", "a"),
        ((("user", "q"), ("assistant", None), ("tool", "t"), ("assistant", "a")), None, "no answer"),
        ((("user", "q"), ("user", "r"), ("assistant", "a")), None, "no answer"),
        ((("user", [{"type": "image"}, {"type": "text", "text": "q"}]), ("assistant", "a")), None, "no question"),
        ((("human", "q"), ("gpt", "a")), None, "no question"),
        ((("system", "S"), ("user", ""), ("assistant", "a")), None, "empty question"),
        ((("user", "q"), ("assistant", "<think>r</think>")), None, "empty answer"),
    ],
)
def test_turns(tmp_path: Path, turns: Any, question: str | None, answer: str) -> None:
    other = chat(("user", "other"), ("assistant", "b"))
    store = prepared(tmp_path, {"a.jsonl": lines(chat(*turns), other)})
    assert asked(store) == [*([("", question, answer)] if question else []), ("", "other", "b")]
    assert [why for why, _ in store.counts.dropped] == ([] if question else [answer])


def test_a_document_beside_messages_is_read_and_the_messages_are_named(tmp_path: Path) -> None:
    rows = [
        row(1, messages=TURNS),
        row(2, messages=None),
        dict.fromkeys(ROW) | {"messages": TURNS},
        row(4, messages=TURNS, document=None, source="Institutional-Books-1.0"),
    ]
    store = prepared(tmp_path, {"a.jsonl": lines(*rows)})
    assert asked(store) == [("D 1.", "q", "D"), ("D 2.", "q", "D"), ("", "q", "a")]
    assert store.counts.noted["rows with messages beside a document, which are not read"] == 2
    assert store.counts.dropped == {("document is not part of the data set", "Institutional-Books-1.0"): 1}


@pytest.mark.parametrize(
    ("content", "missing"),
    [
        ({"document": "D", "messages": TURNS}, "'id' (document, messages)"),
        ({"conversations": [{"from": "human", "value": "q"}]}, "'id' (conversations)"),
        ({"prompt": "q", "completion": "a"}, "'id' (prompt, completion)"),
        ({"id": 1, "context": "c", "question": "q", "answer": "a"}, "'document' (id, context, question, answer)"),
        ({}, "'id' (no columns)"),
    ],
)
def test_other_formats_are_refused_with_their_columns(tmp_path: Path, content: Any, missing: str) -> None:
    with pytest.raises(ValueError) as caught:
        prepared(tmp_path, {"a.jsonl": lines(content)})
    assert f"a.jsonl has no column {missing}: rows need id, document" in str(caught.value)


def test_columns_that_are_not_read_are_named(tmp_path: Path) -> None:
    stamped = table(row("1"), row("2")).append_column("when", pyarrow.array([2**62, 1], pyarrow.timestamp("us")))
    store = prepared(tmp_path, {"a.parquet": stamped, "b.jsonl": lines(chat() | {"context": "c", "messages": TURNS})})
    assert len(store) == 3 and store.report["columns"] == ["context", "when"]


@pytest.mark.parametrize(
    "kind", ["large_string", "dictionary", "zero-row file", "upper-case suffix", "folder of parts"]
)
def test_kinds_of_parquet(tmp_path: Path, kind: str) -> None:
    whole = table(row("1"), row("2"))
    if kind == "large_string":
        whole = whole.cast(pyarrow.schema([(name, pyarrow.large_string()) for name in whole.column_names]))
    elif kind == "dictionary":
        whole = pyarrow.table({name: whole[name].dictionary_encode() for name in whole.column_names})
    name = {"upper-case suffix": "A.PARQUET", "folder of parts": "data.parquet/part-0.parquet"}.get(kind, "a.parquet")
    empty = {"b.parquet": whole.slice(0, 0)} if kind == "zero-row file" else {}
    assert [document for document, _, _ in asked(prepared(tmp_path, {name: whole, **empty}))] == ["D 1.", "D 2."]


@pytest.mark.parametrize(
    ("files", "split", "documents", "skipped"),
    [
        ({"train/a.jsonl": 1, "test/a.jsonl": 2}, "train", [1], {"test/a.jsonl": OTHER_SPLIT}),
        ({"data/chat-00-of-01.jsonl": 1, "code-0.jsonl": 2}, "chat", [1], {"code-0.jsonl": OTHER_SPLIT}),
        ({"part-00000-of-00002.jsonl": 1, "part-00001-of-00002.jsonl": 2}, "train", [1, 2], {}),
        (
            {"train_sft-00000-of-00001.jsonl": 1, "test_sft-00000-of-00001.jsonl": 2},
            "train",
            [1],
            {"test_sft-00000-of-00001.jsonl": OTHER_SPLIT},
        ),
        ({"more.jsonl": 2, "train_a.jsonl": 1, "dev.jsonl": 3}, "train", [2, 1], {"dev.jsonl": OTHER_SPLIT}),
        ({"dev-tools.jsonl": 1, "test-kitchen/a.jsonl": 2, "train.jsonl": 3}, "train", [1, 2, 3], {}),
        (
            {"a.jsonl": 1, "Test_0.jsonl": 2, "val-0-of-1-ab1.jsonl": 3},
            "test",
            [2, 1],
            {"val-0-of-1-ab1.jsonl": OTHER_SPLIT},
        ),
        ({"train/a.jsonl": 1, "train.00-of-02.jsonl": 2, "b.jsonl": 3}, "train", [3, 2, 1], {}),
        ({"validation.jsonl": 1, "train.jsonl": 2}, "validation", [1], {"train.jsonl": OTHER_SPLIT}),
        ({"a.jsonl": 1, "b.json": "[]", "c.csv": "id"}, "train", [1], {"b.json": OTHER_FORMAT, "c.csv": OTHER_FORMAT}),
        ({"a.jsonl": 1, **HIDDEN}, "train", [1], {}),
        ({"a.jsonl": 1, "b.jsonl": POINTER}, "train", [1], {"b.jsonl": LFS}),
        ({"a.jsonl": 1, "b.jsonl": "[\n{}\n]"}, "train", [1], {"b.jsonl": ARRAY}),
    ],
)
def test_files_of_a_folder(tmp_path: Path, files: Files, split: str, documents: list[int], skipped: Any) -> None:
    contents = {name: lines(row(one)) if isinstance(one, int) else one for name, one in files.items()}
    store = prepared(tmp_path, contents, split)
    assert [document for document, _, _ in asked(store)] == [f"D {number}." for number in documents]
    assert store.report["files"] == skipped


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({"a.jsonl": json.dumps([row(1)])}, rf"no readable row: a\.jsonl \({ARRAY}\)"),
        ({"a.jsonl": lines(row(1)).encode("utf-16")}, "no readable row: .*not UTF-8"),
        ({"a.jsonl": gzip.compress(lines(row(1)).encode())}, "no readable row: .*not UTF-8"),
        ({"a.parquet": POINTER}, r"no readable row: a\.parquet \(a pointer of Git LFS"),
        ({"a.parquet": b""}, r"no readable row: a\.parquet"),
        ({"test.jsonl": lines(row(1))}, r"no \.parquet or \.jsonl file of split=train, only test\.jsonl: give"),
        (ARROW, r"split=train, only train/data-0.*arrow: give"),
        ({"a.csv": "id"}, r"split=train, only a\.csv: give a folder or file of either"),
        ({"a.jsonl": lines(row(1, answer=2.0))}, r"no usable row \(1 answer of type float\): .* must be text"),
        ({"a.parquet": table({name: text.encode() for name, text in ROW.items()})}, "1 document of type bytes"),
        ({"a.parquet": pyarrow.table([["1"]] * 7, names=["id", *ROW])}, "a.parquet has the column 'id' twice"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(tmp_path: Path, files: Files, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        prepared(tmp_path, files)
    assert "\n" not in str(caught.value)


def test_what_was_lost_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {"a.jsonl": lines(row(1), row(2, answer=None)) + "oops\n", "b.parquet": b""}
    for expected in (1, 0):
        prepared(tmp_path, files)
        said = capsys.readouterr().err
        assert said.count("1 of 2 rows of ") == expected
        assert said.count("1 files and 1 lines were skipped: python -m longctx_rl.data inspect says why") == expected
        files = {}


def test_a_data_set_of_the_hub_without_a_network_keeps_its_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    """The HTTP library's error of a refused connection is not an OSError."""

    def refused(*_: Any, **__: Any) -> None:
        raise HfHubHTTPError.__bases__[0]("connection refused")

    monkeypatch.setattr(HfApi, "dataset_info", refused)
    assert Origin("nobody/nothing", "abc").pinned() == Origin("nobody/nothing", "abc")


def test_a_damaged_book_is_named(tmp_path: Path) -> None:
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "0.parquet").write_bytes(b"PAR1")
    (tmp_path / "a.jsonl").write_text(lines(row(1, document=None)))
    with pytest.raises(ValueError, match=r"books/0\.parquet cannot be read .*: download it again"):
        prepare(Origin(str(tmp_path / "a.jsonl")), TOKENIZER, tmp_path / "cache", tmp_path / "books")
