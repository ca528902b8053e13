"""LongReason items: an independent reader finds the correct option in every form; forms differ only in wording."""

import re
from collections import Counter

import pytest
from transformers import PreTrainedTokenizerBase

from longctx_rl.data.generators.chronicle import Request
from longctx_rl.data.generators.longreason import FORMS, LETTERS, Form, generate_longreason
from longctx_rl.data.generators.names import Split
from longctx_rl.data.prompts import encode_prompt
from longctx_rl.policy.loading import load_tokenizer
from longctx_rl.rewards import grade
from longctx_rl.types import Example

NAME = "([A-Z][a-z]{2}[A-Z][a-z]{2}(?:[A-Z][a-z]{2})?)"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer("mini-student")


def items(
    tokenizer: PreTrainedTokenizerBase,
    family: int,
    *,
    length: int = 768,
    form: Form = "context",
    split: Split = "test",
    questions: int = 1,
) -> tuple[Example, ...]:
    return generate_longreason(Request("longreason", family, split, length, tokenizer, questions), form=form)


def read(example: Example) -> str:
    """Return the correct letter, from the text only."""
    text = example.document
    options = {letter: name for name, letter in re.findall(r"(\w+) ([A-D])[,.]", example.question)}
    assert list(options) == list(LETTERS) and len(set(options.values())) == 4
    (question,) = re.findall(r"Question: (.*)\?", example.question)
    if question.startswith("who is the"):
        relations = {}
        for pattern in (
            rf"the (\w+) of {NAME} is {NAME}",
            rf"for {NAME} the (\w+) is {NAME}",
            rf"{NAME}'s (\w+) is {NAME}",
        ):
            for found in re.findall(pattern, text):
                relation, subject = (found[0], found[1]) if pattern.startswith("the") else (found[1], found[0])
                assert (relation, subject) not in relations
                relations[relation, subject] = found[2]
        *asked, subject = question.removeprefix("who is the ").replace(" of the ", " of ").split(" of ")
        for relation in reversed(asked):
            subject = relations[relation, subject]
        answer = subject
    elif question.startswith("who was there"):
        pairs = re.findall(rf"{NAME} (?:came|arrived|was there) before {NAME}", text)
        pairs += [(b, a) for a, b in re.findall(rf"{NAME} (?:came|arrived|was there) after {NAME}", text)]
        known = [(a, b) for a, b in pairs if a in options.values() and b in options.values()]
        side = 0 if question.startswith("who was there first, before") else 1
        ends = {pair[side] for pair in known} - {pair[1 - side] for pair in known}
        (answer,) = ends
        (start,) = re.findall(rf"(?:first, before|last, after) {NAME} and two others", question)
        assert len(known) == 3 and start in options.values() and start != answer
    else:
        amounts = {name: int(n) for name, n in re.findall(rf"(?:to|with|by) {NAME} (\d) tables", text)}
        changes = {
            name: (other, int(n) * (1 if kind == "more" else -1))
            for name, n, kind, other in re.findall(
                rf"(?:to|with|by) {NAME} (\d) (more|fewer) tables [\w ]+ than (?:to|with|by) {NAME}", text
            )
        }
        (person,) = re.findall(rf"how many tables belong to {NAME}", question)
        total = 0
        while person not in amounts:
            person, change = changes[person]
            total += change
        answer = str(total + amounts[person])
    (letter,) = [letter for letter, option in options.items() if option == answer]
    return letter


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_reader_finds_the_correct_option(tokenizer: PreTrainedTokenizerBase, form: Form, split: Split) -> None:
    for family in range(90):
        for one in items(tokenizer, family, form=form, split=split):
            assert read(one) == one.answer
            assert grade(one.target, one).score == 1.0


def test_several_items_in_one_document(tokenizer: PreTrainedTokenizerBase) -> None:
    for family in range(20):
        found = items(tokenizer, family, length=1024, questions=5)
        assert len({one.document for one in found}) == 1 and len({one.id for one in found}) == len(found) >= 4
        assert [read(one) for one in found] == [one.answer for one in found]


def test_forms_share_the_same_item(tokenizer: PreTrainedTokenizerBase) -> None:
    for family in range(12):
        found = [items(tokenizer, family, form=form, length=length)[0] for form in FORMS for length in (512, 2048)]
        assert len({(one.question, one.answer, one.target, one.family_id) for one in found}) == 1
        assert len({tuple(evidence.text for evidence in one.evidence) for one in found}) == 1
        for one in found:
            assert one.evidence and all(one.document.count(evidence.text) == 1 for evidence in one.evidence)
        lengths = [len(one.document) for one in found]
        assert lengths[0] == lengths[1] < lengths[2] == lengths[3] < lengths[4] < lengths[5]


@pytest.mark.parametrize("length", [384, 512, 1024, 4096])
def test_prompts_have_the_requested_length(tokenizer: PreTrainedTokenizerBase, length: int) -> None:
    for family in range(9):
        (one,) = items(tokenizer, family, length=length)
        assert sum(map(len, encode_prompt(tokenizer, one))) == pytest.approx(length, rel=0.02)


def test_letters_and_kinds_are_balanced(tokenizer: PreTrainedTokenizerBase) -> None:
    found = [items(tokenizer, family, form="original")[0] for family in range(600)]
    letters = Counter(one.answer for one in found)
    assert set(letters) == set(LETTERS) and max(letters.values()) < 190
    kinds = Counter(one.family_id.rpartition("-")[2] for one in found)
    assert kinds == {"reading": 200, "logic": 200, "arithmetic": 200}


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("Answer: {right}", 1.0), ("it is so.\nAnswer: {right}.", 1.0), ("Answer: A B C D", 0.0), ("{right}", 0.0),
        ("Answer: {right}\nbut perhaps not", 0.0), ("Answer: A or B or C or D", 0.0), ("", 0.0), ("Answer:", 0.0),
    ],
)  # fmt: skip
def test_only_the_letter_on_the_last_line_counts(tokenizer: PreTrainedTokenizerBase, text: str, score: float) -> None:
    (one,) = items(tokenizer, 1)
    assert grade(text.format(right=one.answer), one).score == score


def test_too_short_a_length_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ValueError, match=r"longreason-test-000000 .*raise length=64"):
        items(tokenizer, 0, length=64)
