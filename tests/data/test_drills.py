"""Drills: the target is the next word of the document or the correct sum; splits do not share names."""

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
    """Return the drills of one kind; kinds rotate over families."""
    return [
        generate("drill", family, split=split, length=0, tokenizer=tokenizer, questions=12)
        for family in range(turn, FAMILIES, 4)
    ]


@pytest.mark.parametrize(("turn", "option"), [(0, r"[A-Z][a-z]{2}[A-Z][a-z]{2}"), (1, r"\d")])
def test_the_letter_follows_the_option_in_the_document(
    tokenizer: PreTrainedTokenizerBase, turn: int, option: str
) -> None:
    for asked in drills(tokenizer, turn):
        letters = {one.question.strip(): one.answer.strip() for one in asked}
        assert sorted(letters.values()) == list("ABCD")
        assert letters == dict(re.findall(rf"({option}) ([A-D])[,.]", asked[0].document))


def test_amounts_follow_their_owner_in_the_document(tokenizer: PreTrainedTokenizerBase) -> None:
    for asked in drills(tokenizer, 2):
        assert len(asked) == 4
        for one in asked:
            (subject,) = re.findall(r"^ to (\w+)$", one.question)
            (told,) = re.findall(rf"{subject} (\d)", one.document)
            assert one.answer == f" {told}"


def test_sums_are_correct(tokenizer: PreTrainedTokenizerBase) -> None:
    for asked in drills(tokenizer, 3):
        assert len(asked) == 8
        for one in asked:
            first, sign, second = re.findall(r"^ (\d) ([+-]) (\d) =$", one.question)[0]
            total = int(first) + int(second) * (1 if sign == "+" else -1)
            assert one.answer == f" {total}" and 1 <= total <= 9


@pytest.mark.parametrize("split", ["train", "test"])
def test_names_belong_to_the_split_and_targets_are_short(tokenizer: PreTrainedTokenizerBase, split: Split) -> None:
    for asked in (one for turn in range(4) for one in drills(tokenizer, turn, split)):
        names = re.findall(r"[A-Z][a-z]{2}[A-Z][a-z]{2}", asked[0].document)
        assert {split_of(name) for name in names} <= {split}
        assert all(len(encode_target(tokenizer, one)) <= 2 for one in asked)  # " A" takes two tokens
