"""Is generated code right? It is what returns the expected value for every input. The trusted side."""

import ast
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from longctx_rl.sandbox.pool import Call, Outcome, Sandbox, Status
from longctx_rl.sandbox.values import same

FENCE = re.compile(r"```[^\n`]*\n(.*?)(?:\n```|\Z)", re.DOTALL)
_SUSPICIOUS_NAMES = """
_exit _getframe __eq__ __subclasses__ __globals__ __builtins__ __import__ __code__ __closure__ f_back f_locals
f_globals get_objects get_referrers settrace setprofile exec_module atexit ctypes gc inspect mmap ptrace resource
sitecustomize usercustomize modules vars importlib __doc__ faulthandler subprocess socket signal multiprocessing kill
fork killpg setrecursionlimit
"""
SUSPICIOUS_NAMES = frozenset(_SUSPICIOUS_NAMES.split())
"""Names that an honest solution of a small task has no use for. A metric, never part of the grade."""
SUSPICIOUS_TEXTS = ("/proc", "/dev/fd", "/etc/", "all tests passed", '"outputs"')


@dataclass(frozen=True, slots=True)
class Submission:
    """Code that a model wrote, and what the task asks of it."""

    code: str
    entry: str
    inputs: Sequence[Sequence[Any]]
    """[n] arguments."""
    expected: Sequence[Any]
    """[n] values. They never leave this process."""
    modules: Mapping[str, str] = field(default_factory=dict)
    """What the code can import: name to source."""

    def call(self) -> Call:
        """What the other side gets of it."""
        return Call(self.code, self.entry, self.inputs, self.modules)


@dataclass(frozen=True, slots=True)
class Grade:
    """What a submission is worth."""

    passed: int
    total: int
    status: Status
    suspicious: tuple[str, ...]
    """Signs that the code goes for the judge and not for the task."""

    @property
    def right(self) -> bool:
        """Every input got its expected value."""
        return self.passed == self.total > 0


def grade(sandbox: Sandbox, submissions: Sequence[Submission]) -> list[Grade]:
    """Run and compare. Raises SandboxFailed."""
    outcomes = sandbox.run([one.call() for one in submissions])
    return [compare(one, outcome) for one, outcome in zip(submissions, outcomes, strict=True)]


def compare(submission: Submission, outcome: Outcome) -> Grade:
    """The grade of what came back."""
    assert len(submission.inputs) == len(submission.expected)
    passed = sum(
        not result.error and same(result.value, expected)
        for result, expected in zip(outcome.results, submission.expected, strict=False)
    )
    return Grade(passed, len(submission.expected), outcome.status, suspicious(submission.code))


def extract_code(text: str, entry: str = "") -> str:
    """The last fenced block that defines ``entry``, else the last one, else all of the answer.

    Reasoning before ``</think>`` is left out.
    """
    answer = text.rpartition("</think>")[2].replace("\r\n", "\n")
    blocks = [str(block) for block in FENCE.findall(answer)]
    defining = [block for block in blocks if re.search(rf"^\s*def {re.escape(entry)}\b", block, re.MULTILINE)]
    found = (defining or blocks or [answer.strip("\n")])[-1]
    return textwrap.dedent(found)


def suspicious(code: str) -> tuple[str, ...]:
    """Names and texts in the code that point at an attack, sorted. See SUSPICIOUS_NAMES."""
    found = {text for text in SUSPICIOUS_TEXTS if text in code}
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return tuple(sorted(found))
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
        found |= SUSPICIOUS_NAMES.intersection(names)
        if isinstance(node, ast.Attribute) and node.attr == "exit" and isinstance(node.value, ast.Name):
            found.add(f"{node.value.id}.exit")
    return tuple(sorted(found))
