"""Problems whose tests are code: references pass; exploits and functions whose body is ``pass`` fail."""

import gzip
import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from longctx_rl.sandbox import function_tests, pool, probe
from longctx_rl.sandbox.function_tests import FunctionProblem, grade_functions, read_humaneval, read_mbpp, usable
from longctx_rl.sandbox.isolation import Backend
from longctx_rl.sandbox.pool import Call, Sandbox
from sandbox.exploits import EXPLOITS, HONEST
from sandbox.function_problems import HUMANEVAL, MBPP

BACKEND: Backend = "rlimit" if probe.failure("bwrap") else "bwrap"


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(BACKEND, workers=2) as found:
        yield found


@pytest.fixture(scope="module")
def problems(tmp_path_factory: pytest.TempPathFactory) -> list[FunctionProblem]:
    folder = tmp_path_factory.mktemp("problems")
    return read_humaneval(write(folder / "a.jsonl", HUMANEVAL)) + read_mbpp(write(folder / "b.jsonl", MBPP))


def without_body(problem: FunctionProblem) -> str:
    return f"{problem.reference}\n\ndef {problem.entry}(*arguments):\n    pass\n"


def grades(sandbox: Sandbox, answers: list[tuple[str, FunctionProblem]]) -> list[bool]:
    inputs, unusable = usable(sandbox, list({problem.id: problem for _, problem in answers}.values()))
    assert not unusable
    return [one.right for one in grade_functions(sandbox, answers, inputs)]


def test_references_pass_and_empty_bodies_fail(sandbox: Sandbox, problems: list[FunctionProblem]) -> None:
    assert all(grades(sandbox, [(one.reference, one) for one in problems]))
    assert not any(grades(sandbox, [(without_body(one), one) for one in problems]))


def test_another_solution_passes(sandbox: Sandbox, problems: list[FunctionProblem]) -> None:
    (several,) = [one for one in problems if one.id.startswith("several")]
    assert grades(sandbox, [("def root(square):\n    return -(square ** 0.5)", several)]) == [True]


def test_an_error_is_played_back_as_itself(sandbox: Sandbox, problems: list[FunctionProblem]) -> None:
    (raises,) = [one for one in problems if one.id.startswith("raises")]
    strict = replace(raises, test=raises.test.replace("except Exception", "except ValueError"))
    wrong = raises.reference.replace("ValueError(x)", "KeyError(x)")
    assert grades(sandbox, [(raises.reference, strict), (wrong, strict)]) == [True, False]


def test_a_result_counts_for_its_own_input_only(sandbox: Sandbox) -> None:
    """The second call takes the first call's result: its recorded input fits the reference but no wrong answer."""
    twice = FunctionProblem(
        "twice", "", "flip", "def flip(x):\n    return -x", "def _test(f):\n    assert f(f(3)) == 3\n"
    )
    wrong = "def flip(x):\n    return {3: 99, -3: 3}[x]"
    assert grades(sandbox, [(twice.reference, twice), (wrong, twice)]) == [True, False]


DOUBLING = FunctionProblem(
    "doubling", "", "double", HONEST, "def _test(f):\n    for x in (3, 10, -4, 1000):\n        assert f(x) == 2 * x\n"
)


@pytest.fixture(scope="module")
def attacks() -> dict[str, list[bool]]:
    """Whether each exploit, and honest code beside it, is right. Several run at once, because some wait for limits."""
    answers = [(code, DOUBLING) for exploit in EXPLOITS.values() for code in (exploit, HONEST)]
    with pytest.MonkeyPatch.context() as patch, Sandbox(BACKEND, workers=4) as sandbox:
        patch.setattr(pool, "GRACE", 1.0)
        patch.setattr(function_tests, "Call", partial(Call, cpu_seconds=1))  # references keep their own limit
        right = grades(sandbox, answers)
    return {name: right[2 * number : 2 * number + 2] for number, name in enumerate(EXPLOITS)}


@pytest.mark.parametrize("name", EXPLOITS)
def test_exploits_fail_here_too(attacks: dict[str, list[bool]], name: str) -> None:
    assert attacks[name] == [False, True]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"reference": "def double(x):\n    return 7"}, "AssertionError"),
        ({"reference": "def double(x"}, "SyntaxError"),
        ({"test": "def _test(f):\n    pass\n"}, "never calls"),
        ({"test": "def _test(f):\n    assert f(x=3) == 6\n"}, "TypeError"),
        (
            {
                "reference": "def double(x):\n    x.append(1)",
                "test": "def _test(f):\n    a = []\n    f(a)\n    assert a\n",
            },
            "AssertionError",
        ),
    ],
)
def test_problems_that_cannot_be_graded_are_named(sandbox: Sandbox, change: dict[str, str], why: str) -> None:
    inputs, unusable = usable(sandbox, [replace(DOUBLING, id="bad", **change), DOUBLING])
    assert list(unusable) == ["bad"] and why in unusable["bad"] and list(inputs) == ["doubling"]
    with pytest.raises(ValueError, match=r"same id.*own id"):
        usable(sandbox, [DOUBLING, DOUBLING])


def test_mbpp_names_the_function_and_shows_no_test(problems: list[FunctionProblem]) -> None:
    assert problems[-1].prompt == "Find the largest of three numbers.\nWrite the function largest(a, b, c=0)."


@pytest.mark.parametrize("quotes", ['"""', "'''"])
def test_mbpp_plus_shows_the_text_alone(tmp_path: Path, quotes: str) -> None:
    """Its prompts are docstrings in either kind of quotes, with an assertion at the end."""
    row = {
        "task_id": "Mbpp/1",
        "prompt": f"{quotes}\nDouble a number.\nassert double(1) == 2\n{quotes}\n",
        "entry_point": "double",
        "canonical_solution": "\ndef double(x):\n    return 2 * x\n",
        "base_input": [[1]],
        "plus_input": [[2]],
    }
    (problem,) = read_mbpp(write(tmp_path / "a.jsonl", [row]))
    assert problem.prompt == "Double a number.\nWrite the function double(x)."


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (HUMANEVAL[0] | {"prompt": 5}, r"row 1 is without a valid prompt \(5\)"),
        (HUMANEVAL[0] | {"canonical_solution": None}, "row 1 has no column canonical_solution"),
        (MBPP[0] | {"test_list": "assert"}, r'row 1 is without a valid test_list \("assert"\)'),
        (MBPP[0] | {"test_list": ["assert ("]}, r"row 7 has code that is not Python \('\(' was never closed"),
        (MBPP[0] | {"code": "def f(:\0"}, r"row 7 has code that is not Python \("),
        (MBPP[0] | {"text": "\ud83d"}, "line 1 is text with an unpaired surrogate"),
        ([1], "row 1 is not a JSON object"),
    ],
)
def test_a_column_of_another_type_is_one_sentence(tmp_path: Path, row: Any, problem: str) -> None:
    path = write(tmp_path / "a.jsonl", [row])
    read = read_mbpp if isinstance(row, dict) and "code" in row else read_humaneval
    with pytest.raises(ValueError, match=rf"{path}.*{problem}") as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_a_damaged_gzip_file_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    whole = gzip.compress(json.dumps(HUMANEVAL[0]).encode() * 3)
    for content in (whole[:5], whole[: len(whole) // 2], whole[:11] + b"\xff\xff" + whole[13:]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{path} cannot be read as JSON lines"):
            read_humaneval(path)


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"missing\.jsonl"):
        read_humaneval(tmp_path / "missing.jsonl")
    with pytest.raises(ValueError, match=r"row 1 .*column test or base_input"):
        read_humaneval(write(tmp_path / "a.jsonl", [{k: v for k, v in HUMANEVAL[0].items() if k != "test"}]))
    with pytest.raises(ValueError, match=r"row 7 .*text or prompt"):
        read_mbpp(write(tmp_path / "b.jsonl", [MBPP[0] | {"test_list": ["assert True"]}]))
    whole = json.dumps(MBPP[0]).encode()
    for broken in (b"oops", b"\xff", b"[" * 100_000, b"9" * 5_000):
        for name, content in (("c.jsonl", whole + b"\n\n" + broken), ("c.jsonl.gz", gzip.compress(broken))):
            (tmp_path / name).write_bytes(content)
            number = 1 if name.endswith("gz") else 3
            with pytest.raises(ValueError, match=rf"{name} cannot be read as JSON lines: line {number} is "):
                read_mbpp(tmp_path / name)
    (tmp_path / "d.jsonl").write_bytes(b"\xef\xbb\xbf\n" + whole)
    assert [problem.id for problem in read_mbpp(tmp_path / "d.jsonl")] == ["7"]
