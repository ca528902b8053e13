"""HumanEval and MBPP from local files: problems become items, and answers are graded in the sandbox.

    python -m longctx_rl.evals.functions check FILE [sandbox=rlimit]

checks whether a file can be used on this machine: every reference solution must pass its own test, and no function may
pass with ``pass`` as its body. The file has the columns of openai/human-eval, of MBPP, or of EvalPlus, gzipped or not.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from longctx_rl import cli
from longctx_rl.config.eval import SuiteConfig
from longctx_rl.evals.items import Item
from longctx_rl.rewards.execution import CodeGrader
from longctx_rl.rewards.judge import GraderUnavailable
from longctx_rl.sandbox import probe
from longctx_rl.sandbox.function_tests import FunctionProblem, grade_functions, read_humaneval, read_mbpp, usable
from longctx_rl.sandbox.isolation import Backend
from longctx_rl.sandbox.pool import Sandbox, SandboxFailed
from longctx_rl.sandbox.submissions import extract_code
from longctx_rl.types import Example, Reward

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LABELS = ("python",)
TO_COMPLETE = (
    "Complete the function {entry}. Answer with the whole function in one code block.\n\n```python\n{prompt}\n```"
)
TO_WRITE = "{prompt} Answer with the whole function in one code block."


def problems(config: SuiteConfig, suite: str) -> dict[str, FunctionProblem]:
    """The problems of a suite's file by id, without those that ``without`` excludes.

    Raises:
        ValueError: the file cannot be read, or lacks a problem that ``without`` names.
    """
    assert config.path is not None
    by_id = {problem.id: problem for problem in read_problems(Path(config.path).expanduser())}
    for name in config.without:
        if name not in by_id:
            raise ValueError(f"eval.suites.{suite}.without={name} is not in {config.path}")
    return {name: problem for name, problem in by_id.items() if name not in config.without}


@lru_cache(maxsize=4)
def read_problems(path: Path) -> tuple[FunctionProblem, ...]:
    """The problems of a file in HumanEval's or MBPP's columns. Raises ValueError if it has neither or is missing."""
    if not path.is_file():
        raise ValueError(f"{path} is not a file: give a file with the columns of HumanEval, MBPP or EvalPlus")
    try:
        return tuple(read_humaneval(path))
    except ValueError as no_humaneval:
        try:
            return tuple(read_mbpp(path))
        except ValueError as no_mbpp:
            raise ValueError(f"{no_humaneval}; and {no_mbpp}") from no_mbpp


def read_items(
    suite: str, config: SuiteConfig, first: int, count: int, tokenizer: PreTrainedTokenizerBase
) -> list[Item]:
    """At most ``count`` problems, starting at problem ``first``.

    Raises:
        ValueError: the file cannot be read, or ends before problem ``first``.
    """
    del tokenizer
    available = list(problems(config, suite).values())
    if first >= len(available):
        raise ValueError(f"eval.suites.{suite} has {len(available)} problems: set eval.first below that")
    return [Item(LABELS[0], _example(problem, suite)) for problem in available[first : first + count]]


def _example(problem: FunctionProblem, suite: str) -> Example:
    question = TO_COMPLETE if problem.stub else TO_WRITE
    return Example(
        id=problem.id,
        document="",
        question=question.format(entry=problem.entry, prompt=problem.prompt.rstrip()),
        answer=problem.reference,
        task=suite,
        response=f"```python\n{problem.reference}\n```",
        source=suite,
        family_id=problem.id,
    )


class FunctionGrader:
    """Grades answers by running the file's tests, which stay on the trusted side.

    Args:
        code: the grader whose sandbox runs the answers.
    """

    def __init__(self, config: SuiteConfig, suite: str, code: CodeGrader) -> None:
        self._suite, self._sandbox, self._problems = suite, code.sandbox, problems(config, suite)
        self._inputs: dict[str, list[list[object]]] = {}

    def __call__(self, answered: Sequence[tuple[str, Example]]) -> list[Reward]:
        """Rewards of pairs of answer and example.

        Parts: ``answer`` is 1 if the test passes; ``format`` is 1 if the answer parses as Python; ``suspicious`` is 1
        if it shows signs of an attack on the grader.

        Raises:
            GraderUnavailable: the sandbox no longer runs code, or a problem cannot be graded.
        """
        posed = {example.id: self._problems[example.id] for _, example in answered}
        try:
            self._prepare([problem for name, problem in posed.items() if name not in self._inputs])
            written = [extract_code(text, posed[example.id].entry) for text, example in answered]
            pairs = [
                (posed[example.id].program(code), posed[example.id])
                for code, (_, example) in zip(written, answered, strict=True)
            ]
            grades = grade_functions(self._sandbox, pairs, self._inputs)
        except SandboxFailed as error:
            raise GraderUnavailable(str(error)) from error
        return [
            Reward(
                float(grade.right),
                {
                    "answer": float(grade.right),
                    "format": float(bool(code.strip()) and _is_code(program)),
                    "suspicious": float(bool(grade.suspicious)),
                    "evidence": 0.0,
                },
            )
            for code, (program, _), grade in zip(written, pairs, grades, strict=True)
        ]

    def _prepare(self, new: list[FunctionProblem]) -> None:
        inputs, unusable = usable(self._sandbox, new)
        if unusable:
            name, why = next(iter(unusable.items()))
            raise GraderUnavailable(
                f"{len(unusable)} problems cannot be graded, for example {name} ({why}): exclude them with "
                f"eval.suites.{self._suite}.without=[{','.join(unusable)}]"
            )
        self._inputs |= inputs


def _is_code(code: str) -> bool:
    try:
        ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def check(path: Path, backend: Backend) -> str:
    """Check that every problem of a file can be graded, and report the counts.

    Raises:
        ValueError: the file cannot be read; a reference fails; a function without a body passes.
    """
    listed = read_problems(path)
    try:
        with Sandbox(backend) as sandbox:
            inputs, unusable = usable(sandbox, listed)
            kept = [problem for problem in listed if problem.id in inputs]
            right = grade_functions(sandbox, [(problem.reference, problem) for problem in kept], inputs)
            empty = grade_functions(sandbox, [(without_body(problem), problem) for problem in kept], inputs)
    except SandboxFailed as error:
        raise ValueError(f"{error}: {path} cannot be checked") from error
    wrong = unusable | {problem.id: grade.status for problem, grade in zip(kept, right, strict=True) if not grade.right}
    loose = [problem.id for problem, grade in zip(kept, empty, strict=True) if grade.right]
    report = f"{path}: {len(listed) - len(wrong)} of {len(listed)} reference solutions pass, and {len(loose)} of "
    report += f"{len(kept)} functions whose body is `pass`"
    if wrong or loose:
        causes = [f"{name} ({why})" for name, why in wrong.items()] + [
            f"{name} (passes without a body)" for name in loose
        ]
        names = ",".join([*wrong, *loose])
        raise ValueError(f"{report}; cannot be graded: {', '.join(causes)}. Exclude them with without=[{names}]")
    return report


def without_body(problem: FunctionProblem) -> str:
    """The reference solution, followed by a redefinition of the function with ``pass`` as its body."""
    return f"{problem.reference}\n\ndef {problem.entry}(*arguments, **named):\n    pass\n"


def main() -> None:
    """Entry point."""
    arguments = sys.argv[1:]
    sandboxes = {"auto", *get_args(Backend)}
    chosen = [arg.removeprefix("sandbox=") for arg in arguments if arg.startswith("sandbox=")] or ["auto"]
    files = [arg for arg in arguments if not arg.startswith("sandbox=")]
    asks_for_help = bool({"-h", "--help"} & set(arguments))
    if asks_for_help or len(files) != 2 or files[0] != "check" or not set(chosen) <= sandboxes:
        print(__doc__)
        sys.exit(0 if asks_for_help else cli.UNUSABLE)
    cli.command(lambda: check(Path(files[1]).expanduser(), probe.choose(chosen[0])))


if __name__ == "__main__":
    main()
