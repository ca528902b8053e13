"""Grading code by running it: an answer is right if it returns what the task's own solution returns.

Inputs are drawn for each call of the grader, seeded by the text of all completions of an item. No completion can
therefore know its inputs in advance, all completions of a group get the same inputs, and a resumed run draws the same
inputs again.
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
from longctx_rl.sandbox.isolation import Backend
from longctx_rl.sandbox.pool import Call, Sandbox, SandboxFailed
from longctx_rl.sandbox.submissions import Submission, extract_code, grade
from longctx_rl.types import CodeTask, Example, Reward

INPUTS = 20
"""Number of calls of each submission."""
DRAWS: dict[str, Callable[[Random], Any]] = {
    "x": lambda draw: draw.randint(-99, 99),
    "y": lambda draw: draw.randint(-99, 99),
    "values": lambda draw: [draw.randint(-20, 20) for _ in range(draw.randrange(12))],
}
"""How the values of each parameter are drawn, by the parameter's name."""
EDGES: dict[str, tuple[Any, ...]] = {"x": (0, 1, -1), "y": (0, -1, 1), "values": ([], [7], [-3, -3])}
"""Edge cases that are always among the inputs, by the parameter's name."""
REFERENCE_SECONDS = 20
"""CPU limit of a task's own solution: a solution that takes longer is broken, however busy the machine is."""


class CodeGrader:
    """Grades answers that are code by running them. Close it after use.

    Args:
        backend: how the code is isolated, from ``sandbox.probe.choose``.
        ranks: processes on this machine that each have a grader.

    Raises:
        ValueError: no worker can be started.
    """

    def __init__(self, backend: Backend, *, ranks: int = 1) -> None:
        self.sandbox = Sandbox(backend, ranks=ranks)
        self.backend = backend

    def __call__(self, answered: Sequence[tuple[str, Example]]) -> list[Reward]:
        """Return the reward of each answer.

        Parts: ``answer``, 1 if every result is right; ``passed``, the share of results that are right; ``format``,
        whether the code defines the function; ``recall``, the share of the required helpers that it calls;
        ``hallucinated``, whether it uses names that do not exist; ``suspicious``, whether it shows signs of an attack
        on the grader.

        Raises:
            GraderUnavailable: workers can no longer be started, or a task's own solution does not run.
        """
        tasks = {example.id: _task(example) for _, example in answered}
        said = {name: "\0".join(text for text, example in answered if example.id == name) for name in tasks}
        inputs = {name: draw_inputs(task, f"{name} {_digest(said[name])}") for name, task in tasks.items()}
        try:
            expected = self._expected(tasks, inputs)
            codes = [extract_code(text, tasks[example.id].entry) for text, example in answered]
            submissions = [
                Submission(
                    code,
                    tasks[example.id].entry,
                    inputs[example.id],
                    expected[example.id],
                    dict(tasks[example.id].modules),
                )
                for code, (_, example) in zip(codes, answered, strict=True)
            ]
            grades = grade(self.sandbox, submissions)
        except SandboxFailed as error:
            raise GraderUnavailable(str(error)) from error
        return [
            Reward(
                float(result.right),
                {
                    "answer": float(result.right),
                    "passed": result.passed / result.total,
                    "suspicious": float(bool(result.suspicious)),
                    "evidence": 0.0,
                }
                | used_names(code, tasks[example.id]),
            )
            for result, code, (_, example) in zip(grades, codes, answered, strict=True)
        ]

    def _expected(self, tasks: dict[str, CodeTask], inputs: dict[str, list[list[Any]]]) -> dict[str, list[Any]]:
        """Return the results of each task's own solution. It runs in the sandbox because it may come from a file."""
        calls = [
            Call(task.reference, task.entry, inputs[name], cpu_seconds=REFERENCE_SECONDS)
            for name, task in tasks.items()
        ]
        expected = {}
        for name, outcome in zip(tasks, self.sandbox.run(calls), strict=True):
            errors = [result.error for result in outcome.results if result.error]
            if outcome.status != "returned" or errors:
                why = errors[0] if errors else outcome.status
                raise GraderUnavailable(f"the solution of {name} does not run ({why}): drop the item")
            expected[name] = [result.value for result in outcome.results]
        return expected

    def close(self) -> None:
        """Stop the sandbox's workers."""
        self.sandbox.close()


class ExactGrader:
    """The exact graders of generated tasks: code is run, everything else is compared. The score is the answer alone.

    Args:
        code: grades answers that are code; None: no item has such answers.
    """

    def __init__(self, code: CodeGrader | None = None) -> None:
        self._code = code

    def __call__(self, answered: Sequence[tuple[str, Example]]) -> list[Reward]:
        """Return the reward of each answer. Raises GraderUnavailable if code can no longer be run."""
        running = [(text, example) for text, example in answered if example.code is not None]
        ran = iter(self._code(running) if self._code is not None and running else ())
        assert self._code is not None or not running
        return [next(ran) if example.code is not None else exact(text, example) for text, example in answered]


def draw_inputs(task: CodeTask, seed: str) -> list[list[Any]]:
    """Return [n] distinct argument lists for a task's function; n is ``INPUTS``, or less if too many draws repeat."""
    draw = Random(seed)
    edges = [EDGES[name] for name in task.parameters]
    inputs: list[list[Any]] = [list(arguments) for arguments in zip(*edges, strict=True)]
    for _ in range(20 * INPUTS):
        arguments = [DRAWS[name](draw) for name in task.parameters]
        if arguments not in inputs:
            inputs.append(arguments)
        if len(inputs) == INPUTS:
            break
    return inputs


def used_names(code: str, task: CodeTask) -> dict[str, float]:
    """Return ``format``, ``recall`` and ``hallucinated`` of code, from its syntax tree: the code never runs.

    Hallucinated is an import that neither the task's modules nor Python's standard library has, an attribute that an
    imported module of the task lacks, or a call of a name that is not defined, imported or built in.
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
    """Names that refer to modules of the task, and what each module exports."""
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
    return any(
        isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id == name for node in ast.walk(tree)
    )


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).hexdigest()


@lru_cache(maxsize=4096)
def _exported(source: str) -> frozenset[str]:
    return frozenset(_defined(ast.parse(source)))


def _defined(tree: ast.AST) -> set[str]:
    """Return the names that the code binds, at any depth."""
    names: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.arg(arg=name):
                names.add(name)
            case ast.Name(id=name, ctx=ast.Store()):
                names.add(name)
            case ast.alias(name=name, asname=other):
                names.add(other or name.split(".")[0])
    return names


def _task(example: Example) -> CodeTask:
    if example.code is None:
        raise ValueError(f"{example.id} has no solution to run: grade task {example.task} by match, rouge_l or judge")
    return example.code
