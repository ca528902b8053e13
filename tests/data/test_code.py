"""Code items: what a family shares across conditions, prompt lengths, and that only its own helpers solve it."""

import re
from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from longctx_rl.data.generators import generate
from longctx_rl.data.generators.chronicle import Request
from longctx_rl.data.generators.code import CONDITIONS, Condition, Mode, Setting, generate_code
from longctx_rl.data.generators.code_tasks import ENTRY, KINDS, Kind
from longctx_rl.data.generators.helpers import Author
from longctx_rl.data.generators.names import Cast, Split, split_of
from longctx_rl.data.prompts import encode_prompt
from longctx_rl.policy.loading import load_tokenizer
from longctx_rl.rewards.execution import draw_inputs
from longctx_rl.sandbox import probe
from longctx_rl.sandbox.pool import Call, Outcome, Sandbox
from longctx_rl.types import CodeTask, Example

LEVELS = tuple(KINDS)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer("mini-student")


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox("rlimit" if probe.failure("bwrap") else "bwrap", workers=2) as found:
        yield found


def items(
    tokenizer: PreTrainedTokenizerBase,
    family: int = 0,
    *,
    length: int = 512,
    split: Split = "test",
    questions: int = 1,
    condition: Condition = "bury",
    mode: Mode = "call",
    level: int = 0,
) -> tuple[Example, ...]:
    request = Request("code", family, split, length, tokenizer, questions)
    return generate_code(request, Setting(condition, mode, level))


def run(sandbox: Sandbox, codes: Sequence[str], example: Example) -> list[Outcome]:
    """Return the outcomes of several programs on the same inputs."""
    assert example.code is not None
    draw = Random(example.id)
    drawn: dict[str, Any] = {"x": lambda: draw.randint(-99, 99), "y": lambda: draw.randint(-99, 99)}
    drawn["values"] = lambda: [draw.randint(-20, 20) for _ in range(draw.randrange(9))]
    inputs = [[drawn[name]() for name in example.code.parameters] for _ in range(16)]
    return sandbox.run([Call(code, example.code.entry, inputs, dict(example.code.modules)) for code in codes])


@pytest.mark.parametrize("level", LEVELS)
def test_a_family_is_the_same_task_in_every_condition(tokenizer: PreTrainedTokenizerBase, level: int) -> None:
    for family in range(6):
        found = [
            items(tokenizer, family, condition=condition, length=length, level=level)[0]
            for condition in CONDITIONS
            for length in (1024 if level == 0 else 1536, 2048)
        ]
        codes = [one.code for one in found]
        assert all(code is not None for code in codes)
        assert len({(one.question, one.answer, one.family_id) for one in found}) == 1
        assert len({(code.reference, code.helpers) for code in codes if code}) == 1
        assert len({one.id for one in found}) == len(found)


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("level", LEVELS)
def test_definitions_are_in_the_prompt_unless_the_book_is_closed(
    tokenizer: PreTrainedTokenizerBase, condition: Condition, level: int
) -> None:
    (one,) = items(tokenizer, 3, condition=condition, level=level, length=1536)
    assert one.code is not None
    if condition == "closed":
        assert one.document == "" and not one.evidence
        return
    assert len(one.evidence) == len(one.code.helpers)
    assert all(one.document.count(evidence.text) == 1 for evidence in one.evidence)
    depths = [evidence.depth for evidence in one.evidence]
    if condition == "pad":
        assert max(depths) < 0.5
    if condition == "pad_near":
        assert min(depths) > 0.5


@pytest.mark.parametrize("condition", ["pad", "pad_near", "bury", "hard"])
@pytest.mark.parametrize("length", [512, 1024, 4096])
def test_prompts_have_the_requested_length(
    tokenizer: PreTrainedTokenizerBase, condition: Condition, length: int
) -> None:
    for level in LEVELS:
        for family in range(3):
            (one,) = items(
                tokenizer, family, condition=condition, length=length if level == 0 else 2 * length, level=level
            )
            assert sum(map(len, encode_prompt(tokenizer, one))) == pytest.approx(one.length, rel=0.02)


def test_too_short_a_length_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ValueError, match=r"code-test-000000 .*raise length=64"):
        items(tokenizer, length=64)


def test_depths_are_spread(tokenizer: PreTrainedTokenizerBase) -> None:
    depths = [one.evidence[0].depth for family in range(200) for one in items(tokenizer, family, length=1024)]
    assert [sum(low <= depth < low + 0.25 for depth in depths) > 25 for low in (0.0, 0.25, 0.5, 0.75)] == [True] * 4


def test_importable_modules_do_not_reveal_the_helpers(tokenizer: PreTrainedTokenizerBase) -> None:
    """No importable module states its topic, and neither constants nor positions distinguish decoys from helpers."""
    for family in range(5):
        (one,) = items(tokenizer, family, condition="closed", length=0)
        assert one.code is not None
        sources = [source for _, source in one.code.modules]
        names = [name for name, _ in one.code.modules]
        assert len(names) >= 16 and names == sorted(names)
        assert not any('"""' in source or "#" in source for source in sources)
        topics = re.findall(r"the (\w+) of", one.question)
        assert topics and not any(topic in source for topic in topics for source in sources)
        bodies = [source.partition("\n")[2] for source in sources]
        assert len(set(bodies)) > 0.9 * len(bodies)


def test_train_and_test_do_not_share_names(tokenizer: PreTrainedTokenizerBase) -> None:
    for split in ("train", "test"):
        for family in range(5):
            (one,) = items(tokenizer, family, split=split, condition="hard", length=1024)
            assert one.code is not None
            assert {split_of(name) for name, _ in one.code.modules} == {split}
            assert {split_of(name) for name in one.code.helpers} == {split}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("mode", ["call", "inline"])
def test_the_answer_is_correct_and_look_alikes_are_not(
    tokenizer: PreTrainedTokenizerBase, sandbox: Sandbox, level: int, mode: Mode
) -> None:
    """Compares the reference, the recorded answer, and the answer with a look-alike in place of its helper."""
    compared = 0
    for family in range(12):
        (one,) = items(tokenizer, family, level=level, mode=mode, condition="hard", length=0)
        assert one.code is not None
        expected, answer = run(sandbox, [one.code.reference, one.answer], one)
        assert expected.status == "returned" and not any(result.error for result in expected.results)
        assert answer == expected
        if mode == "inline":
            (calling,) = items(tokenizer, family, level=level, condition="hard", length=0)
            (imported,) = run(sandbox, [calling.answer], one)
            assert imported.status == "raised", "helpers can be imported"
            continue
        names = [line.split()[1] for line in one.answer.splitlines() if line.startswith("from ")]
        module = next(name for name in names if name in dict(one.code.modules))
        look_alikes = [
            one.answer.replace(f"from {module} ", f"from {other} ")
            for other, source in one.code.modules
            if other != module and f"def {one.code.helpers[0]}(" in source
        ]
        assert expected not in run(sandbox, look_alikes, one)
        compared += len(look_alikes)
    assert mode == "inline" or compared == 12


@pytest.mark.parametrize("kind", [kind for level in LEVELS for kind in KINDS[level]], ids=lambda kind: kind.what)
def test_every_kind_of_task_needs_each_of_its_helpers(sandbox: Sandbox, kind: Kind) -> None:
    """It returns the same with imported and with inlined helpers; with one helper replaced it does not."""
    author = Author(Random(kind.what), Cast("train"), "train", 1)
    helpers = [author.protagonist(parameters) for parameters in kind.helpers]
    task = kind.about(helpers)
    code = CodeTask(ENTRY, task.parameters, task.inlined(), tuple(one.name for one in helpers))
    inputs = draw_inputs(code, "inputs")
    calls = [Call(task.calling(), ENTRY, inputs, modules={one.module: one.code for one in helpers})]
    for index, parameters in enumerate(kind.helpers):
        others = [*helpers[:index], author.protagonist(parameters), *helpers[index + 1 :]]
        calls.append(Call(kind.about(others).inlined(), ENTRY, inputs))
    expected, called, *wrong = sandbox.run([Call(task.inlined(), ENTRY, inputs), *calls])
    assert expected.status == "returned" and not any(result.error for result in expected.results)
    assert called == expected and all(outcome != expected for outcome in wrong)


def test_the_size_of_a_module_does_not_reveal_the_helpers(tokenizer: PreTrainedTokenizerBase) -> None:
    """Above level 0, modules hold one to three helpers, whether one of them is needed or not."""
    sizes: dict[bool, list[int]] = {True: [], False: []}
    for family in range(16):
        (one,) = items(tokenizer, family, level=1, length=2048)
        assert one.code is not None
        for _, source in one.code.modules:
            needed = any(f"def {name}(" in source for name in one.code.helpers)
            sizes[needed].append(source.count("def "))
    assert set(sizes[True]) == set(sizes[False]) == {1, 2, 3}
    means = [sum(found) / len(found) for found in sizes.values()]
    assert abs(means[0] - means[1]) < 0.4


def test_simple_guesses_do_not_solve_it(tokenizer: PreTrainedTokenizerBase, sandbox: Sandbox) -> None:
    """Guesses with the book closed."""
    guesses = ("return x", "return 0", "return x + 1", "return 2 * x", "return None", "return x % 10")
    for family in range(8):
        (one,) = items(tokenizer, family, condition="closed", length=0)
        assert one.code is not None
        expected, *guessed = run(
            sandbox, [one.code.reference, *(f"def solve(x):\n    {guess}" for guess in guesses)], one
        )
        assert expected not in guessed


def test_further_tasks_need_other_helpers_of_the_document(tokenizer: PreTrainedTokenizerBase, sandbox: Sandbox) -> None:
    found = items(tokenizer, 1, length=1024, questions=6)
    assert 4 <= len(found) <= 6
    assert len({one.document for one in found}) == 1 and len({one.id for one in found}) == len(found)
    names = [name for one in found if one.code for name in one.code.helpers]
    assert len(set(names)) == len(names)
    for one in found:
        assert one.code is not None and all(one.document.count(evidence.text) == 1 for evidence in one.evidence)
        answer, expected = run(sandbox, [one.answer, one.code.reference], one)
        assert answer == expected


def test_a_cast_never_runs_out() -> None:
    cast, draw = Cast("test"), Random(0)
    drawn = [cast.new(draw) for _ in range(3000)]
    assert len(set(drawn)) == 3000 and any(len(name) == 9 for name in drawn)


def test_training_documents_have_code_alone_among_modules_or_beside_prose(tokenizer: PreTrainedTokenizerBase) -> None:
    def conditions(length: int) -> set[str]:
        made = [
            generate("code", family, split="train", length=length, tokenizer=tokenizer, questions=4)
            for family in range(16)
        ]
        return {one.id.split("-")[3] for examples in made for one in examples}

    assert conditions(0) == {"short"}
    assert conditions(512) == {"bury", "pad", "pad_near"}
