"""Grading code by running it: the answer is right if it returns what the task's own solution returns.

Inputs are drawn anew for each call, from what the completions of an item say together: nobody can know them
beforehand, all completions of a group get the same, and a resumed run draws them again.
"""

import ast
import builtins
import hashlib
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from random import Random
from typing import Any

from longctx_rl.rewards.answers import grade as exact
from longctx_rl.rewards.judge import GraderUnavailable
from longctx_rl.sandbox.pool import Call, Sandbox, SandboxFailed
from longctx_rl.sandbox.submissions import Submission, extract_code, grade
from longctx_rl.types import CodeTask, Example, Reward

INPUTS = 20
"""Calls of each submission."""
DRAWS: dict[str, Callable[[Random], Any]] = {
    "x": lambda draw: draw.randint(-99, 99),
    "y": lambda draw: draw.randint(-99, 99),
    "values": lambda draw: [draw.randint(-20, 20) for _ in range(draw.randrange(12))],
}
"""Parameter to how its values are drawn."""
EDGES: dict[str, tuple[Any, ...]] = {"x": (0, 1, -1), "y": (0, -1, 1), "values": ([], [7], [-3, -3])}
"""Values that are always among them."""
REFERENCE_SECONDS = 20
"""Of a task's own solution: what takes it longer is broken, not the machine busy."""


class CodeGrader:
    """Runs answers that are code. Close it when it is no longer used.

    Args:
        backend: see ``sandbox.isolation``.
        ranks: processes of this machine that have one each.

    Raises:
        ValueError: generated code cannot be run here.
    """

    def __init__(self, backend: str, *, ranks: int = 1) -> None:
        self.sandbox = Sandbox(backend, ranks=ranks)
        self.backend = self.sandbox.backend

    def __call__(self, answered: Sequence[tuple[str, Example]]) -> list[Reward]:
        """``answer``: 1 if every result is right; ``passed``: share of them that are; ``format``: it defines the
        function; ``recall``: share of the needed helpers that are called; ``hallucinated``: it uses names that exist
        nowhere; ``suspicious``: it shows signs of an attack on the judge.

        Raises:
            GraderUnavailable: no code can be run any more.
        """
        tasks = {example.id: _task(example) for _, example in answered}
        said = {name: "\0".join(text for text, one in answered if one.id == name) for name in tasks}
        inputs = {name: draw_inputs(task, f"{name} {_digest(said[name])}") for name, task in tasks.items()}
        try:
            expected = self._expected(tasks, inputs)
            codes = [extract_code(text, tasks[one.id].entry) for text, one in answered]
            submissions = [
                Submission(code, tasks[one.id].entry, inputs[one.id], expected[one.id], dict(tasks[one.id].modules))
                for code, (_, one) in zip(codes, answered, strict=True)
            ]
            grades = grade(self.sandbox, submissions)
        except SandboxFailed as error:
            raise GraderUnavailable(str(error)) from error
        return [
            Reward(
                float(found.right),
                {
                    "answer": float(found.right),
                    "passed": found.passed / found.total,
                    "suspicious": float(bool(found.suspicious)),
                    "evidence": 0.0,
                }
                | used_names(code, tasks[example.id]),
            )
            for found, code, (_, example) in zip(grades, codes, answered, strict=True)
        ]

    def _expected(self, tasks: dict[str, CodeTask], inputs: dict[str, list[list[Any]]]) -> dict[str, list[Any]]:
        """What each task's own solution returns. It is run where answers are: it may come from a file."""
        calls = [
            Call(task.reference, task.entry, inputs[name], cpu_seconds=REFERENCE_SECONDS)
            for name, task in tasks.items()
        ]
        found = {}
        for name, outcome in zip(tasks, self.sandbox.run(calls), strict=True):
            errors = [result.error for result in outcome.results if result.error]
            if outcome.status != "returned" or errors:
                why = errors[0] if errors else outcome.status
                raise GraderUnavailable(f"the solution of {name} does not run ({why}): leave the item out")
            found[name] = [result.value for result in outcome.results]
        return found

    def close(self) -> None:
        self.sandbox.close()


class ExactGrader:
    """Generated tasks' own graders: code is run, everything else is compared. The answer alone counts.

    Args:
        code: runs answers that are code; None: no item's are.
    """

    def __init__(self, code: CodeGrader | None = None) -> None:
        self._code = code

    def __call__(self, answered: Sequence[tuple[str, Example]]) -> list[Reward]:
        """Scores with their parts. Raises GraderUnavailable when code cannot be run any more."""
        running = [(text, example) for text, example in answered if example.code is not None]
        ran = iter(self._code(running) if self._code is not None and running else ())
        assert self._code is not None or not running
        return [next(ran) if example.code is not None else exact(text, example) for text, example in answered]


def draw_inputs(task: CodeTask, seed: str) -> list[list[Any]]:
    """[n] argument lists of a task's function, none twice while that is possible."""
    draw = Random(seed)
    edges = [EDGES[name] for name in task.parameters]
    found: list[list[Any]] = [list(arguments) for arguments in zip(*edges, strict=True)]
    for _ in range(20 * INPUTS):
        arguments = [DRAWS[name](draw) for name in task.parameters]
        if arguments not in found:
            found.append(arguments)
        if len(found) == INPUTS:
            break
    return found


def used_names(code: str, task: CodeTask) -> dict[str, float]:
    """``format``, ``recall`` and ``hallucinated`` of some code, read from its syntax and never run.

    Hallucinated: an import that neither the task's modules nor Python's library has, an attribute that an imported
    module of the task lacks, or a call of a name that is not defined, imported or built in.
    """
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {"format": 0.0, "recall": 0.0, "hallucinated": 0.0}
    exported = {name: _exported(source) for name, source in task.modules}
    defined = _defined(tree)
    known = defined | set(dir(builtins))
    invented, called = False, set()
    modules: dict[str, frozenset[str]] = {}
    """Names under which modules of the task are known, and what is in them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names = exported.get(node.module or "")
            invented |= (
                (node.module or "").split(".")[0] not in sys.stdlib_module_names
                if names is None
                else any(alias.name not in names and alias.name != "*" for alias in node.names)
            )
            if names and any(alias.name == "*" for alias in node.names):
                known |= names
            called |= {alias.name for alias in node.names if alias.asname and names and _read(tree, alias.asname)}
        elif isinstance(node, ast.Import):
            invented |= any(
                alias.name.split(".")[0] not in sys.stdlib_module_names and alias.name not in exported
                for alias in node.names
            )
            modules |= {
                alias.asname or alias.name: exported[alias.name] for alias in node.names if alias.name in exported
            }
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            called.add(node.id)
        elif isinstance(node, ast.Attribute):
            called.add(node.attr)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            invented |= node.func.id not in known
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            invented |= node.attr not in modules[node.value.id]
    recall = sum(name in called for name in task.helpers) / len(task.helpers) if task.helpers else 1.0
    return {"format": float(task.entry in defined), "recall": recall, "hallucinated": float(invented)}


def _read(tree: ast.AST, name: str) -> bool:
    return any(isinstance(one, ast.Name) and isinstance(one.ctx, ast.Load) and one.id == name for one in ast.walk(tree))


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).hexdigest()


@lru_cache(maxsize=4096)
def _exported(source: str) -> frozenset[str]:
    return frozenset(_defined(ast.parse(source)))


def _defined(tree: ast.AST) -> set[str]:
    """Names that code binds, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                found.add(name)
            case ast.arg(arg=name):
                found.add(name)
            case ast.Name(id=name, ctx=ast.Store()):
                found.add(name)
            case ast.alias(name=name, asname=other):
                found.add(other or name.split(".")[0])
    return found


def _task(example: Example) -> CodeTask:
    if example.code is None:
        raise ValueError(f"{example.id} has no solution to run: grade task {example.task} by match, rouge_l or judge")
    return example.code
