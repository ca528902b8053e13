"""RULER's shapes: lengths, answers that a reader finds, and scores that dumping does or does not fool."""

import re
from collections import Counter

import pytest
from transformers import PreTrainedTokenizerBase

from longctx_rl.data.generators import ruler
from longctx_rl.data.generators.chronicle import Request
from longctx_rl.data.generators.ruler import SEPARATOR, SHAPES, generate_ruler
from longctx_rl.data.generators.ruler_haystacks import HAYSTACKS
from longctx_rl.data.generators.solver import solve
from longctx_rl.data.prompts import encode_prompt
from longctx_rl.policy.loading import load_tokenizer
from longctx_rl.rewards.answers import ruler_recall, ruler_strict
from longctx_rl.types import Example


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer("mini-student")


def sample(tokenizer: PreTrainedTokenizerBase, shape: str, family: int = 0, length: int = 3072) -> Example:
    (found,) = generate_ruler(Request("ruler", family, "test", length, tokenizer, 1), shape=shape)
    return found


def answers(example: Example) -> list[str]:
    return example.answer.split(SEPARATOR)


def test_there_are_thirteen() -> None:
    assert len(SHAPES) == len(set(SHAPES)) == 13


@pytest.mark.parametrize("shapes", HAYSTACKS)
@pytest.mark.parametrize("length", [512, 2048, 4096])
def test_documents_are_shared_and_have_the_requested_length(
    tokenizer: PreTrainedTokenizerBase, shapes: tuple[str, ...], length: int
) -> None:
    for family in range(3):
        asked = [sample(tokenizer, shape, family, length) for shape in shapes]
        prompts = [encode_prompt(tokenizer, one) for one in asked]
        assert max(len(document + question) for document, question in prompts) == pytest.approx(length, rel=0.02)
        assert len({document for document, _ in prompts}) == 1
        assert len({one.family_id for one in asked}) == 1
        assert len({one.question for one in asked}) == len({one.id for one in asked}) == len(shapes)


def test_a_document_does_not_depend_on_the_order_of_shapes(tokenizer: PreTrainedTokenizerBase) -> None:
    found = [sample(tokenizer, shape, 5, 2048) for shape in SHAPES]
    ruler._document.cache_clear()
    assert [sample(tokenizer, shape, 5, 2048) for shape in reversed(SHAPES)] == found[::-1]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("length", [512, 3072])
def test_correct_answers_score_and_dumping_does_not(
    tokenizer: PreTrainedTokenizerBase, shape: str, length: int
) -> None:
    for family in range(4):
        one = sample(tokenizer, shape, family, length)
        wanted = answers(one)
        for said in (f"It is {', '.join(wanted)}.", f"{one.document}\nAnswer: {'; '.join(wanted)}"):
            assert ruler_recall(said, wanted) == ruler_strict(said, wanted, one.question) == 1.0
        assert ruler_recall("nothing", wanted) == ruler_strict("nothing", wanted, one.question) == 0.0
        assert ruler_recall(one.document, wanted) == 1.0
        assert ruler_strict(one.document, wanted, one.question) == 0.0, "dumping the document scores"
        assert ruler_strict(f"Answer: {one.document}", wanted, one.question) == 0.0


@pytest.mark.parametrize("shape", SHAPES)
def test_evidence_is_where_the_answer_is(tokenizer: PreTrainedTokenizerBase, shape: str) -> None:
    one = sample(tokenizer, shape)
    assert bool(one.evidence) == (shape not in ("cwe", "fwe"))
    for found in one.evidence:
        assert found.depth == one.document.index(found.text) / len(one.document)


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape.startswith("niah")])
def test_needles_are_found_by_reading(tokenizer: PreTrainedTokenizerBase, shape: str) -> None:
    for family in range(10):
        one = sample(tokenizer, shape, family)
        keys = re.sub(r".*for (.*) mentioned.*", r"\1", one.question).split(", ")
        found = [value for key in keys for value in re.findall(rf"for {re.escape(key)} is: (\S+)\.", one.document)]
        assert sorted(found) == sorted(answers(one))
        assert len(answers(one)) == (4 if shape in ("niah_multivalue", "niah_multiquery") else 1)


def test_the_answer_is_one_of_several_chains_of_variables(tokenizer: PreTrainedTokenizerBase) -> None:
    for family in range(10):
        one = sample(tokenizer, "vt", family)
        value: dict[str, str] = {}
        for name, source in re.findall(r"VAR ([A-Z]{5}) = (?:VAR )?(\w+)", one.document):
            value[name] = value.get(source, source)
        (asked,) = re.findall(r"the value (\d+)", one.question)
        assert {name for name, number in value.items() if number == asked} == set(answers(one))
        assert len(set(value.values())) == 3 and len(value) == 15


@pytest.mark.parametrize(("shape", "count"), [("cwe", 10), ("fwe", 3)])
def test_counts_are_without_ties(tokenizer: PreTrainedTokenizerBase, shape: str, count: int) -> None:
    for family in range(6):
        one = sample(tokenizer, shape, family)
        words = Counter(re.findall(r"\b(?:[bdfghjklmnprstvz][aeiou][lnrsmdkv]){2,3}\b", one.document))
        most = words.most_common(count + 1)
        assert {word for word, _ in most[:count]} == set(answers(one))
        assert most[count - 1][1] > most[count][1]


@pytest.mark.parametrize("shape", ("qa_1", "qa_2"))
def test_the_text_answers_the_questions(tokenizer: PreTrainedTokenizerBase, shape: str) -> None:
    for family in range(10):
        one = sample(tokenizer, shape, family)
        text = one.document.partition("\n")[2].replace("\n", " ")
        assert solve(f"Chronicle. {text}", one.question) == one.answer


def test_scores_by_hand() -> None:
    wanted = ["1234567", "7654321"]
    assert ruler_recall("1234567", wanted) == 0.5 and ruler_recall("1234567", wanted, any_answer=True) == 1.0
    assert ruler_strict("1234567", wanted) == 0.5 and ruler_strict("1234567, 7654321", wanted) == 1.0
    assert ruler_strict("1234567 and 1111111", wanted) == 0.0
    assert ruler_strict("1234567, 7654321 and 1111111", wanted) == 0.5
    assert ruler_strict("1234567, 7654321, 1111111, 2222222, 3333333", wanted) == 0.0
    assert ruler_strict("1111111? 2222222? Answer: 1234567; 7654321", wanted) == 1.0
    assert ruler_strict("Answer: 1234567; 7654321. Answer: 1111111", wanted) == 0.0
    assert ruler_strict("11234567", ["1234567"]) == 0.0 and ruler_recall("11234567", ["1234567"]) == 1.0
    assert ruler_strict("the heir of TorVin is KesDal", ["KesDal"], "who is the heir of TorVin?") == 1.0
    assert ruler_strict("<think>1111111</think>1234567, 7654321", wanted) == 1.0


def test_too_short_a_length_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ValueError, match=r"niah_single_1 and vt .*raise length=64"):
        sample(tokenizer, "vt", length=64)
