"""LongReason from a folder and from the Hub's cache, in its own schema; strict letters, floors, unparsed answers."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pyarrow
import pyarrow.parquet
import pytest

from evals.parrot import Parrot
from evals.tables import rows as rows_of
from longctx_rl.config.eval import SuiteConfig
from longctx_rl.evals import summary
from longctx_rl.evals.evaluation import RunSuite
from longctx_rl.evals.items import Item
from longctx_rl.evals.records import read
from longctx_rl.evals.suites import Plan, items_of
from longctx_rl.policy.loading import load_tokenizer
from longctx_rl.rewards.answers import grade
from longctx_rl.types import Example

TOKENIZER = load_tokenizer("mini-student")
LETTERS = "BBBACDE"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def rows(length: str, letters: str = LETTERS) -> list[dict[str, Any]]:
    return [
        {
            "example_idx": f"{number:032x}",
            "question": f"Who came {number}th?",
            "background": f"KesDal came {number}th.",
            "final_inquiry": f"Who came {number}th?\nA. KesDal\nB. TorVin",
            "prompt": f"KesDal came {number}th. ({length})\n\nWho came {number}th?\nA. KesDal\nB. TorVin",
            "answer": letter,
            "analysis": "It is said.",
        }
        for number, letter in enumerate(letters)
    ]


def parquet(folder: Path, *splits: str, letters: str = LETTERS) -> Path:
    (folder / "data").mkdir(parents=True)
    for split in splits:
        table = pyarrow.Table.from_pylist(rows(split, letters)[::-1])
        pyarrow.parquet.write_table(table, folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


def settings(path: Path | str, **changes: Any) -> SuiteConfig:
    config = SuiteConfig(labels=("original", "context"), lengths=(8192, 16384), max_new_tokens=8, path=str(path))
    return replace(config, **changes)


def ask(config: SuiteConfig, items: int = 20, first: int = 0) -> list[Item]:
    return items_of("longreason_hub", Plan(config, items, first), TOKENIZER)


def test_the_same_questions_in_every_split(tmp_path: Path) -> None:
    items = ask(settings(parquet(tmp_path, "original", "8k", "16k")))
    assert [(one.label, one.example.length) for one in items[::7]] == [
        ("original", 0), ("context", 8192), ("context", 16384),
    ]  # fmt: skip
    families = [one.example.family_id for one in items]
    assert families[:7] == families[7:14] == families[14:] and len(set(families)) == 7
    assert len({one.example.id for one in items}) == len(items)
    assert [one.example.answer for one in items[:7]] == list(LETTERS)
    assert items[7].example.document == rows("8k")[0]["prompt"]
    assert [one.floor for one in items] == [pytest.approx(3 / 7)] * 21
    two = ask(settings(tmp_path, labels=("original",)), items=2, first=3)
    assert [one.example.answer for one in two] == ["A", "C"] and two[0].floor == pytest.approx(3 / 7)


def test_jsonl_files_do_as_well(tmp_path: Path) -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows("original"))
    (tmp_path / "original.jsonl").write_text(text)
    assert len(ask(settings(tmp_path, labels=("original",)))) == 7


def hub_cache(folder: Path, *splits: str) -> None:
    """As ``hf download`` leaves it."""
    root = folder / "datasets--lz1bytedance--LongReason"
    parquet(root / "snapshots" / COMMIT, *splits)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(COMMIT)


def test_from_the_cache_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    config = settings("lz1bytedance/LongReason", labels=("original",))
    fetch = "hf download --repo-type dataset lz1bytedance/LongReason"
    with pytest.raises(ValueError, match=f"is not in the Hub's local cache: {fetch}$"):
        ask(config)
    hub_cache(tmp_path, "original")
    items = ask(config)
    assert [one.example.id for one in items] == [f"longreason-{n:032x}-original@{COMMIT[:12]}" for n in range(7)]
    assert ask(replace(config, revision=COMMIT)) == items
    with pytest.raises(ValueError, match=f"{fetch} --revision fedcba$"):
        ask(replace(config, revision="fedcba"))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"path": None}, r"longreason_hub\.path is null: give a folder"),
        ({"path": "/nowhere"}, r"/nowhere .*set eval\.suites\.longreason_hub\.path"),
        ({"labels": ("context",), "lengths": (4096,)}, "lengths=4096 .*8192, 16384, "),
        (
            {"labels": ("expanded",)},
            r"split expanded: .*remove expanded from eval\.suites\.longreason_hub\.labels",
        ),
        ({"labels": ("original", "context"), "lengths": (32768,)}, "32k .*original: download it again"),
    ],
)
def test_refused_settings(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    parquet(tmp_path, "original")
    parquet(tmp_path / "more", "32k", letters="AB")
    with pytest.raises(ValueError, match=sentence):
        ask(replace(settings(tmp_path), **changes))


def test_files_of_something_else(tmp_path: Path) -> None:
    path, config = tmp_path / "original.jsonl", settings(tmp_path, labels=("original",))
    for row, sentence in (
        ({"example_idx": "a", "answer": "A"}, r"prompt: set eval\.suites\.longreason_hub\.path"),
        ({"example_idx": "a", "prompt": "x", "answer": "42"}, "answer of a .*download it again"),
        ([1], r"original\.jsonl cannot be read \(line 1 is not a JSON object"),
    ):
        path.write_text(json.dumps(row) + "\n")
        with pytest.raises(ValueError, match=sentence):
            ask(config)
    for text, cause in (("", "it is empty"), ("\n[" + "[" * 100_000, "line 2 is beyond the limits of the JSON parser")):
        path.write_text(text)
        with pytest.raises(ValueError, match=rf"original\.jsonl cannot be read \({cause}.*: download it again"):
            ask(config)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows("original")) + "\n")
    with pytest.raises(ValueError, match=r"has 7 .*set eval\.first below"):
        ask(config, first=7)


@pytest.mark.parametrize("task", ["longreason", "longreason_hub"])
@pytest.mark.parametrize(
    ("text", "score", "parsed"),
    [
        ("So it was B.\nAnswer: B", 1, 1),
        ("Answer: (B)", 1, 1),
        ("Answer: A\nNo.\nAnswer: B.", 1, 1),
        ("Answer: C", 0, 1),
        ("I cannot decide. A careful reader would say B", 0, 0),
        ("The answer is B", 0, 0),
        ("Answer: A or B", 0, 0),
        ("Answer: TorVin", 0, 0),
        ("Answer: B\nor so", 0, 0),
        ("", 0, 0),
    ],
)
def test_the_last_lines_letter_alone(task: str, text: str, score: float, parsed: float) -> None:
    found = grade(text, Example(id="", document="", question="", answer="B", task=task))
    assert (found.score, found.parts["format"]) == (score, parsed)


def test_a_run_reports_floor_and_unparsed_answers(tmp_path: Path) -> None:
    parquet(tmp_path / "set", "original", "8k", "16k")
    sampler = Parrot()
    suite = RunSuite("longreason_hub", settings(tmp_path / "set"), 0, TOKENIZER, sampler, tmp_path)
    sampler.text = "Answer: B"
    assert suite.size(5) == 15 and suite.size(500) == 21  # there are no more
    metrics = suite.evaluate(0, 500)
    assert metrics["eval/longreason_hub/context/16384"] == pytest.approx(3 / 7) and suite.kept(0, 500) == metrics
    sampler.text = "I cannot decide."
    suite.evaluate(1, 500)
    found: Sequence[Any] = summary.cells(one for one in read(suite.path) if one.step == 1)
    assert [(one.unparsed, one.floor) for one in found] == [(1.0, pytest.approx(3 / 7))] * 3
    table = rows_of(summary.table([one for one in read(suite.path) if one.step == 1]))
    assert [(row["unparsed"], row["floor"]) for row in table] == [("100.0", "42.9")] * 3


def test_the_generated_suite_has_a_floor_of_a_quarter() -> None:
    config = SuiteConfig(labels=("original",), lengths=(0,), max_new_tokens=8)
    assert [one.floor for one in items_of("longreason", Plan(config, 2), TOKENIZER)] == [0.25, 0.25]
