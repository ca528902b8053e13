"""Submissions of generated code: right if they return the expected value for every input. The trusted side."""

import ast
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from longctx_rl.sandbox.pool import Call, Outcome, Sandbox, Status
from longctx_rl.sandbox.values import same

FENCE = re.compile(r"(```|~~~)[^\n`]*\n(.*?)(?:\n {0,3}\1|\Z)", re.DOTALL)
"""A block of code in Markdown. It may be part of a list, and its end may be missing."""
_SUSPICIOUS_NAMES = """
_exit _getframe __eq__ __subclasses__ __globals__ __builtins__ __import__ __code__ __closure__ f_back f_locals
f_globals get_objects get_referrers settrace setprofile exec_module atexit ctypes gc inspect mmap ptrace resource
sitecustomize usercustomize modules vars importlib __doc__ faulthandler subprocess socket signal multiprocessing kill
fork killpg setrecursionlimit
"""
SUSPICIOUS_NAMES = frozenset(_SUSPICIOUS_NAMES.split())
"""Names that an honest solution of a small task does not need. They feed a metric, never the grade."""
SUSPICIOUS_TEXTS = ("/proc", "/dev/fd", "/etc/", "all tests passed", '"outputs"')


@dataclass(frozen=True, slots=True)
class Submission:
    """Code that a model wrote, with the task's inputs and expected values."""

    code: str
    entry: str
    inputs: Sequence[Sequence[Any]]
    """[n] The arguments of each call."""
    expected: Sequence[Any]
    """[n] The value that each call must return. These never leave the trusted process."""
    modules: Mapping[str, str] = field(default_factory=dict)
    """Modules that the code can import: name to source."""

    def call(self) -> Call:
        """Return the part that the untrusted side receives."""
        return Call(self.code, self.entry, self.inputs, self.modules)


@dataclass(frozen=True, slots=True)
class Grade:
    """The grade of a submission."""

    passed: int
    total: int
    status: Status
    suspicious: tuple[str, ...]
    """Signs that the code attacks the grader instead of solving the task."""

    @property
    def right(self) -> bool:
        """Whether every input gave its expected value."""
        return self.passed == self.total > 0


def grade(sandbox: Sandbox, submissions: Sequence[Submission]) -> list[Grade]:
    """Run submissions and return their grades, in order. Raises SandboxFailed if workers can no longer be started."""
    outcomes = sandbox.run([submission.call() for submission in submissions])
    return [compare(submission, outcome) for submission, outcome in zip(submissions, outcomes, strict=True)]


def compare(submission: Submission, outcome: Outcome) -> Grade:
    """Return the grade of an outcome."""
    assert len(submission.inputs) == len(submission.expected)
    passed = sum(
        not result.error and same(result.value, expected)
        for result, expected in zip(outcome.results, submission.expected, strict=False)
    )
    return Grade(passed, len(submission.expected), outcome.status, suspicious(submission.code))


def extract_code(text: str, entry: str = "") -> str:
    """Return the last fenced block that defines ``entry``, else the last block, else the whole answer.

    Reasoning before ``</think>`` is dropped.
    """
    answer = text.rpartition("</think>")[2].replace("\r\n", "\n").replace("\r", "\n").replace("\ufeff", "")
    blocks = [str(block) for _, block in FENCE.findall(answer)]
    defining = [block for block in blocks if re.search(rf"^\s*def {re.escape(entry)}\b", block, re.MULTILINE)]
    code = (defining or blocks or [answer.strip("\n")])[-1]
    return textwrap.dedent(code)


def suspicious(code: str) -> tuple[str, ...]:
    """Return the names and texts in the code that suggest an attack, sorted. See SUSPICIOUS_NAMES."""
    signs = {text for text in SUSPICIOUS_TEXTS if text in code}
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return tuple(sorted(signs))
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.FunctionDef(name=name):
                names = [name]
            case ast.Import(names=imports):
                names = [alias.name.split(".")[0] for alias in imports]
            case ast.ImportFrom(module=module, names=imports):
                names = [(module or "").split(".")[0], *(alias.name for alias in imports)]
            case ast.Constant(value=str(text)):
                names = [text]
            case _:
                continue
        signs |= SUSPICIOUS_NAMES.intersection(names)
        if isinstance(node, ast.Attribute) and node.attr == "exit" and isinstance(node.value, ast.Name):
            signs.add(f"{node.value.id}.exit")
    return tuple(sorted(signs))
