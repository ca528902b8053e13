"""Rules on free text: what counts as equal, and the gaming attempts that must score zero."""

# ruff: noqa: RUF001 (characters that look alike are what is tested)

import unicodedata
from time import process_time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longctx_rl.rewards.text import (
    choice,
    longest_common_subsequence,
    match,
    mathematical,
    rouge_l,
    same,
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
        ("about $5", "5", 1),
        ("5 dollars", "$5", 1),
        ("$€5", "€5", 0),
        ("5 + 6", "5", 0),
        ("≠ 5", "5", 0),
        ("> 5", "5", 0),
        ("± 5", "5", 0),
        ("3/4", "3", 0),
        ("3 / 4", "3", 0),
        ("3/4", "4/3", 0),
        (r"\frac{3}{4}", "4/3", 0),
        (r"it is $\frac{3}{4}$", "3/4", 1),
        ("1 1/2", "1", 0),
        ("Lisbon + Porto", "Lisbon", 0),
        ("Lisbon – Porto", "Lisbon", 0),
        ("Lisbon — Porto", "Lisbon", 0),
        ("Lisbon；Porto", "Lisbon", 0),
        ("Lisbon¹", "Lisbon", 1),
        ("✅ Lisbon", "Lisbon", 1),
        ("コーヒー店", "コーヒー", 1),
        ("vitamin", "vitamin A", 0),
        ("It is vitamin A.", "vitamin A", 1),
        ("A or B", "A", 0),
        ("\u200b", "\u200b", 0),
    ],
)
def test_match(predicted: str, reference: str, score: float) -> None:
    assert match(predicted, reference) == score


SAME = (
    ("-5", "−5", "–5", "\u20115", "－５", "-٥", "**-5**", "“-5”", "(-5)", "$-5$", "\\boxed{-5}", "-5."),
    ("5", "５", "٥", "५", "𝟓", "+5", "$5$", r"\(5\)", "- 5", "⑤", "_5_", "5\ufe0f\u20e3"),
    ("-5 - 7", "−5 – 7"),
    ("5-7", "5–7", "5−7", "5 - 7"),
    ("0.5", ".5", "٠٫٥"),
    ("1/2", "½", "1⁄2", "１／２", r"$\frac{1}{2}$"),
    ("3/4", "3 / 4", "3 /4", "¾", r"\frac{3}{4}", r"\dfrac{3}{4}", r"$\tfrac {3} {4}$", r"\boxed{\frac{3}{4}}"),
    ("9/11", "9 / 11"),
    ("-2/3", r"-\frac{2}{3}", r"$-\frac{2}{3}$"),
    ("1 1/2", "1½", r"1\frac{1}{2}", r"1 \frac{1}{2}"),
    ("1,000 km", "1000 km", "1'000 km", "1\u202f000km", "1\u00a0000 ㎞", "١٬٠٠٠ km"),
    ("10^2", "10²", "10^{2}"),
    ("10⁻³", "10^-3", "10^{−3}"),
    ("5e-3", "5E-3", "5e−3"),
    ("5 m²", "5 m2", "5m²", "5㎡", "5 m^2"),
    ("$5", "5$", "5 $", "$ 5", "US$5", "5 dollars", "USD 5", "＄5", r"\$5", r"$\$5$"),
    ("-$5", "$-5", "−5 $"),
    ("$5 million", "5 million dollars", "$5  million"),
    ("€20", "20 €", "20 euros", "EUR 20"),
    ("5%", "5 %", "5％", "%5", "5 percent", "5 per cent", r"5\%"),
    ("20°", "20 degrees"),
    ("20 °C", "20℃", "20 C", "20°c"),
    ("≤5", "<=5"),
    ("3×4", "3 x 4", "3*4"),
    ("C++", "c++", "`C++`", "Ｃ＋＋"),
    ("AB-", "ab−", "AB–."),
    ("H₂O", "H2O"),
    ("Ca²⁺", "Ca2+"),
    ("well-known", "well known", "well‑known", "well–known"),
    ("2020-01-05", "2020/01/05", "2020 01 05"),
    ("Nike™", "Nike"),
    ("Émile", "E\u0301mile", "É\u200bmi\u00adle", "\u202aÉmile\u202c"),
    ("straße", "STRASSE", "stra\u00dfe"),
    ("İstanbul", "istanbul", "Istanbul"),
    ("ﬁn", "fin", "FIN"),
    ("한", "\u1112\u1161\u11ab", "**한**"),
    ("👍", "👍\ufe0f", "**👍**"),
)
"""Each line holds one answer in several forms. Answers of different lines differ."""


@pytest.mark.parametrize("forms", SAME, ids=lambda forms: forms[0])
def test_forms_of_the_same_answer_are_equal(forms: tuple[str, ...]) -> None:
    for form in forms:
        assert same(form, forms[0]) and match(form, forms[0]) == token_f1(form, forms[0]) == 1, (form, words(form))
    for others in SAME:
        assert others is forms or not any(same(form, other) for form in forms for other in others)


@pytest.mark.parametrize(
    "answers",
    [
        ("5", "-5", "±5", "≤5", "≥5", "<5", ">5", "5!=5", "√5", "5^5", "5_5", "5+5", "5+"),
        ("$5", "€5", "£5", "¥5", "5%", "5‰", "5°", "5 km", "5 m", "5 m²", "5 m³", "A$5", "HK$5"),
        ("102", "10²", "10₂", "10^-2", "1①2", "1 0 2", "10 2"),
        ("12", "½", "1½", "1.2"),
        ("1000", "1.000", "1 000 0", "100.0"),
        ("5e3", "5e-3", "5 e 3", "53"),
        ("0.5", "5", "5.5", "-.5"),
        ("2/3", "2-3", "2/30", "12/3"),
        (r"\frac{3}{4}", "4/3", "3 / 5", "34", "3", "3 4", r"\frac{3}{4}0", r"1\frac{3}{4}"),
        ("C", "C+", "C++", "C#", "C-"),
        ("AB", "AB+", "AB-", "Rh+", "Rh-"),
        ("x≤y", "x≥y", "x≠y", "x y"),
        ("a+b", "a b", "a^b"),
        ("hepatitis", "hepatitis A", "hepatitis B"),
        ("👍", "👎", "❶", "❷"),
        ("Ａ", "\u0410"),
    ],
)
def test_answers_with_other_signs_are_not_equal(answers: tuple[str, ...]) -> None:
    """The longer of two answers may contain the other, as 5 km contains 5, but never the other way round."""
    for left in answers:
        for right in answers:
            if left is not right:
                assert not same(left, right) and match(left, right) * match(right, left) == 0, (left, right)


def full_width(text: str) -> str:
    return "".join(chr(ord(sign) + 0xFEE0) if "!" <= sign <= "~" else sign for sign in text)


ATOMS = st.sampled_from(
    [
        *(form for forms in SAME for form in forms),
        *"-+*/^_%$€°½²①.,;:()[]{}<>=!?#&'\"\\`|~",
        " ",
        "\n",
        "the",
        "A",
        "no-",
        "中",
        "ー",
        "e\u0301",
        "18+",
    ]
)
TEXTS = st.lists(ATOMS, max_size=5).map("".join) | st.lists(ATOMS, max_size=5).map(" ".join)


@settings(max_examples=150, derandomize=True, deadline=None)
@given(TEXTS)
def test_width_script_composition_markup_and_invisible_characters_do_not_count(text: str) -> None:
    expected = words(text)
    for form in (
        full_width(text),
        "".join(chr(0x660 + int(sign)) if sign in "0123456789" else sign for sign in text),
        text.replace("-", "\u2212"),
        unicodedata.normalize("NFD", text),
        unicodedata.normalize("NFC", text),
        "\u200b".join(text),
        "\u00ad" + "\u2060".join(text) + "\ufeff",
        text.upper(),
        f" {text} ",
        f"{text}.",
        f"**{text}**",
        f"“{text}”",
        f"\\({text}\\)",
    ):
        assert words(form) == expected


@settings(max_examples=150, derandomize=True, deadline=None)
@given(TEXTS | st.text(st.characters(exclude_categories=()), max_size=20), TEXTS)
def test_any_text_has_a_score(predicted: str, reference: str) -> None:
    for rule in (match, token_f1, set_f1, choice, rouge_l):
        assert 0 <= rule(predicted, reference) <= 1 and 0 <= rule(reference, predicted) <= 1


def test_the_time_grows_with_the_length() -> None:
    """A quadratic rule would take minutes for one of these."""
    start = process_time()
    for part in ("a ", "1,", "1/", "$a ", "\\text{", "½", "²⁺", "5e", "1e5", "+ ", "</a", "ab-", "*", "a;", "中", "`"):
        text = (part * 10_000)[:10_000]
        for rule in (match, set_f1, rouge_l, choice):
            rule(text, "Lisbon 5; a")
    assert process_time() - start < 25


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
        ("a；b", "a; b", 1),
        ("a，b、c", "a; b; c", 1),
        ("100,200", "100, 200", 1),
        ("$5; €5", "$5; $5", 2 / 3),
    ],
)
def test_set_f1(predicted: str, reference: str, score: float) -> None:
    assert set_f1(predicted, reference) == pytest.approx(score)


@pytest.mark.parametrize(
    ("predicted", "score"),
    [("Ｂ", 1), ("（Ｂ）", 1), ("Ｂ．", 1), ("B\u200b", 1), ("\u0412", 0), ("B-", 0), ("B+", 0), ("B", 1), ("b", 1),
     ("(B)", 1), ("B.", 1), ("option B", 1), ("A", 0), ("A or B", 0), ("A B C D", 0), ("B, C", 0),
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
        ("٥", "5", 1),
        ("–5", "-5", 1),
        ("x²+2x+1", "(x+1)^2", 1),
        ("10²", "102", 0),
        ("10⁻³", "0.001", 1),
        ("1½", "1", 0),
        ("1½", "1.5", 1),
        ("-1 1/2", "-1.5", 1),
        ("1 000", "0", 0),
        ("1 000", "1000", 1),
        ("1e5", "100000", 1),
        ("5 or 6", "6", 0),
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
