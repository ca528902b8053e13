"""Drills: what follows is the next word of the document, or the right sum; split names stay apart."""

import re

import pytest
from transformers import PreTrainedTokenizerBase

from longctx_rl.data.generators import generate
from longctx_rl.data.generators.names import Split, split_of
from longctx_rl.data.prompts import encode_target
from longctx_rl.policy.loading import load_tokenizer
from longctx_rl.types import Example

FAMILIES = 40


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer("mini-student")


def drills(tokenizer: PreTrainedTokenizerBase, turn: int, split: Split = "train") -> list[tuple[Example, ...]]:
    """Those of one kind; kinds take turns."""
    return [
        generate("drill", family, split=split, length=0, tokenizer=tokenizer, questions=12)
        for family in range(turn, FAMILIES, 4)
    ]


@pytest.mark.parametrize(("turn", "option"), [(0, r"[A-Z][a-z]{2}[A-Z][a-z]{2}"), (1, r"\d")])
def test_the_letter_is_what_stands_behind_the_option(
    tokenizer: PreTrainedTokenizerBase, turn: int, option: str
) -> None:
    for asked in drills(tokenizer, turn):
        letters = {one.question.strip(): one.answer.strip() for one in asked}
        assert sorted(letters.values()) == list("ABCD")
        assert letters == dict(re.findall(rf"({option}) ([A-D])[,.]", asked[0].document))


def test_amounts_are_told_right_behind_whom_they_belong_to(tokenizer: PreTrainedTokenizerBase) -> None:
    for asked in drills(tokenizer, 2):
        assert len(asked) == 4
        for one in asked:
            (subject,) = re.findall(r"^ to (\w+)$", one.question)
            (told,) = re.findall(rf"{subject} (\d)", one.document)
            assert one.answer == f" {told}"


def test_sums_are_right(tokenizer: PreTrainedTokenizerBase) -> None:
    for asked in drills(tokenizer, 3):
        assert len(asked) == 8
        for one in asked:
            first, sign, second = re.findall(r"^ (\d) ([+-]) (\d) =$", one.question)[0]
            total = int(first) + int(second) * (1 if sign == "+" else -1)
            assert one.answer == f" {total}" and 1 <= total <= 9


@pytest.mark.parametrize("split", ["train", "test"])
def test_names_are_those_of_the_split_and_targets_are_short(tokenizer: PreTrainedTokenizerBase, split: Split) -> None:
    for asked in (one for turn in range(4) for one in drills(tokenizer, turn, split)):
        names = re.findall(r"[A-Z][a-z]{2}[A-Z][a-z]{2}", asked[0].document)
        assert {split_of(name) for name in names} <= {split}
        assert all(len(encode_target(tokenizer, one)) <= 2 for one in asked)  # A takes a token for its blank
