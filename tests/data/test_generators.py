"""Properties of LongBlocks-mini: one answer, the requested length, nothing shared between train and test."""

import re
import time
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

import longctx_rl.shipped_models
from longctx_rl.data.generators import GENERATORS, generate
from longctx_rl.data.generators.chronicle import token_counter
from longctx_rl.data.generators.names import SYLLABLES, Split, names, syllables
from longctx_rl.data.generators.solver import AmbiguousError, solve
from longctx_rl.data.generators.wording import CORES, OPENERS, QUESTION_OPENERS, RELATIONS, wordings
from longctx_rl.data.prompts import closed_book, encode_prompt, encode_target, encode_text
from longctx_rl.rewards import grade
from longctx_rl.types import UNANSWERABLE, Example

TASKS = ("multihop", "grounding", "longform")
NAME = re.compile(r"\b[A-Z][a-z]{2}[A-Z][a-z]{2}\b")

tasks = st.sampled_from(TASKS)
families = st.integers(0, 999_999)
splits = st.sampled_from(("train", "test"))


@cache
def mini_tokenizer() -> PreTrainedTokenizerBase:
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        Path(longctx_rl.shipped_models.__file__).parent / "mini-student"
    )
    return tokenizer


def examples(task: str, family: int, split: Split, length: int, questions: int = 1) -> tuple[Example, ...]:
    return generate(task, family, split=split, length=length, tokenizer=mini_tokenizer(), questions=questions)


def sentences(document: str) -> list[str]:
    return [f"{sentence}." for sentence in document.removesuffix(".").split(". ")]


def check(max_examples: int = 20) -> settings:
    return settings(max_examples=max_examples)


@check()
@given(
    st.sampled_from((*TASKS, "lookup", "pairs")),
    families,
    splits,
    st.sampled_from((0, 192, 256, 700)),
    st.integers(1, 5),
)
def test_solver_confirms_every_answer(task: str, family: int, split: Split, length: int, questions: int) -> None:
    for example in examples(task, family, split, length, questions):
        assert solve(example.document, example.question) == example.answer


@check()
@given(tasks, families, splits, st.sampled_from((256, 320, 511, 1024, 2048)), st.sampled_from((1, 4)))
def test_prompt_length_is_met(task: str, family: int, split: Split, length: int, questions: int) -> None:
    first = examples(task, family, split, length, questions)[0]
    assert abs(sum(map(len, encode_prompt(mini_tokenizer(), first))) - length) <= 0.02 * length


@pytest.mark.parametrize("task", TASKS)
def test_prompt_length_is_met_with_little_room_beside_the_core(task: str) -> None:
    for family in range(150):
        (example,) = examples(task, family, "test", 256)
        assert abs(sum(map(len, encode_prompt(mini_tokenizer(), example))) - 256) <= 0.02 * 256


@check(10)
@given(families, st.sampled_from((192, 300, 1024)))
def test_lookup_length_is_met(family: int, length: int) -> None:
    (example,) = examples("lookup", family, "train", length)
    assert not example.chat
    assert abs(sum(map(len, encode_prompt(mini_tokenizer(), example))) - length) <= 0.02 * length


@check()
@given(tasks, families, splits)
def test_length_adds_ordinary_filler_and_nothing_else(task: str, family: int, split: Split) -> None:
    bare, short, long = (examples(task, family, split, length)[0] for length in (0, 256, 1024))
    for example in (short, long):
        assert (example.question, example.answer, example.response) == (bare.question, bare.answer, bare.response)
        assert [(e.text, e.statement) for e in example.evidence] == [(e.text, e.statement) for e in bare.evidence]
        assert example.family_id == bare.family_id
    assert set(sentences(bare.document)) < set(sentences(short.document)) < set(sentences(long.document))
    asked = {part for name in key_names(bare) for part in syllables(name)}
    filler = set(sentences(long.document)) - set(sentences(bare.document))
    assert not any(asked & set(syllables(name)) for sentence in filler for name in NAME.findall(sentence))


def key_names(example: Example) -> set[str]:
    """Return the names that lead to the evidence: that of the question, and those of intermediate steps."""
    return {*NAME.findall(example.question), *(NAME.findall(e.statement)[0] for e in example.evidence)}


@check()
@given(tasks, families, splits, st.sampled_from((0, 256, 1024)))
def test_evidence_depth_is_correct(task: str, family: int, split: Split, length: int) -> None:
    (example,) = examples(task, family, split, length)
    total = len(encode_text(mini_tokenizer(), example.document))
    assert example.evidence or example.answer == UNANSWERABLE
    for evidence in example.evidence:
        assert example.document.count(evidence.text) == 1
        before = example.document[: example.document.index(evidence.text)].rstrip()
        assert evidence.depth == pytest.approx(len(encode_text(mini_tokenizer(), before)) / total)


def test_depths_cover_the_document_evenly() -> None:
    depths = [examples("multihop", family, "train", 512)[0].evidence[0].depth for family in range(100)]
    for quarter in range(4):
        assert 0.15 < sum(quarter <= 4 * depth < quarter + 1 for depth in depths) / len(depths) < 0.35


def test_train_and_test_share_no_name_but_all_syllables() -> None:
    train, test = names("train"), names("test")
    assert not set(train) & set(test)
    assert len(test) / (len(train) + len(test)) == pytest.approx(0.2, abs=0.02)
    for place in (0, 1):
        assert {syllables(name)[place] for name in train} == set(SYLLABLES)


def test_train_and_test_share_no_wording_but_all_parts() -> None:
    for openers in (OPENERS, QUESTION_OPENERS):
        train, test = wordings("train", openers), wordings("test", openers)
        assert not set(train) & set(test)
        assert {opener for opener, _ in train} == set(openers)
        assert {core for _, core in train} == {core for _, core in test} == {0, 1, 2}


@check(10)
@given(st.sampled_from(tuple(GENERATORS)), families)
def test_documents_use_names_and_wordings_of_their_split(task: str, family: int) -> None:
    kept: dict[Split, set[str]] = {"train": set(), "test": set()}
    for split in kept:
        for example in examples(task, family, split, 1024, 3):
            text = f"{example.document} {example.question} {example.target}"
            neighbours = set(re.findall(r"(?=([A-Z][a-z]{2}[A-Z][a-z]{2}))", text))
            assert not neighbours & set(names({"train": "test", "test": "train"}[split]))
            if task not in ("copy", "code", "longreason"):
                assert set(NAME.findall(text)) <= set(names(split))
                kept[split] |= {NAME.sub("X", sentence) for sentence in sentences(example.document)[1:]}
    assert not kept["train"] & kept["test"]


def test_syllables_are_single_tokens_and_sentences_add_up() -> None:
    tokenizer = mini_tokenizer()
    assert all(len(encode_text(tokenizer, text)) == 1 for part in SYLLABLES for text in (part, f" {part}"))
    assert {len(encode_text(tokenizer, f" {name}")) for name in (*names("train")[:99], *names("test")[:99])} == {2}
    (example,) = examples("longform", 1, "train", 512)
    header, *rest = sentences(example.document)
    parts = encode_text(tokenizer, header) + tuple(i for s in rest for i in encode_text(tokenizer, f" {s}"))
    assert parts == encode_text(tokenizer, example.document)


@check()
@given(tasks, families, splits)
def test_closed_book_reveals_nothing(task: str, family: int, split: Split) -> None:
    (example,) = examples(task, family, split, 256)
    head, question = encode_prompt(mini_tokenizer(), closed_book(example))
    prompt = str(mini_tokenizer().decode(list(head + question)))
    assert example.question in prompt
    assert not any(item in prompt for item in example.answer.split("; "))


@check(10)
@given(st.sampled_from((*TASKS, "lookup", "pairs")), families)
def test_questions_share_one_document_and_differ(task: str, family: int) -> None:
    group = examples(task, family, "train", 512, 4)
    assert len({example.document for example in group}) == 1
    assert len({example.id for example in group}) == len({e.question for e in group}) == len(group)
    assert group[0] == examples(task, family, "train", 512)[0]
    assert len(group) >= (2 if task == "longform" else 4)


def test_traits_of_grounding() -> None:
    group = [examples("grounding", family, "test", 0)[0] for family in range(300)]
    assert 0.18 < sum(e.answer == UNANSWERABLE for e in group) / len(group) < 0.26
    assert 0.2 < sum(" is now " in e.target for e in group) / len(group) < 0.4
    for example in group[:50]:
        asked = NAME.findall(example.question)[0]
        mentioned = set(NAME.findall(example.document)) - {asked}
        assert sum((asked[:3] == other[:3]) != (asked[3:] == other[3:]) for other in mentioned) >= 3
        assert asked in example.document


def test_only_the_journey_is_stated_about_a_traveller() -> None:
    """The account covers all that the document says about its subject: every sentence with the name is a step."""
    for family in range(60):
        for example in examples("longform", family, "train", 1024, 8):
            traveller = NAME.findall(example.question)[0]
            told = {sentence for sentence in sentences(example.document) if traveller in sentence}
            assert told == {evidence.text for evidence in example.evidence}


def test_the_journey_of_another_traveller_scores_low() -> None:
    """The other traveller visits two of the same places."""
    for family in range(150):
        (example,) = examples("longform", family, "test", 0)
        travellers = {NAME.findall(sentence)[0] for sentence in sentences(example.document) if " first " in sentence}
        (other,) = travellers - {NAME.findall(example.question)[0]}
        answer = solve(example.document, f"Tell me: list the stops of {other} in order.")
        assert len(set(answer.split("; ")) & set(example.answer.split("; "))) == 2
        assert grade(f"\nAnswer: {answer}", example).score <= 0.4


def test_hops_and_places_vary() -> None:
    hops = {len(examples("multihop", family, "train", 0)[0].evidence) for family in range(40)}
    places = {examples("longform", family, "train", 0)[0].answer.count(";") + 1 for family in range(40)}
    assert (hops, places) == ({1, 2, 3}, {2, 3, 4})


def test_ids_name_task_split_family_and_length() -> None:
    first, second = examples("multihop", 123, "test", 1024, 2)
    assert (first.id, first.family_id, first.length) == ("multihop-test-000123-L1024", "multihop-test-000123", 1024)
    assert second.id == "multihop-test-000123-L1024-q1"


def test_generation_is_deterministic() -> None:
    assert examples("longform", 7, "train", 300, 3) == examples("longform", 7, "train", 300, 3)
    assert examples("longform", 7, "train", 0)[0].question == "Question: list the stops of LidJav in order."


@check(10)
@given(families, splits)
def test_copy_rows_repeat_distinct_tokens(family: int, split: Split) -> None:
    (example,) = examples("copy", family, split, 64, 4)
    document, question = encode_prompt(mini_tokenizer(), example)
    row = document + question + encode_target(mini_tokenizer(), example)
    assert len(row) == 64
    assert len(set(document)) == len(document)
    (period,) = {len(document) - document.index(question[0])}
    assert 4 <= period <= 24
    gap = len(document) - period
    assert gap <= 8
    assert all(row[i] == row[i - period] for i in range(gap + period, 64))


def test_lookup_target_is_the_value_alone() -> None:
    for example in examples("lookup", 5, "train", 256, 3):
        assert example.target == f" {example.answer}"
        assert len(encode_target(mini_tokenizer(), example)) == 2


def test_pairs_have_few_relations_and_questions_in_both_directions() -> None:
    """At every length, so that only the subject identifies the fact."""
    forward = turned = 0
    for family, length in ((f, length) for f in range(20) for length in (64, 1024)):
        asked = examples("pairs", family, "train", length, 12)
        told = [word for word in re.findall(r"\w+", asked[0].document) if word in RELATIONS]
        assert len(set(told)) <= 3 and len(told) >= length // 18
        assert asked[0].question.startswith(" the ")  # as in the held-out evaluation, which has one question
        forward += sum(example.question.endswith(" is") for example in asked)
        turned += sum(example.question.endswith(" of") for example in asked)
    assert forward > 100 and turned > 100


def test_training_lists_have_many_openers_and_no_held_out_wording() -> None:
    held_out = {f"{opener} {core.format(key='R', subject='X', value='X')}." for opener, core in spelled("test")}
    seen = set()
    for family in range(200):
        for example in examples("pairs", family, "train", 64, 12):
            assert solve(example.document, example.question) == example.answer
        seen |= {re.sub("|".join(RELATIONS), "R", NAME.sub("X", s)) for s in sentences(example.document)[1:]}
    assert not seen & held_out
    assert len(seen) > 50 * len(wordings("train"))


def spelled(split: Split) -> list[tuple[str, str]]:
    return [(opener, CORES["fact"][core]) for opener, core in wordings(split)]


def test_bad_arguments_are_reported_with_the_fix() -> None:
    with pytest.raises(ValueError, match="'poetry': choose one of multihop"):
        examples("poetry", 0, "train", 256)
    with pytest.raises(ValueError, match=r"multihop-train-000000 .*raise length=64"):
        examples("multihop", 0, "train", 64)
    with pytest.raises(ValueError, match=r"questions >= 1.*questions=0"):
        examples("multihop", 0, "train", 256, 0)


def test_solver_rejects_ambiguous_documents() -> None:
    twice = "Chronicle. Note that the mentor of TorVin is KesDal. Note that TorVin's mentor is BelMar."
    with pytest.raises(AmbiguousError):
        solve(twice, "Question: who is the mentor of TorVin?")
    with pytest.raises(AmbiguousError):
        solve("Chronicle. Note that first TorVin left KesDal.", "Tell me: list the stops of TorVin in order.")
    with pytest.raises(ValueError, match="TorVin sang"):
        solve("Chronicle. TorVin sang.", "Question: who is the mentor of TorVin?")


def test_generation_is_fast_enough() -> None:
    examples("multihop", 0, "train", 256)
    start = time.process_time()
    for family in range(100):
        examples("multihop", family, "train", 256)
    assert time.process_time() - start < 1.5


def test_tokens_are_counted_word_by_word() -> None:
    """With line ends and indentation; every generator meets its length by this count."""
    tokenizer, count = mini_tokenizer(), token_counter(mini_tokenizer())
    made = [examples(task, 0, "test", 1024)[0].document for task in ("code", "longreason", "multihop")]
    texts = [*made, " one  two\n\n\n    x\n"]
    for text in texts:
        assert count(text) == len(encode_text(tokenizer, text))
        lines = text.splitlines(keepends=True)
        assert [count(line) for line in lines] == [len(encode_text(tokenizer, line)) for line in lines]
