"""HumanEval's and MBPP's files as suites: evaluated, graded by running tests, and checked beforehand."""

import gzip
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evals.parrot import Parrot
from longctx_rl.config.eval import SuiteConfig
from longctx_rl.evals import functions
from longctx_rl.evals.evaluation import RunSuite
from longctx_rl.evals.grading import grader_of
from longctx_rl.evals.suites import Plan, items_of
from longctx_rl.policy.loading import load_tokenizer
from longctx_rl.rewards.execution import CodeGrader
from longctx_rl.rewards.judge import GraderUnavailable
from longctx_rl.sandbox import probe
from sandbox.function_problems import HUMANEVAL, MBPP

BACKEND = "rlimit" if probe.failure("bwrap") else "bwrap"
TOKENIZER = load_tokenizer("mini-student")
PLUS: list[dict[str, Any]] = [
    {
        "task_id": "HumanEval/halves",
        "prompt": 'from typing import List\n\n\ndef halves(values: List[float]) -> List[float]:\n    """Half."""\n',
        "entry_point": "halves",
        "canonical_solution": "    return [value / 2 for value in values]\n",
        "base_input": [[[1.0, 2.5]], [[]]],
        "plus_input": [[[0.1] * 3], [[1e9, -3.0]]],
        "atol": 1e-6,
        "contract": "",
    }
]
MBPP_PLUS: list[dict[str, Any]] = [
    {
        "task_id": "Mbpp/900",
        "prompt": '"""\nCount the vowels of a word.\nassert vowels(\'aeb\') == 2\n"""\n',
        "entry_point": "vowels",
        "canonical_solution": "\ndef vowels(word):\n    return sum(letter in 'aeiou' for letter in word)\n",
        "base_input": [["aeb"]],
        "plus_input": [[""], ["xyz"], ["ooo"]],
        "atol": 0,
        "contract": "",
        "assertion": "assert vowels('aeb') == 2",
    }
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def settings(path: Path) -> SuiteConfig:
    return SuiteConfig(labels=("python",), lengths=(0,), max_new_tokens=64, path=str(path))


@pytest.fixture(scope="module")
def code() -> Iterator[CodeGrader]:
    grader = CodeGrader(BACKEND)
    yield grader
    grader.close()


@pytest.mark.parametrize(
    ("suite", "rows"), [("humaneval", HUMANEVAL), ("mbpp", MBPP), ("humaneval", PLUS), ("mbpp", MBPP_PLUS)]
)
def test_references_score_and_other_answers_do_not(
    suite: str, rows: list[Any], tmp_path: Path, code: CodeGrader
) -> None:
    config = settings(write(tmp_path / "a.jsonl.gz", rows))
    items = items_of(suite, Plan(config, 500), TOKENIZER)
    assert len(items) == len(rows)
    grade = grader_of(suite, config, code)
    right = grade([(one.example.target, one.example) for one in items])
    assert [(one.score, one.parts["format"]) for one in right] == [(1.0, 1.0)] * len(items)
    for text in ("I do not know.", "```python\ndef other():\n    pass\n```", ""):
        found = grade([(text, one.example) for one in items])
        assert [one.score for one in found] == [0.0] * len(items)
        assert text.startswith("```") or not any(one.parts["format"] for one in found), "nothing is no code"
    assert all("assert" not in one.example.question for one in items)


def test_answers_of_several_forms(tmp_path: Path, code: CodeGrader) -> None:
    config = settings(write(tmp_path / "a.jsonl", PLUS))
    (item,) = items_of("humaneval", Plan(config, 1), TOKENIZER)
    assert "```python\nfrom typing import List\n\n\ndef halves(" in item.example.question
    grade = grader_of("humaneval", config, code)
    texts = {
        "```python\ndef halves(values: List[float]) -> List[float]:\n    return [v * 0.5 for v in values]\n```": 1.0,
        "    return [v * 0.5 for v in values]": 1.0,  # a base model continues the prompt
        "```\nreturn [v * 0.5 for v in values]\n```": 1.0,
        "def halves(values):\n    return [v * 0.5 + 1e-9 for v in values]": 1.0,  # within the tolerance
        "def halves(values):\n    return [v * 0.5 + 1e-3 for v in values]": 0.0,
        "def halves(values):\n    return tuple(v * 0.5 for v in values)": 0.0,
        "def halves(values):\n    return [0.5, 1.25] if values else []": 0.0,  # right for the first inputs alone
    }
    assert [one.score for one in grade([(text, item.example) for text in texts])] == list(texts.values())


def test_a_run_evaluates_and_keeps(tmp_path: Path, code: CodeGrader) -> None:
    sampler = Parrot()
    suite = RunSuite(
        "humaneval", settings(write(tmp_path / "a.jsonl", HUMANEVAL)), 0, TOKENIZER, sampler, tmp_path, code
    )
    sampler.text = f"```python\n{HUMANEVAL[0]['prompt']}{HUMANEVAL[0]['canonical_solution']}```"
    assert suite.evaluate(0, 500)["eval/humaneval/python/0"] == pytest.approx(1 / len(HUMANEVAL))
    assert suite.size(2) == 2 and suite.size(500) == len(HUMANEVAL)


def test_a_file_is_checked(tmp_path: Path) -> None:
    path = write(tmp_path / "good.jsonl.gz", [*HUMANEVAL, *PLUS])
    assert f"{path}: 6 of 6 " in functions.check(path, BACKEND)
    bad = HUMANEVAL[0] | {"task_id": "bad", "canonical_solution": "    return 7\n"}
    loose = HUMANEVAL[0] | {"task_id": "loose", "test": "def check(candidate):\n    candidate([1])\n"}
    with pytest.raises(ValueError) as error:
        functions.check(write(tmp_path / "bad.jsonl", [HUMANEVAL[0], bad, loose]), BACKEND)
    for part in (
        ": 2 of 3 ",
        "1 of 2 ",
        "bad (AssertionError)",
        "loose (passes without a body)",
        "without=[bad,loose]",
    ):
        assert part in str(error.value)


def test_problems_that_cannot_be_graded_are_excluded_by_name_only(tmp_path: Path, code: CodeGrader) -> None:
    bad = HUMANEVAL[0] | {"task_id": "bad", "canonical_solution": "    return 7\n"}
    config = settings(write(tmp_path / "a.jsonl", [HUMANEVAL[0], bad]))
    items = items_of("humaneval", Plan(config, 9), TOKENIZER)
    with pytest.raises(GraderUnavailable, match=r"bad \(AssertionError\): .*humaneval\.without=\[bad\]"):
        grader_of("humaneval", config, code)([("", one.example) for one in items])
    without = replace(config, without=("bad",))
    kept = items_of("humaneval", Plan(without, 9), TOKENIZER)
    assert [one.example.id for one in kept] == ["plain/0"]
    assert len(grader_of("humaneval", without, code)([("", kept[0].example)])) == 1
    with pytest.raises(ValueError, match=r"humaneval\.without=other .*a\.jsonl"):
        items_of("humaneval", Plan(replace(config, without=("other",)), 9), TOKENIZER)


@pytest.mark.parametrize(("arguments", "code"), [(["check", "--help"], 0), (["--help"], 0), (["check"], 2), ([], 2)])
def test_help(
    arguments: list[str], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["functions", *arguments])
    with pytest.raises(SystemExit) as stopped:
        functions.main()
    printed = capsys.readouterr()
    assert stopped.value.code == code and "check FILE" in printed.out and not printed.err


def test_unusable_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError) as missing:
        functions.check(tmp_path / "missing.jsonl", BACKEND)
    assert str(missing.value).count("missing.jsonl") == 1 and ": give a file" in str(missing.value)
    (tmp_path / "broken.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(ValueError, match="cannot be read as JSON lines"):
        functions.check(tmp_path / "broken.jsonl.gz", BACKEND)
    with pytest.raises(ValueError, match="row 1 has no column test or base_input"):
        functions.check(write(tmp_path / "a.jsonl", [{k: v for k, v in HUMANEVAL[0].items() if k != "test"}]), BACKEND)
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(ValueError, match="has no row"):
        functions.check(tmp_path / "empty.jsonl", BACKEND)
    with pytest.raises(ValueError, match=r"mbpp has 1 .*set eval\.first below"):
        items_of("mbpp", Plan(settings(write(tmp_path / "b.jsonl", MBPP)), 5, 1), TOKENIZER)
