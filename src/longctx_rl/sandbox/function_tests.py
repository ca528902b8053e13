"""Benchmarks whose tests are code: HumanEval, MBPP and their like, from local files, graded without believing the
answer.

Three processes, of which the answer's code is in the second alone:

1. the test runs on the reference solution, and what it is called with is noted;
2. the answer is called with the same inputs and hands back plain data;
3. the test runs again, on a function that plays those results back to those inputs.

So any assertion works, unique solution or not, and the answer never meets the test.
"""

import ast
import gzip
import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longctx_rl.sandbox.pool import Call, Outcome, Sandbox
from longctx_rl.sandbox.submissions import Grade, suspicious

REFERENCE_SECONDS = 20
"""Of a reference or a test: what takes it longer is broken."""
PLUS_TOLERANCE = 1e-6
"""Of floats, where a row names no other."""
COLLECT = """
import builtins as _builtins, copy as _copy, random as _random

def _collect():
    _random.seed(0)
    calls, results = [], []
    def noted(*arguments):
        calls.append(_copy.deepcopy(list(arguments)))
        try:
            value = {entry}(*arguments)
        except Exception as error:
            results.append([False, type(error).__name__])
            raise
        results.append([True, _copy.deepcopy(value)])
        return value
    _test(noted)
    _replay(calls, results)
    return calls

def _replay(calls, results):
    _random.seed(0)
    rest = iter(list(zip(calls, results, strict=True)))
    def played(*arguments):
        expected, (fine, value) = next(rest)
        if list(arguments) != expected:
            raise AssertionError("called with something else")
        if fine:
            return _copy.deepcopy(value)
        error = getattr(_builtins, value, RuntimeError)
        raise error if isinstance(error, type) and issubclass(error, Exception) else RuntimeError
    _test(played)
    if next(rest, None) is not None:
        raise AssertionError("called less often")
    return True
"""


@dataclass(frozen=True, slots=True)
class FunctionProblem:
    """A function to write, as the file has it."""

    id: str
    prompt: str
    """What the model sees."""
    entry: str
    reference: str
    """A whole solution."""
    test: str
    """Code that defines ``_test(function)``, which raises if the function is wrong."""
    stub: str = ""
    """Code of the prompt, which stands before an answer: imports, helpers, and the function without a body."""

    def program(self, code: str) -> str:
        """An answer as a whole program: the function, or what continues the prompt."""
        if not self.stub:
            return code
        if re.search(rf"^\s*(?:async\s+)?def\s+{re.escape(self.entry)}\b", code, re.MULTILINE):
            return f"{self.stub}\n\n{code}"
        return f"{self.stub}\n{textwrap.indent(textwrap.dedent(code), '    ')}"

    def checking(self) -> str:
        """The code of the first and third process."""
        return f"{self.reference}\n\n{self.test}\n{COLLECT.format(entry=self.entry)}"


PLUS = """
inf, nan = float("inf"), float("nan")
_solution, _cases, _tolerance = {entry}, {cases!r}, {tolerance!r}

def _close(found, wanted):
    if isinstance(wanted, float) and type(found) in (int, float):
        return found == wanted or abs(found - wanted) <= _tolerance + 1e-7 * abs(wanted)
    if isinstance(wanted, (list, tuple)) and type(found) is type(wanted):
        return len(found) == len(wanted) and all(map(_close, found, wanted))
    return found == wanted

def _test(function):
    for arguments in _cases:
        wanted = _solution(*_copy.deepcopy(arguments))
        found = function(*_copy.deepcopy(arguments))
        assert _close(found, wanted), "another value"
"""
"""EvalPlus's inputs: an answer is right if it returns what the solution returns, floats to a tolerance."""


def read_humaneval(path: Path) -> list[FunctionProblem]:
    """Rows with ``task_id``, ``prompt``, ``entry_point``, ``canonical_solution`` and ``test``, which defines ``check``;
    or EvalPlus's, with ``base_input`` and ``plus_input`` in its place.

    Raises:
        ValueError: the file cannot be read, or a row lacks a column.
    """
    rows = _rows(path, ("task_id", "prompt", "entry_point", "canonical_solution"), ("test", "base_input"))
    for row in rows:
        if f"def {row['entry_point']}" not in row["prompt"]:  # MBPP's, whose prompts are text
            raise ValueError(f"{path}: the prompt of {row['task_id']} does not begin {row['entry_point']}")
    return [
        FunctionProblem(
            id=str(row["task_id"]),
            prompt=row["prompt"],
            entry=row["entry_point"],
            reference=row["prompt"] + row["canonical_solution"],
            test=_plus(row) if "plus_input" in row else f"{row['test']}\n\n_test = check\n",
            stub=row["prompt"],
        )
        for row in rows
    ]


def _plus(row: Mapping[str, Any]) -> str:
    cases = [*row["base_input"], *row["plus_input"]]
    return PLUS.format(entry=row["entry_point"], cases=cases, tolerance=row.get("atol") or PLUS_TOLERANCE)


def read_mbpp(path: Path) -> list[FunctionProblem]:
    """Rows with ``task_id``, ``text`` (or ``prompt``), ``code`` and ``test_list``: assertions that call the function.

    Or EvalPlus's, as in ``read_humaneval``, whose prompts end with an assertion, which is left out.

    The model is told the function's name and sees no test: shown ones can be learnt by heart.

    Raises:
        ValueError: the file cannot be read, a row lacks a column, or its code defines no function.
    """
    found = []
    for row in _rows(path, ("task_id",), ("code", "base_input")):
        if "base_input" in row:
            found.append(_mbpp_plus(path, row))
            continue
        if "test_list" not in row:
            raise ValueError(f"{path}: row {row['task_id']} has no column test_list")
        text = row.get("text") or row.get("prompt")
        called = {
            node.func.id
            for test in row["test_list"]
            for node in ast.walk(ast.parse(test))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        defined = [node for node in ast.parse(row["code"]).body if isinstance(node, ast.FunctionDef)]
        entry = next((node for node in reversed(defined) if node.name in called), None)
        if entry is None or not text:
            raise ValueError(f"{path}: row {row['task_id']} has no text, or its tests call no function of its code")
        checks = "\n".join(f"    {line}" for test in row["test_list"] for line in test.splitlines())
        setup = row.get("test_setup_code") or "\n".join(row.get("test_imports") or ())
        parameters = ast.unparse(entry.args)
        found.append(
            FunctionProblem(
                id=str(row["task_id"]),
                prompt=f"{text}\nWrite the function {entry.name}({parameters}).",
                entry=entry.name,
                reference=row["code"],
                test=f"{setup}\n\ndef _test({entry.name}):\n{checks}\n",
            )
        )
    return found


def _mbpp_plus(path: Path, row: Mapping[str, Any]) -> FunctionProblem:
    if missing := [name for name in ("prompt", "entry_point", "canonical_solution", "plus_input") if name not in row]:
        raise ValueError(f"{path}: row {row['task_id']} has no column {missing[0]}")
    defined = [node for node in ast.parse(row["canonical_solution"]).body if isinstance(node, ast.FunctionDef)]
    function = next((node for node in defined if node.name == row["entry_point"]), None)
    if function is None:
        raise ValueError(f"{path}: the solution of {row['task_id']} does not define {row['entry_point']}")
    lines = row["prompt"].strip().strip("\"'").strip().splitlines()
    text = "\n".join(line for line in lines if not line.startswith("assert "))
    return FunctionProblem(
        id=str(row["task_id"]),
        prompt=f"{text}\nWrite the function {function.name}({ast.unparse(function.args)}).",
        entry=function.name,
        reference=row["canonical_solution"],
        test=_plus(row),
    )


def _rows(path: Path, columns: Sequence[str], either: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Rows of a file, ``.gz`` or not, that have all ``columns`` and one of ``either``."""
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
        rows = [json.loads(line) for line in text.split("\n") if line.strip()]
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON lines: {error}") from error
    if not rows:
        raise ValueError(f"{path} has no row")
    for number, row in enumerate(rows, 1):
        for column in columns:
            if not isinstance(row, dict) or column not in row:
                raise ValueError(f"{path}, row {number} has no column {column}")
        if either and not any(column in row for column in either):
            raise ValueError(f"{path}, row {number} has no column {' or '.join(either)}")
    return rows


def usable(sandbox: Sandbox, problems: Sequence[FunctionProblem]) -> tuple[dict[str, list[list[Any]]], dict[str, str]]:
    """What each problem's test calls its function with, and why other problems cannot be graded, by id.

    Usable is what the reference passes, and passes again when its results are played back: no test that looks at what a
    function changes, gives keywords, or has values that are not plain data.

    Raises:
        ValueError: two problems have one id.
        SandboxFailed: nothing can be run any more.
    """
    if len({problem.id for problem in problems}) < len(problems):
        raise ValueError("two problems have one id: give each file's problems ids of their own")
    inputs: dict[str, list[list[Any]]] = {}
    unusable: dict[str, str] = {}
    calls = [Call(problem.checking(), "_collect", [()], cpu_seconds=REFERENCE_SECONDS) for problem in problems]
    for problem, outcome in zip(problems, sandbox.run(calls), strict=True):
        found = _value(outcome)
        if isinstance(found, list) and found:
            inputs[problem.id] = found
        else:
            why = outcome.results[0].error if outcome.results else outcome.error
            unusable[problem.id] = why or ("its test calls nothing" if found == [] else outcome.status)
    return inputs, unusable


def grade_functions(
    sandbox: Sandbox, answers: Sequence[tuple[str, FunctionProblem]], inputs: Mapping[str, list[list[Any]]]
) -> list[Grade]:
    """Grades of answers, each a whole program that defines the problem's function.

    Args:
        inputs: what ``usable`` found; of every problem here.

    Raises:
        SandboxFailed: nothing can be run any more.
    """
    ran = sandbox.run([Call(code, problem.entry, inputs[problem.id]) for code, problem in answers])
    replays = [
        Call(
            problem.checking(),
            "_replay",
            [(inputs[problem.id], [[not one.error, one.error or one.value] for one in outcome.results])],
            cpu_seconds=REFERENCE_SECONDS,
        )
        for (_, problem), outcome in zip(answers, ran, strict=True)
    ]
    grades = []
    for (code, problem), outcome, verdict in zip(answers, ran, sandbox.run(replays), strict=True):
        right = outcome.status == "returned" and _value(verdict) is True
        total = len(inputs[problem.id])
        grades.append(Grade(total if right else 0, total, outcome.status, suspicious(code)))
    return grades


def _value(outcome: Outcome) -> Any:
    """What the one call returned, or None."""
    return outcome.results[0].value if outcome.results else None
