"""Exact graders: right answers, partial credit only where it is due, and zero for answers that game the grader."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

import longctx_rl.shipped_models
from longctx_rl.config.reward import RewardConfig
from longctx_rl.data.generators import generate
from longctx_rl.rewards import final_answer, grade
from longctx_rl.rewards.answers import GRADERS
from longctx_rl.rewards.composed import Answered, Rewarder
from longctx_rl.types import UNANSWERABLE, Evidence, Example, Reward

STEP = "the mentor of TorVin is KesDal"
HOP = Example(
    id="1",
    document="",
    question="",
    answer="KesDal",
    task="multihop",
    evidence=(Evidence(f"Note that {STEP}.", STEP, 0.5),),
)
JOURNEY = Example(id="2", document="", question="", answer="KesDal; BelMar; RisNus", task="longform")
NAMES = ["KesDal", "BelMar", "RisNus", "TorVin", "GevDov"]


def weighed(text: str, example: Example, evidence_weight: float) -> Reward:
    """Grade a completion with credit for evidence."""
    graders = {"multihop": "exact", "grounding": "exact", "longform": "ordered_list"}
    weights = {"answer": 1.0, "evidence": evidence_weight}
    config = RewardConfig(
        name="test",
        graders=graders,
        weights=weights,
        evidence_beta=1.0,
        overlong_tokens=0,
        normalize_per_task=False,
        judge=None,
    )
    (reward,) = Rewarder(config, max_tokens=100)([Answered(text, 1, example)])
    return reward


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("Answer: KesDal", 1),
        ("So it is.\nAnswer:  KesDal. \n\n", 1),
        ("Answer: BelMar\nAnswer: KesDal", 1),
        ("I say Answer: BelMar, no, Answer: KesDal", 1),
        ("Answer: KesDal\nAnswer: BelMar", 0),
        ("Answer: KesDal\nand more", 0),
        ("Answer: KesDal BelMar", 0),
        ("Answer: KesDal; BelMar", 0),
        ("Answer: " + ", ".join(NAMES), 0),
        ("**Answer:** KesDal", 1),
        ("Answer\uff1a`KesDal`", 1),
        ("Answer: KesDal or KesDal", 0),
        ("Answer: **KesDal** BelMar", 0),
        ("Answer: kesdal", 0),
        ("Answer: KesDalBelMar", 0),
        ("KesDal", 0),
        ("answer: KesDal", 0),
        ("Answer:", 0),
        ("Answer: .", 0),
        ("KesDal\nAnswer:", 0),
        ("", 0),
        (" \n\t\n", 0),
    ],
)
def test_only_the_final_answer_counts(text: str, score: float) -> None:
    assert grade(text, HOP).score == score


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("x\nAnswer: a b. ", "a b"),
        ("Answer: a\nb", None),
        ("Answer:", None),
        ("Answer:\n5", None),
        ("answer: 5", None),
        ("Answer\uff1a5", "5"),
        ("Final Answer: 5", "5"),
        ("### Answer: 5", "5"),
        ("**Answer:** 5", "5"),
        ("**Answer**: 5", "5"),
        ("**Answer: 5.**", "5"),
        ("**Answer: 5**.", "5"),
        ("*Answer:* **5**", "5"),
        ("Answer: `5`", "5"),
        ("Answer: $5$", "5"),
        ("Answer: $5", "$5"),
        ("Answer: \\(5\\)", "5"),
        ("Answer: $\\boxed{\\frac{1}{2}}$.", "\\frac{1}{2}"),
        ("Answer: 5\u200b\n\u200b", "5"),
        ("Answer: \u200b", None),
        ("Answer: \\boxed{}", None),
        ("**Answer:**", None),
        ("**Answer:** **", "**"),
        ("Answer: **kwargs", "**kwargs"),
        ("Answer: __init__", "__init__"),
        ("Answer: 2*3*4", "2*3*4"),
        ("Answer: **5** or **6**", "**5** or **6**"),
        ("Answer: $5$ or $6$", "$5$ or $6$"),
        ("Answer: \\boxed{5} or \\boxed{6}", "\\boxed{5} or \\boxed{6}"),
    ],
)
def test_final_answer(line: str, answer: str | None) -> None:
    assert final_answer(line) == answer


def test_format_says_whether_an_answer_was_found() -> None:
    assert grade("Answer: BelMar", HOP).parts["format"] == 1
    assert grade("BelMar", HOP).parts["format"] == 0


@pytest.mark.parametrize(
    ("answer", "ordered", "unordered"),
    [
        ("KesDal; BelMar; RisNus", 1, 1),
        ("KesDal;BelMar ; RisNus.", 1, 1),
        ("KesDal\uff1bBelMar\uff1bRisNus", 1, 1),
        ("BelMar; KesDal; RisNus", 2 / 3, 1),
        ("KesDal; BelMar", 4 / 5, 4 / 5),
        ("; ".join(NAMES), 6 / 8, 6 / 8),
        ("KesDal; KesDal; BelMar; BelMar; RisNus; RisNus", 6 / 9, 6 / 9),
        ("KesDal BelMar RisNus", 0, 0),
        ("", 0, 0),
        (";;", 0, 0),
    ],
)
def test_longform_is_ordered_f1(answer: str, ordered: float, unordered: float) -> None:
    reward = grade(f"Answer: {answer}", JOURNEY)
    assert reward.score == pytest.approx(ordered)
    assert reward.parts["set_f1"] == pytest.approx(unordered)


def test_dumping_all_permutations_scores_low() -> None:
    dump = "; ".join(NAMES * 5)
    assert grade(f"Answer: {dump}", JOURNEY).score < 0.25


@pytest.mark.parametrize(
    ("reasoning", "evidence"),
    [
        (f"{STEP}.", 1),
        ("", 0),
        (f"{STEP}. {STEP}.", 2 / 3),
        (f"{STEP}. the rival of TorVin is BelMar.", 2 / 3),
        ("the mentor of TorVin is BelMar.", 0),
        (f"{STEP} and so on.", 0),
    ],
)
def test_evidence_is_f1_of_statements(reasoning: str, evidence: float) -> None:
    reward = weighed(f"{reasoning}\nAnswer: KesDal", HOP, evidence_weight=0.5)
    assert reward.parts["evidence"] == pytest.approx(evidence)
    assert reward.score == pytest.approx((1 + 0.5 * evidence) / 1.5)


def test_evidence_in_the_final_line_does_not_count() -> None:
    assert weighed(f"{STEP}. Answer: KesDal", HOP, evidence_weight=1).parts["evidence"] == 0


@pytest.mark.parametrize(
    ("text", "evidence"),
    [
        ("the mentor of TorVin is not stated.\nAnswer: unknown", 1),
        (f"{STEP}.\nAnswer: unknown", 0),
        (f"{STEP} is not stated.\nAnswer: unknown", 0),
        (f"the mentor of TorVin is not stated. {STEP}.\nAnswer: unknown", 2 / 3),
        ("Answer: unknown", 0),
        ("", 0),
        ("garbage", 0),
    ],
)
def test_unanswerable_questions_need_that_statement_as_evidence(text: str, evidence: float) -> None:
    target = "the mentor of TorVin is not stated.\nAnswer: unknown"
    example = Example(id="3", document="", question="", answer=UNANSWERABLE, task="grounding", response=target)
    assert weighed(text, example, evidence_weight=1).parts["evidence"] == pytest.approx(evidence)


PIECES = [
    "Answer:",
    "**",
    "$",
    "\\boxed{",
    "}",
    "<think>",
    "</think>",
    "\ud800",
    "\0",
    "\u2028",
    "\u0665",
    "KesDal",
    STEP,
]


@settings(max_examples=100, derandomize=True, deadline=None)
@given(st.lists(st.sampled_from([*"aK.;: \n", *PIECES])).map("".join), st.lists(st.sampled_from(PIECES)).map("".join))
def test_any_text_has_a_grade(text: str, reference: str) -> None:
    for task in GRADERS:
        example = Example(id="", document="", question=reference, answer=reference, task=task)
        assert 0 <= grade(text, example).score <= 1


@settings(max_examples=50)
@given(st.lists(st.sampled_from([*"aK.;: \n", "Answer:", "KesDal", STEP])), st.floats(0, 4))
def test_scores_and_parts_are_bounded(pieces: list[str], weight: float) -> None:
    text = "".join(pieces)
    for example in (HOP, JOURNEY):
        reward = weighed(text, example, evidence_weight=weight)
        assert 0 <= reward.score <= 1
        assert all(0 <= part <= 1 for part in reward.parts.values())


@pytest.mark.parametrize("task", ["multihop", "grounding", "longform"])
def test_recorded_responses_score_full(task: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(Path(longctx_rl.shipped_models.__file__).parent / "mini-student")
    for family in range(20):
        (example,) = generate(task, family, split="test", length=256, tokenizer=tokenizer)
        assert weighed(example.target, example, evidence_weight=0.5).score == 1


def test_running_text_counts_until_its_first_wrong_letter() -> None:
    example = Example(id="", document="", question="", answer=" KesDal", task="lookup", chat=False)
    for text, score in ((" KesDalDal of", 1.0), (" KesTor", 0.5), (" TorDal", 0.0), ("", 0.0)):
        assert grade(text, example).score == score


def test_bad_arguments_say_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"poetry.*choose one of multihop"):
        grade("", Example(id="", document="", question="", answer="", task="poetry"))
