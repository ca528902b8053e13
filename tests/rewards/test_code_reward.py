"""Grading answers that are code: right, wrong, lazy and hallucinated code, and inputs that cannot be known."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from longctx_rl.config.reward import RewardConfig
from longctx_rl.data.generators import generate
from longctx_rl.policy.loading import load_tokenizer
from longctx_rl.rewards import execution as code_module
from longctx_rl.rewards.composed import Answered, Rewarder
from longctx_rl.rewards.execution import INPUTS, CodeGrader, ExactGrader, draw_inputs, used_names
from longctx_rl.rewards.judge import GraderUnavailable
from longctx_rl.sandbox import probe
from longctx_rl.sandbox.pool import Call
from longctx_rl.types import CodeTask, Example

BACKEND = "rlimit" if probe.failure("bwrap") else "bwrap"


@pytest.fixture(scope="module")
def grader() -> Iterator[CodeGrader]:
    found = CodeGrader(BACKEND)
    yield found
    found.close()


@pytest.fixture(scope="module")
def example() -> Example:
    (found,) = generate("code", 0, split="test", length=512, tokenizer=load_tokenizer("mini-student"))
    return found


def test_right_wrong_and_invented(grader: CodeGrader, example: Example) -> None:
    assert example.code is not None
    helper = example.code.helpers[0]
    wrong = "def solve(x):\n    return x"
    invented = f"from Nowhere import {helper}\n\ndef solve(x):\n    return {helper}(x)"
    answers = [example.answer, f"Here it is:\n```python\n{example.answer}\n```", wrong, invented, "no code at all", ""]
    found = grader([(text, example) for text in answers])
    assert [one.score for one in found] == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    assert [one.parts["recall"] for one in found] == [1.0, 1.0, 0.0, pytest.approx(1 / len(example.code.helpers)), 0, 0]
    assert [one.parts["hallucinated"] for one in found] == [0.0, 0.0, 0.0, 1.0, 0.0, 0.0]
    assert [one.parts["format"] for one in found] == [1.0, 1.0, 1.0, 1.0, 0.0, 0.0]
    assert all(one.parts["passed"] in (0.0, 1.0) for one in found[:2])


def test_inputs_are_the_same_within_a_call_and_new_in_the_next(
    grader: CodeGrader, example: Example, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer with hard-coded results for one call's inputs fails in the next call."""
    task = example.code
    assert task is not None
    drawn = []
    plain = draw_inputs

    def noting(task: CodeTask, seed: str) -> list[list[int]]:
        drawn.append(plain(task, seed))
        return drawn[-1]

    monkeypatch.setattr(code_module, "draw_inputs", noting)
    grader([("a", example), ("b", example), ("c", replace(example, id="another"))])
    assert len(drawn) == 2 and drawn[0] != drawn[1]  # one draw per item, whatever its completions
    (outcome,) = grader.sandbox.run([Call(task.reference, task.entry, drawn[0])])
    known = {arguments[0]: result.value for arguments, result in zip(drawn[0], outcome.results, strict=True)}
    (found,) = grader([(f"KNOWN = {known}\ndef solve(x):\n    return KNOWN.get(x)", example)])
    assert found.score == 0.0 and 0 < found.parts["passed"] < 1  # the edge cases are in every draw
    assert plain(task, "a") == plain(task, "a") != plain(task, "b") and len(plain(task, "a")) == INPUTS


def test_edge_cases_are_in_every_draw() -> None:
    task = CodeTask("solve", ("values",), "")
    for seed in range(20):
        assert [[]] in draw_inputs(task, str(seed))
    assert [0, 0] in draw_inputs(CodeTask("solve", ("x", "y"), ""), "s")


def test_a_solution_that_does_not_run_is_no_zero(grader: CodeGrader, example: Example) -> None:
    assert example.code is not None
    broken = replace(example, code=replace(example.code, reference="def solve(x):\n    return 1 // 0"))
    with pytest.raises(GraderUnavailable, match="ZeroDivisionError"):
        grader([(example.answer, broken)])
    with pytest.raises(ValueError, match="match, rouge_l or judge"):
        grader([("x", replace(example, code=None))])


TASK = CodeTask("solve", ("x",), "", ("Tor", "Vin"), (("KesDal", "def Tor(x): pass\ndef Vin(x): pass"),))


@pytest.mark.parametrize(
    ("code", "recall", "hallucinated"),
    [
        ("from KesDal import Tor, Vin\ndef solve(x): return Tor(Vin(x))", 1.0, 0.0),
        ("import KesDal\ndef solve(x): return KesDal.Tor(x)", 0.5, 0.0),
        ("from KesDal import *\ndef solve(x): return Vin(x)", 0.5, 0.0),
        ("from KesDal import Rax\ndef solve(x): return Rax(x)", 0.0, 1.0),
        ("import numpy as np\ndef solve(x): return np.abs(x)", 0.0, 1.0),
        ("import math\ndef solve(x): return math.floor(sorted([x])[0])", 0.0, 0.0),
        ("def solve(x): return Tor(x)", 0.5, 1.0),
        ("from KesDal import Tor as t\ndef solve(x): return t(x)", 0.5, 0.0),
        ("from KesDal import Tor as t\ndef solve(x): return x", 0.0, 0.0),
        ("import KesDal as k\ndef solve(x): return k.Tor(k.Vin(x))", 1.0, 0.0),
        ("import KesDal\ndef solve(x): return KesDal.Rax(x)", 0.0, 1.0),
        ("from collections.abc import Iterable\nimport os.path\ndef solve(x): return x", 0.0, 0.0),
        ("def solve(x):\n    f = lambda y: y\n    return f(x)", 0.0, 0.0),
        ("class A: pass\ndef solve(x, *, key=None): return key(A())", 0.0, 0.0),
    ],
)
def test_names_that_code_uses(code: str, recall: float, hallucinated: float) -> None:
    found = used_names(code, TASK)
    assert (found["recall"], found["hallucinated"]) == (recall, hallucinated)


def test_rewards_and_evaluation_run_code_beside_other_tasks(grader: CodeGrader, example: Example) -> None:
    (other,) = generate("multihop", 0, split="test", length=256, tokenizer=load_tokenizer("mini-student"))
    config = RewardConfig(
        name="exact",
        graders={"code": "execution", "multihop": "exact"},
        weights={"answer": 1.0},
        evidence_beta=1.0,
        overlong_tokens=0,
        normalize_per_task=False,
        judge=None,
    )
    answers = [(example.answer, example), (other.target, other), ("nothing", example), ("nothing", other)]
    by_reward = Rewarder(config, 100, grader)([Answered(text, 1, one) for text, one in answers])
    by_task = ExactGrader(grader)(answers)
    assert [one.score for one in by_reward] == [one.score for one in by_task] == [1.0, 1.0, 0.0, 0.0]
    assert by_reward[0].parts["passed"] == 1.0 and "passed" not in by_reward[1].parts
