"""What a teacher reads instead of the student's prompt."""

import re
from dataclasses import replace

import pytest

from config.composing import config_with
from longctx_rl.config.schema import Config
from longctx_rl.data.generators import generate, ruler, solver
from longctx_rl.data.generators.chronicle import Request
from longctx_rl.data.prompts import encode_text
from longctx_rl.data.source import MiniSource, prompt_ids
from longctx_rl.data.views import KINDS, Views, bm25, evidence_text, retrieved_text, unanswered_slice
from longctx_rl.policy.loading import load_tokenizer
from longctx_rl.types import UNANSWERABLE, Evidence, Example

TOKENIZER = load_tokenizer("mini-student")
TASKS = ("grounding", "multihop", "longform", "longreason", "code")
PROSE = Example(
    id="prose",
    document="Ada was born in Turin. She moved to Oslo.\n\nHer brother Ben stayed in Turin. He kept bees there. "
    + "The weather was fine that year. " * 40
    + "\n\nIn Oslo Ada built a bridge of \u00e9bony wood. "
    + "\u5979\u559c\u6b22\u6865\u3002\u5979\u4e0d\u559c\u6b22\u6c34\u3002",
    question="What did Ada build in Oslo?",
    answer="a bridge",
    task="grounding",
)


def made(task: str, family: int, length: int = 768) -> Example:
    return generate(task, family, split="train", length=length, tokenizer=TOKENIZER)[0]


def viewed(view: str, *overrides: str) -> tuple[Views, MiniSource]:
    config = run_config(view, *overrides)
    source = MiniSource(config, TOKENIZER)
    return Views(config, source, TOKENIZER), source


def run_config(view: str, *overrides: str) -> Config:
    return config_with("+algo=opsd", f"algo.kd.view={view}", "data.lengths=[768]", *overrides)


def text_of(ids: tuple[int, ...]) -> str:
    return str(TOKENIZER.decode(ids))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("family", range(4))
def test_evidence_is_in_the_documents_order_and_answers_the_question(task: str, family: int) -> None:
    example = next(one for later in range(family, 40) if (one := made(task, later)).evidence)
    text = evidence_text(example)
    places = [text.index(item.text) for item in sorted(example.evidence, key=lambda item: item.depth)]
    assert places == sorted(places)
    within = [example.document.index(item.text) for item in sorted(example.evidence, key=lambda item: item.depth)]
    assert within == sorted(within)
    assert len(text) < len(example.document) / 2
    if task in ("multihop", "longform"):
        assert solver.solve(text, example.question) == example.answer
    if task == "code":
        assert example.code is not None
        defined = re.findall(r"from (\w+) import (\w+)", text)
        assert {name for _, name in defined} == {*example.code.helpers}
        assert all(f"# {module}.py\ndef {name}(" in text for module, name in defined)


@pytest.mark.parametrize("shape", ["niah_multikey_2", "niah_multivalue", "vt", "qa_1"])
def test_rulers_needles_are_its_evidence(shape: str) -> None:
    request = Request("ruler", 0, "test", 512, TOKENIZER, 1)
    (example,) = ruler.generate_ruler(request, shape=shape)
    text = evidence_text(example)
    assert text.startswith(example.document.partition("\n")[0])
    assert all(item.text in text for item in example.evidence) and len(text) < len(example.document)


def unanswerable() -> Example:
    return next(example for family in range(40) if not (example := made("grounding", family)).evidence)


@pytest.mark.parametrize("tokens", [64, 256])
def test_a_slice_answers_nothing_and_fits(tokens: int) -> None:
    example = unanswerable()
    assert example.answer == UNANSWERABLE
    text = unanswered_slice(example, tokens, TOKENIZER)
    assert solver.solve(text, example.question) == UNANSWERABLE
    assert tokens / 2 < len(encode_text(TOKENIZER, text)) <= tokens + 8
    assert text.removeprefix("Chronicle. ") in example.document


@pytest.mark.parametrize("tokens", [64, 128, 300])
@pytest.mark.parametrize("example", [made("multihop", 1), made("code", 2), PROSE], ids=["chronicle", "code", "prose"])
def test_retrieved_passages_fit_and_stand_in_the_documents_order(example: Example, tokens: int) -> None:
    text = retrieved_text(example, tokens, TOKENIZER)
    assert text == retrieved_text(example, tokens, TOKENIZER)
    assert 0 < len(encode_text(TOKENIZER, text)) <= tokens + 4  # seams can tokenise differently
    if example is PROSE:
        assert "In Oslo Ada built a bridge" in text
    position = 0
    for word in text.split():
        position = example.document.index(word, position) + 1


def test_retrieval_of_a_short_document_is_the_document() -> None:
    example = made("multihop", 1, 200)
    assert retrieved_text(example, 256, TOKENIZER) == example.document


def test_bm25_equals_its_formula() -> None:
    """Lucene's BM25 with k1 = 1.5 and b = 0.75, written out."""
    import math

    passages, query = [["a", "b", "a"], ["b", "c"], ["c", "c", "d", "e"]], ["a", "c", "z"]
    mean = sum(map(len, passages)) / 3
    expected = []
    for passage in passages:
        score = 0.0
        for term in query:
            df = sum(term in other for other in passages)
            tf = passage.count(term)
            idf = math.log(1 + (3 - df + 0.5) / (df + 0.5))
            score += idf * tf / (tf + 1.5 * (1 - 0.75 + 0.75 * len(passage) / mean))
        expected.append(score)
    assert bm25(passages, query) == pytest.approx(expected, rel=1e-5)
    assert bm25(passages, ["z"]) == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("view", ["evidence", "short", "retrieved", "answer", "closed", "wrong"])
def test_every_view_asks_the_same_question(view: str) -> None:
    views, source = viewed(view, "task=mix", "data=long50", "data.lengths=[768]")
    kinds = set()
    for index in range(12):
        (example,) = source.document(index)
        prompt = views.prompt(example, index)
        assert prompt == views.prompt(example, index)
        assert example.question in text_of(prompt.ids)
        kinds.add(prompt.kind)
        if view in ("evidence", "retrieved", "closed", "wrong") and example.length > 512:
            assert len(prompt.ids) < len(prompt_ids(TOKENIZER, example)) / 2
        if view == "wrong" and example.evidence:
            assert not any(item.text in text_of(prompt.ids) for item in example.evidence)
    assert kinds <= set(KINDS)
    assert view in kinds


def test_short_is_the_same_family_at_another_length() -> None:
    views, source = viewed("short", "algo.kd.view_tokens=200", "task=grounding")
    (example,) = source.document(3)
    short = source.shortened(3, 200)
    assert (short.question, short.answer, short.family_id) == (example.question, example.answer, example.family_id)
    assert [item.text for item in short.evidence] == [item.text for item in example.evidence]
    assert 190 <= len(views.prompt(example, 3).ids) <= 204


def test_the_answer_follows_the_question() -> None:
    views, source = viewed("answer", "algo.kd.answer_prompt='It is {answer}, says {it}.'")
    (example,) = source.document(0)
    text = text_of(views.prompt(example, 0).ids)
    assert f"{example.question}\n\nIt is {example.answer}, says {{it}}." in text
    assert example.document in text


def test_text_to_continue_keeps_its_document() -> None:
    views, source = viewed("evidence", "task=copy")
    (example,) = source.document(0)
    assert views.prompt(example, 0).ids == prompt_ids(TOKENIZER, example)
    assert views.prompt(example, 0).kind == "document"


def test_rows_without_evidence_read_what_retrieval_finds() -> None:
    views, _ = viewed("evidence", "algo.kd.view_tokens=64")
    prompt = views.prompt(PROSE, 0)
    assert prompt.kind == "retrieved" and "built a bridge" in text_of(prompt.ids)
    given = replace(PROSE, evidence=(Evidence("He kept bees there.", "he kept bees there", 0.5),))
    assert views.prompt(given, 0).kind == "evidence" and "bridge" not in text_of(views.prompt(given, 0).ids)


def test_a_row_whose_answer_is_unknown_is_not_taken_for_a_generated_one() -> None:
    views, _ = viewed("evidence", "algo.kd.view_tokens=64")
    assert views.prompt(replace(PROSE, answer=UNANSWERABLE), 0).kind == "retrieved"


def test_evidence_is_ordered_by_its_place_even_where_the_column_is_wrong() -> None:
    quotes = ("He kept bees there.", "Ada was born in Turin.")
    given = replace(PROSE, evidence=tuple(Evidence(quote, quote, 0.0) for quote in quotes))
    assert evidence_text(given) == "Ada was born in Turin.\nHe kept bees there."


@pytest.mark.parametrize(("view", "kind"), [("evidence", "retrieved"), ("answer", "retrieved"), ("wrong", "closed")])
def test_a_view_that_leaves_no_room_for_an_answer_is_replaced(view: str, kind: str) -> None:
    config = run_config(view, "algo.kd.view_tokens=64")
    long = replace(PROSE, answer="a bridge " * 300, evidence=(Evidence(PROSE.document, "a bridge", 0.0),), task="other")

    class Same(MiniSource):
        def document(self, index: int) -> tuple[Example, ...]:
            return (replace(long, family_id=str(index)),)

    source, context = Same(config, TOKENIZER), 200 + config.rollout.max_new_tokens
    assert Views(config, source, TOKENIZER).prompt(long, 0).kind == view
    prompt = Views(config, source, TOKENIZER, context).prompt(long, 0)
    assert prompt.kind == kind and len(prompt.ids) <= 200


BAD = {
    "+algo=opd algo.kd.teacher=initial": "algo.kd.view=evidence",
    "+algo=opsd algo.kd.teacher=policy algo.updates_per_rollout=2": "algo.kd.teacher=ema",
    "+algo=opsd algo.kd.teacher=ema": "algo.kd.ema_half_life=null:",
    "+algo=opsd algo.kd.view_tokens=16": "algo.kd.view_tokens=16",
    "+algo=opsd algo.kd.view=short data=longblocks task=any": "algo.kd.view=retrieved",
    "+algo=opsd algo.kd.view=short data.questions_per_document=2": "data.questions_per_document=2",
    "+algo=opsd algo.kd.view=answer algo.kd.answer_prompt=none": "algo.kd.answer_prompt",
    "+algo=kd algo.kd.view=answer algo.kd.teacher=initial": "+algo=opsd",
    "+algo=kd algo.kd.view=evidence model.teacher_cache=x": "model.teacher_cache=null",
    "+algo=opsd model=mini_fresh": "model.architecture",
    "+algo=dgrpo model.teacher=null": "algo.kd.teacher=initial",
}


@pytest.mark.parametrize(("overrides", "named"), BAD.items(), ids=BAD)
def test_views_without_a_meaning_are_refused(overrides: str, named: str) -> None:
    with pytest.raises(ValueError) as caught:
        config_with(*overrides.split())
    assert named in str(caught.value) and "\n" not in str(caught.value)
