"""Benchmarks whose tests are code, such as HumanEval and MBPP, read from local files and graded without trusting the
answer.

Grading takes three processes, and the answer's code runs only in the second:

1. the test runs on the reference solution, and the arguments of each call are recorded;
2. the answer is called with the same arguments and returns plain data;
3. the test runs again, on a function that replays those results for those arguments.

So any assertion works, whether or not the solution is unique, and the answer never shares a process with the test.
"""

import ast
import gzip
import io
import re
import textwrap
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longctx_rl.files import mismatch, parse_lines
from longctx_rl.sandbox.pool import Call, Outcome, Sandbox
from longctx_rl.sandbox.submissions import Grade, suspicious

REFERENCE_SECONDS = 20
"""CPU limit of a reference solution or a test: code that takes longer is broken."""
PLUS_TOLERANCE = 1e-6
"""Absolute tolerance of floats where a row has no ``atol``."""
ROW = {
    "task_id": str | int,
    **dict.fromkeys(("prompt", "text", "entry_point", "canonical_solution", "test", "code"), str | None),
    **dict.fromkeys(("test_list", "test_imports"), list[str] | None),
    **dict.fromkeys(("base_input", "plus_input"), list[list[Any]] | None),
    "test_setup_code": str | None,
    "atol": float | None,
}
"""Types of the columns of HumanEval, MBPP and EvalPlus."""
COLLECT = """
import builtins as _builtins, copy as _copy, random as _random

def _collect():
    _random.seed(0)
    calls, results = [], []
    def recorded(*arguments):
        calls.append(_copy.deepcopy(list(arguments)))
        try:
            value = {entry}(*arguments)
        except Exception as error:
            results.append([False, type(error).__name__])
            raise
        results.append([True, _copy.deepcopy(value)])
        return value
    _test(recorded)
    _replay(calls, results)
    return calls

def _replay(calls, results):
    _random.seed(0)
    rest = iter(list(zip(calls, results, strict=True)))
    def replayed(*arguments):
        expected, (fine, value) = next(rest)
        if list(arguments) != expected:
            raise AssertionError("called with other arguments")
        if fine:
            return _copy.deepcopy(value)
        error = getattr(_builtins, value, RuntimeError)
        raise error if isinstance(error, type) and issubclass(error, Exception) else RuntimeError
    _test(replayed)
    if next(rest, None) is not None:
        raise AssertionError("called fewer times")
    return True
"""


@dataclass(frozen=True, slots=True)
class FunctionProblem:
    """A problem of a file: a function to write, and its test."""

    id: str
    prompt: str
    """The text that the model sees."""
    entry: str
    """Name of the function."""
    reference: str
    """A complete solution."""
    test: str
    """Code that defines ``_test(function)``, which raises if the function is wrong."""
    stub: str = ""
    """Code of the prompt, which precedes an answer: imports, helpers, and the function without a body."""

    def program(self, code: str) -> str:
        """Return an answer, which is the whole function or the body that continues the stub, as a complete program."""
        if not self.stub:
            return code
        if re.search(rf"^\s*(?:async\s+)?def\s+{re.escape(self.entry)}\b", code, re.MULTILINE):
            return f"{self.stub}\n\n{code}"
        return f"{self.stub}\n{textwrap.indent(textwrap.dedent(code), '    ')}"

    def checking(self) -> str:
        """Return the code of the first and the third process."""
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
        assert _close(found, wanted), "wrong value"
"""
"""The test of an EvalPlus problem: the answer must return what the solution returns, floats within a tolerance."""


def read_humaneval(path: Path) -> list[FunctionProblem]:
    """Read a file in the format of HumanEval.

    Rows have ``task_id``, ``prompt``, ``entry_point``, ``canonical_solution`` and ``test``, which defines ``check``.
    Rows of EvalPlus have ``base_input`` and ``plus_input`` instead of ``test``.

    Raises:
        ValueError: the file cannot be read, a row lacks a column, or a prompt does not start the function.
    """
    rows = _rows(path, ("task_id", "prompt", "entry_point", "canonical_solution"), ("test", "base_input"))
    for row in rows:
        if f"def {row['entry_point']}" not in row["prompt"]:  # as in MBPP, whose prompts are text
            raise ValueError(f"{path}: the prompt of {row['task_id']} does not contain def {row['entry_point']}")
    return [
        FunctionProblem(
            id=str(row["task_id"]),
            prompt=row["prompt"],
            entry=row["entry_point"],
            reference=row["prompt"] + row["canonical_solution"],
            test=f"{row['test']}\n\n_test = check\n" if row.get("test") and not row.get("plus_input") else _plus(row),
            stub=row["prompt"],
        )
        for row in rows
    ]


def _plus(row: Mapping[str, Any]) -> str:
    """Return the test of a row of EvalPlus."""
    cases = [*(row.get("base_input") or ()), *(row.get("plus_input") or ())]
    return PLUS.format(entry=row["entry_point"], cases=cases, tolerance=row.get("atol") or PLUS_TOLERANCE)


def read_mbpp(path: Path) -> list[FunctionProblem]:
    """Read a file in the format of MBPP.

    Rows have ``task_id``, ``text`` (or ``prompt``), ``code`` and ``test_list``: assertions that call the function. Rows
    of EvalPlus are as in ``read_humaneval``; the assertion at the end of their prompts is dropped.

    The model is told the function's name but sees no test, because an answer can hard-code the tests that it sees.

    Raises:
        ValueError: the file cannot be read, a row lacks a column, or its code defines no function that its tests call.
    """
    problems = []
    for row in _rows(path, ("task_id",), ("code", "base_input")):
        if row.get("base_input") is not None:
            problems.append(_mbpp_plus(path, row))
            continue
        if row.get("test_list") is None:
            raise ValueError(f"{path}: row {row['task_id']} has no column test_list")
        text = row.get("text") or row.get("prompt")
        called = {
            node.func.id
            for test in row["test_list"]
            for node in ast.walk(_tree(path, row, test))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        defined = [node for node in _tree(path, row, row["code"]).body if isinstance(node, ast.FunctionDef)]
        entry = next((node for node in reversed(defined) if node.name in called), None)
        if entry is None or not text:
            raise ValueError(
                f"{path}: row {row['task_id']} has no column text or prompt, or its tests call no function of its code"
            )
        checks = "\n".join(f"    {line}" for test in row["test_list"] for line in test.splitlines())
        setup = row.get("test_setup_code") or "\n".join(row.get("test_imports") or ())
        parameters = ast.unparse(entry.args)
        problems.append(
            FunctionProblem(
                id=str(row["task_id"]),
                prompt=f"{text}\nWrite the function {entry.name}({parameters}).",
                entry=entry.name,
                reference=row["code"],
                test=f"{setup}\n\ndef _test({entry.name}):\n{checks}\n",
            )
        )
    return problems


def _mbpp_plus(path: Path, row: Mapping[str, Any]) -> FunctionProblem:
    """Return the problem of a row of EvalPlus's MBPP."""
    needed = ("prompt", "entry_point", "canonical_solution", "plus_input")
    if missing := [name for name in needed if row.get(name) is None]:
        raise ValueError(f"{path}: row {row['task_id']} has no column {missing[0]}")
    defined = [node for node in _tree(path, row, row["canonical_solution"]).body if isinstance(node, ast.FunctionDef)]
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


def _tree(path: Path, row: Mapping[str, Any], code: str) -> ast.Module:
    """Parse a column with Python code. Raises ValueError if it is not Python."""
    try:
        return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"{path}: row {row['task_id']} has code that is not Python ({error})") from error


def _rows(path: Path, columns: Sequence[str], either: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return the rows of a file, gzipped or not. Each must have all ``columns`` and at least one of ``either``."""
    try:
        data = path.read_bytes()
        lines = io.BytesIO(gzip.decompress(data) if path.suffix == ".gz" else data)
        rows = [line.checked() for line in parse_lines(lines) if not line.blank]
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON lines: {error}") from error
    if not rows:
        raise ValueError(f"{path} has no row")
    for number, row in enumerate(rows, 1):
        if problem := mismatch(row, ROW):
            raise ValueError(f"{path}, row {number} is {problem}")
        for column in columns:
            if row.get(column) is None:
                raise ValueError(f"{path}, row {number} has no column {column}")
        if either and all(row.get(column) is None for column in either):
            raise ValueError(f"{path}, row {number} has no column {' or '.join(either)}")
    return rows


def usable(sandbox: Sandbox, problems: Sequence[FunctionProblem]) -> tuple[dict[str, list[list[Any]]], dict[str, str]]:
    """Return, by id, the arguments with which each problem's test calls the function, and why other problems cannot be
    graded.

    A problem is usable if its reference passes the test, and passes again when its results are replayed. This rules out
    tests that look at what a function modifies, pass keyword arguments, or use values that are not plain data.

    Raises:
        ValueError: two problems have the same id.
        SandboxFailed: workers can no longer be started.
    """
    if len({problem.id for problem in problems}) < len(problems):
        raise ValueError("two problems have the same id: give every problem of the file its own id")
    inputs: dict[str, list[list[Any]]] = {}
    unusable: dict[str, str] = {}
    calls = [Call(problem.checking(), "_collect", [()], cpu_seconds=REFERENCE_SECONDS) for problem in problems]
    for problem, outcome in zip(problems, sandbox.run(calls), strict=True):
        recorded = _value(outcome)
        if isinstance(recorded, list) and recorded:
            inputs[problem.id] = recorded
        else:
            why = outcome.results[0].error if outcome.results else outcome.error
            unusable[problem.id] = why or ("its test never calls the function" if recorded == [] else outcome.status)
    return inputs, unusable


def grade_functions(
    sandbox: Sandbox, answers: Sequence[tuple[str, FunctionProblem]], inputs: Mapping[str, list[list[Any]]]
) -> list[Grade]:
    """Grade answers, each of which is a complete program that defines the problem's function.

    Args:
        inputs: the arguments from ``usable``, by id, for every problem among the answers.

    Raises:
        SandboxFailed: workers can no longer be started.
    """
    ran = sandbox.run([Call(code, problem.entry, inputs[problem.id]) for code, problem in answers])
    replays = [
        Call(
            problem.checking(),
            "_replay",
            [(inputs[problem.id], [[not result.error, result.error or result.value] for result in outcome.results])],
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
    """Return the value of the first call, or None."""
    return outcome.results[0].value if outcome.results else None
