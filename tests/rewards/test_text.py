"""Rules on free text: what counts as equal, and the gaming attempts that must score zero."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longctx_rl.rewards.text import (
    choice,
    longest_common_subsequence,
    match,
    mathematical,
    rouge_l,
    set_f1,
    token_f1,
    words,
)


@pytest.mark.parametrize(
    ("predicted", "reference", "score"),
    [
        ("Lisbon", "Lisbon", 1),
        ("  lisbon. ", "Lisbon", 1),
        ("the city of Lisbon", "Lisbon", 1),
        ("\uff2c\uff49\uff53\uff42\uff4f\uff4e", "Lisbon", 1),  # full width
        ("Lisboa", "Lisbon", 0),
        ("the", "Lisbon", 0),
        ("i", "Lisbon", 0),
        ("", "Lisbon", 0),
        ("...", "Lisbon", 0),
        ("Lisbon", "the", 0),
        ("no", "Northern Ireland", 0),
        ("Northern", "Northern Ireland", 0),
        ("11", "2011", 0),
        ("2011", "11", 0),
        ("in 2011", "2011", 1),
        ("3", "3.14", 0),
        ("3.14", "3", 0),
        ("1,000 men", "1000", 1),
        ("Lisbon or Porto or Faro", "Lisbon", 0),
        ("Lisbon, Porto, Faro", "Lisbon", 0),
        ("Lisbon/Porto", "Lisbon", 0),
        ("Lisbon; Porto", "Lisbon", 0),
        ("Lisbon and Porto", "Lisbon", 0),
        ("Lisbon and Porto", "Lisbon and Porto", 1),
        ("either Lisbon", "Lisbon", 0),
        ("Lisbon " + "very " * 9, "Lisbon", 0),
        ("not Lisbon", "Lisbon", 0),
        ("Faro Lisbon Porto", "Lisbon", 0),
        ("Lisbon\nPorto\nFaro", "Lisbon", 0),
        ("Lisbon. Porto. Faro.", "Lisbon", 0),
        ("Lisbon - Porto", "Lisbon", 0),
        ("yes no", "yes", 0),
        ("1 2 3 4 5 6", "5", 0),
        ("-5", "5", 0),
        ("5", "-5", 0),
        ("-5", "-5", 1),
        ("A", "A", 1),
        ("**", "**", 1),
        ("<=", "**", 0),
        ("राम", "राम", 1),
        ("रोम", "राम", 0),
        ("it was in Lisbon", "Lisbon", 1),
        ("林海", "林海", 1),
        ("是林海买下的", "林海", 0),
        ("林", "林海", 0),
        ("Émile Zola", "Emile Zola", 0),
    ],
)
def test_match(predicted: str, reference: str, score: float) -> None:
    assert match(predicted, reference) == score


def test_the_order_of_words_counts() -> None:
    assert match("Ireland Northern", "Northern Ireland") == 0


@pytest.mark.parametrize(
    ("predicted", "reference", "score"),
    [
        ("the red house", "red house", 1),
        ("red", "red house", 2 / 3),
        ("red red red", "red house", 2 / 5),
        ("yes", "yes", 1),
        ("yes it is", "yes", 0),
        ("no", "no man's land", 0),
        ("no ano de 1871", "ano 1871", 2 * 2 / 6),
        ("the", "red house", 0),
        ("", "", 0),
    ],
)
def test_token_f1(predicted: str, reference: str, score: float) -> None:
    assert token_f1(predicted, reference) == pytest.approx(score)


@pytest.mark.parametrize(
    ("predicted", "reference", "score"),
    [
        ("b; a", "A; B", 1),
        ("a", "a; b", 2 / 3),
        ("a; a; a", "a; b", 2 / 5),
        ("a; b; c; d; e; f", "a; b", 4 / 8),
        ("", "a; b", 0),
        ("; ;", "a; b", 0),
    ],
)
def test_set_f1(predicted: str, reference: str, score: float) -> None:
    assert set_f1(predicted, reference) == pytest.approx(score)


@pytest.mark.parametrize(
    ("predicted", "score"),
    [("B", 1), ("b", 1), ("(B)", 1), ("B.", 1), ("option B", 1), ("A", 0), ("A or B", 0), ("A B C D", 0), ("B, C", 0),
     ("Because", 0), ("", 0), ("BB", 0), ("the answer is B", 0)],
)  # fmt: skip
def test_choice(predicted: str, score: float) -> None:
    assert choice(predicted, "B") == choice(predicted, "(B) the second") == score


@pytest.mark.parametrize(
    ("predicted", "reference", "score"),
    [
        ("1/2", "0.5", 1),
        ("\\frac{1}{2}", "1/2", 1),
        ("x^2+2x+1", "(x+1)^2", 1),
        ("2", "3", 0),
        ("", "3", 0),
        ("3" * 500, "3", 0),
        ("nothing", "3", 0),
        ("9^{9^{9^9}}", "3", 0),
        ("9**9**9", "3", 0),
        ("99999!", "3", 0),
        ("2^{99999}", "3", 0),
        ("x^2+y^3", "x^2+y^3", 1),
    ],
)
def test_mathematical(predicted: str, reference: str, score: float) -> None:
    assert mathematical(predicted, reference) == score


def test_rouge_l_counts_the_longest_common_subsequence() -> None:
    # Without articles the longest common subsequence is "police gunman": 2 of 3 and 3 tokens.
    assert rouge_l("police kill the gunman", "police killed the gunman") == pytest.approx(2 * 2 / 6)
    assert rouge_l("gunman the kill police", "police kill the gunman") == pytest.approx(1 / 3)
    assert rouge_l("", "police") == 0


@settings(max_examples=200)
@given(st.lists(st.sampled_from("abcd"), max_size=80), st.lists(st.sampled_from("abcde"), max_size=80))
def test_longest_common_subsequence_equals_the_table(left: list[str], right: list[str]) -> None:
    table = [[0] * (len(right) + 1) for _ in range(len(left) + 1)]
    for i, a in enumerate(left):
        for j, b in enumerate(right):
            table[i + 1][j + 1] = table[i][j] + 1 if a == b else max(table[i][j + 1], table[i + 1][j])
    assert longest_common_subsequence(left, right) == table[-1][-1]


@settings(max_examples=300)
@given(st.text(max_size=40), st.text(max_size=40))
def test_scores_are_bounded_and_an_empty_answer_is_never_right(predicted: str, reference: str) -> None:
    for rule in (match, token_f1, set_f1, choice, rouge_l):
        assert 0 <= rule(predicted, reference) <= 1
        if rule in (token_f1, set_f1, rouge_l) and not words(predicted):
            assert rule(predicted, reference) == 0
