"""RULER from its original sources: files in the formats of SQuAD 2.0, HotpotQA and the essays."""

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest

from longctx_rl.config.eval import SuiteConfig
from longctx_rl.data.generators import ruler
from longctx_rl.data.generators.ruler_sources import essay_lines
from longctx_rl.data.prompts import encode_prompt
from longctx_rl.evals.items import Item
from longctx_rl.evals.suites import Plan, items_of
from longctx_rl.files import BYTE_ORDER_MARK
from longctx_rl.policy.loading import load_tokenizer
from longctx_rl.rewards.answers import grade

TOKENIZER = load_tokenizer("mini-student")
PLACES = ("Basel", "Bergen", "Cork", "Delft", "Faro", "Ghent", "Jena", "Linz")


def squad(path: Path) -> Path:
    """Write dev-v2.0.json: articles with paragraphs, whose questions have several answers or none."""

    def paragraph(place: str, number: int) -> dict[str, Any]:
        possible = {
            "id": f"{place}-1",
            "question": f"How many gates has {place}?",
            "is_impossible": False,
            "answers": [{"text": text, "answer_start": 0} for text in (f"{number} gates", f"{number}", f"{number}")],
        }
        impossible = {"id": f"{place}-2", "question": "Why?", "is_impossible": True, "answers": []}
        return {"context": f"The town of {place}\n has {number} gates.", "qas": [impossible, possible]}

    data = [{"title": place, "paragraphs": [paragraph(place, 11 + n)]} for n, place in enumerate(PLACES)]
    path.write_text(json.dumps({"version": "v2.0", "data": data}))
    return path


def hotpot(path: Path) -> Path:
    """Write hotpot_dev_distractor_v1.json: each question with its own paragraphs."""
    rows = [
        {
            "_id": f"5a{n}",
            "question": f"Who founded the twin town of {place}?",
            "answer": f"Lord {place}",
            "supporting_facts": [[place, 0], [f"New {place}", 1], [f"New {place}", 0]],
            "context": [
                [f"Old {place}", ["It is old."]],
                [place, [f"{place} has a twin.", f" It is New {place}."]],
                [f"New {place}", ["It is new.", f" Lord {place} founded it."]],
            ],
            "type": "bridge",
            "level": "hard",
        }
        for n, place in enumerate(PLACES)
    ]
    path.write_text(json.dumps(rows))
    return path


def asked(*labels: str, length: int = 768, items: int = 4, **sources: Path) -> list[Item]:
    given = {name: str(path) for name, path in sources.items()}
    suite = SuiteConfig(labels=labels, lengths=(length,), max_new_tokens=32, **given)
    return items_of("ruler", Plan(suite, items), TOKENIZER)


def test_squad_questions_have_their_paragraph_among_others(tmp_path: Path) -> None:
    found = asked("qa_1", squad=squad(tmp_path / "dev-v2.0.json"))
    assert len({item.example.question for item in found}) == 4 and not any("Why" in i.example.question for i in found)
    for item in found:
        one = item.example
        place = one.question.removeprefix("How many gates has ").removesuffix("?")
        number = 11 + PLACES.index(place)
        assert one.answer.split("\n") == [f"{number} gates", str(number)]
        assert one.document.count(f"The town of {place} has {number} gates.") == 1
        assert sum(one.document.count(f"town of {other} has") > 0 for other in PLACES) > 4
        assert sum(map(len, encode_prompt(TOKENIZER, one))) == pytest.approx(768, rel=0.02)
        assert [f.text for f in one.evidence] == [f"The town of {place} has {number} gates."]
        right, dumped = grade(f"Answer: {number} gates.", one), grade(one.document, one)
        assert (right.score, right.parts["recall"]) == (1.0, 1.0)
        assert (dumped.score, dumped.parts["recall"]) == (0.0, 1.0)
        assert grade(f"Answer: {number + 1}", one).parts["recall"] == 0.0


def test_a_document_is_generated_once(tmp_path: Path) -> None:
    path = squad(tmp_path / "dev-v2.0.json")
    first = asked("qa_1", squad=path)
    before = ruler._document.cache_info().hits
    assert asked("qa_1", squad=path) == first and ruler._document.cache_info().hits == before + len(first)


def test_hotpot_paragraphs_are_complete_and_two_are_evidence(tmp_path: Path) -> None:
    for item in asked("qa_2", hotpot=hotpot(tmp_path / "hotpot.json")):
        one = item.example
        place = one.answer.removeprefix("Lord ")
        for text in (f"Old {place}: It is old.", f"{place}: {place} has a twin. It is New {place}."):
            assert text in one.document
        assert [f.text.partition(":")[0] for f in one.evidence] == [place, f"New {place}"]
        assert grade(one.answer, one).score == 1.0 and grade("Lord Nobody", one).score == 0.0


def test_each_source_replaces_only_its_own_shapes(tmp_path: Path) -> None:
    (tmp_path / "essays").mkdir()
    (tmp_path / "essays" / "a.txt").write_text("Work on hard things. Do you? " * 9 + "word " * 200)
    labels = ("niah_single_1", "niah_single_2", "niah_multikey_1", "qa_1", "qa_2")
    plain = {item.label: item.example for item in asked(*labels, items=1)}
    essays = {item.label: item.example for item in asked(*labels, items=1, essays=tmp_path / "essays")}
    assert {label for label in labels if plain[label] != essays[label]} == {"niah_single_2", "niah_multikey_1"}
    assert "Work on hard things." in essays["niah_single_2"].document
    questions = {item.label: item.example for item in asked(*labels, items=1, squad=squad(tmp_path / "s.json"))}
    assert {label for label in labels if plain[label] != questions[label]} == {"qa_1"}
    (tmp_path / "essays.json").write_text(json.dumps({"text": "Work on hard things. Do you? " * 9}))
    assert "Work on hard things." in asked("niah_single_2", essays=tmp_path / "essays.json")[0].example.document


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("squad", None, r"eval\.suites\.ruler\.squad=.* cannot be read \(.*No such file.*\): give SQuAD 2\.0's dev-v2"),
        ("squad", "[]", r"squad=.* cannot be read"),
        ("squad", '{"data": []}', r"squad=.* too few questions or paragraphs: give the whole set"),
        ("squad", "[" * 100_000, r"squad=.* cannot be read \(it is beyond the limits of the JSON parser\): give"),
        (
            "squad",
            '{"data": [{"paragraphs": [{"context": "c", "qas": [7]}]}]}',
            r"a valid data\.0\.paragraphs\.0\.qas\.0",
        ),
        ("hotpot", '[{"question": "q", "answer": 1}]', r"hotpot=.* without a valid 0\.answer \(1\)\): give HotpotQA"),
        ("hotpot", '[{"question": "\\ud83d"}]', r"hotpot=.* \(it is text with an unpaired surrogate\): give"),
        ("hotpot", '{"data": 1}', r"hotpot=.* cannot be read .*give HotpotQA's hotpot_dev_distractor_v1\.json"),
        ("essays", "", r"essays=.* holds no text"),
        ("essays", None, r"essays=.* cannot be read"),
    ],
)
def test_files_of_another_format_are_reported(tmp_path: Path, name: str, content: str | None, sentence: str) -> None:
    path = tmp_path / "file"
    if content is not None:
        path.write_text(content)
    label = {"squad": "qa_1", "hotpot": "qa_2", "essays": "niah_single_2"}[name]
    with pytest.raises(ValueError, match=sentence):
        asked(label, **{name: path})


def test_byte_order_marks_and_hidden_files_are_ignored(tmp_path: Path) -> None:
    marked = squad(tmp_path / "dev.json")
    marked.write_bytes(BYTE_ORDER_MARK + marked.read_bytes())
    assert len(asked("qa_1", squad=marked)) == 4
    essays = tmp_path / "essays"
    essays.mkdir()
    (essays / "a.txt").write_bytes(BYTE_ORDER_MARK + b"One sentence. Another one.")
    (essays / "._a.txt").write_bytes(b"\xff\x00")
    lines = essay_lines(str(essays), Random(0))
    assert {next(lines) for _ in range(4)} == {"One sentence.", "Another one."}


def test_a_length_without_room_for_the_paragraphs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"qa_2 .*raise length=64"):
        asked("qa_2", length=64, hotpot=hotpot(tmp_path / "hotpot.json"))
