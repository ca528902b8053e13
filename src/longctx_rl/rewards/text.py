"""Rules that grade free text and resist the common ways of gaming them.

Answers are compared token by token. A token is a word, a number, or one character of a script without spaces. Case,
width, punctuation and English articles do not count. An answer without tokens is never right.
"""

import threading
import unicodedata
from collections import Counter
from collections.abc import Sequence

import regex

ARTICLES = frozenset({"a", "an", "the"})
YES_NO = frozenset({"yes", "no", "noanswer"})
ALTERNATIVES = frozenset({"or", "and", "either", "und", "oder", "et", "ou", "y", "o", "e", "或", "和"})
"""Words that separate alternative answers, as do the signs in ``LISTING``."""
LISTING = regex.compile(r"[/;|&,:\n\u3001\u3002\uff0c]|\.\s+\S|\s-\s")
FUNCTION_WORDS = frozenset(
    [
        *("it", "is", "was", "were", "are", "be", "been", "of", "in", "on", "at", "by", "to", "from", "for", "with"),
        *("that", "this", "he", "she", "they", "his", "her", "its", "their", "as"),
        *(
            "der",
            "die",
            "das",
            "von",
            "im",
            "ist",
            "war",
            "de",
            "la",
            "le",
            "les",
            "el",
            "los",
            "du",
            "des",
            "em",
            "da",
        ),
    ]
)
"""Words around an answer that carry no content of their own."""
NEGATIONS = frozenset({"not", "no", "never", "nor", "neither", "nicht", "kein", "keine", "non", "não", "nunca", "pas"})
MATCH_FACTOR, MATCH_SURPLUS, CONTENT_SURPLUS = 3, 5, 1
_TOKEN = regex.compile(
    r"(?<![\w)\]])-?\d+(?:\.\d+)?"  # a number with its sign is one token: 11 is not in 2011, nor 3 in 3.14
    r"|\d+(?:\.\d+)?"
    r"|[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Thai}\p{Lao}\p{Myanmar}\p{Khmer}]\p{M}*"  # no spaces between words
    r"|\p{L}[\p{L}\p{M}]*"
)


def words(text: str) -> list[str]:
    """Return the tokens that count, in order. Articles count only where there is no other token."""
    text = unicodedata.normalize("NFKC", text).casefold()
    text = regex.sub(r"(?<=\d),(?=\d{3}\b)", "", text)  # 1,000
    tokens = _TOKEN.findall(text)
    return [token for token in tokens if token not in ARTICLES] or tokens


def contains(text: str, part: str) -> bool:
    """Whether the tokens of ``part`` occur in ``text``, contiguous and in order."""
    text_tokens, part_tokens = words(text), words(part)
    windows = (
        text_tokens[start : start + len(part_tokens)] for start in range(len(text_tokens) - len(part_tokens) + 1)
    )
    return bool(part_tokens) and any(window == part_tokens for window in windows)


def same(predicted: str, reference: str) -> bool:
    """Whether both have the same tokens, or the same text where the reference has no tokens, such as ``**``."""
    predicted_tokens, reference_tokens = words(predicted), words(reference)
    return predicted_tokens == reference_tokens if reference_tokens else predicted.strip() == reference.strip() != ""


def match(predicted: str, reference: str) -> float:
    """Return 1 if the answer contains the reference as whole words and little else, else 0.

    The test is one-sided: an answer that is a part of the reference is wrong. The answer may have at most three times
    the reference's tokens plus five, of which at most one is neither in the reference nor a function word; no negation,
    and no other number where the reference has one; and no more alternatives ("A or B", "A, B") than the reference.
    """
    if same(predicted, reference):
        return 1.0
    predicted_tokens, reference_tokens = words(predicted), words(reference)
    if (
        not contains(predicted, reference)
        or len(predicted_tokens) > MATCH_FACTOR * len(reference_tokens) + MATCH_SURPLUS
    ):
        return 0.0
    if _alternatives(predicted, predicted_tokens) > _alternatives(reference, reference_tokens):
        return 0.0
    surplus = Counter(predicted_tokens) - Counter(reference_tokens)
    content = sum(count for token, count in surplus.items() if token not in FUNCTION_WORDS)
    numbers = any(token[-1].isdigit() for token in surplus) and any(token[-1].isdigit() for token in reference_tokens)
    return float(content <= CONTENT_SURPLUS and not numbers and not (YES_NO | NEGATIONS) & set(surplus))


def _alternatives(text: str, tokens: Sequence[str]) -> int:
    without_numbers = regex.sub(r"(?<=\d)[,/:.](?=\d)", "", text.strip())
    return len(LISTING.findall(without_numbers)) + sum(token in ALTERNATIVES for token in tokens)


def token_f1(predicted: str, reference: str) -> float:
    """Return the F1 of the tokens with multiplicity (SQuAD). If one side is yes or no, the other must be the same."""
    predicted_tokens, reference_tokens = words(predicted), words(reference)
    if predicted_tokens != reference_tokens and any(
        len(side) == 1 and side[0] in YES_NO for side in (predicted_tokens, reference_tokens)
    ):
        return 0.0
    common = (Counter(predicted_tokens) & Counter(reference_tokens)).total()
    return 2 * common / (len(predicted_tokens) + len(reference_tokens)) if common else 0.0


def set_f1(predicted: str, reference: str) -> float:
    """Return the F1 of items separated by semicolons, commas or line breaks, in any order. Repeats lower the score."""
    predicted_items, reference_items = (
        [tuple(words(item)) for item in regex.split(r"[;,\u3001\uff0c\n]", text) if words(item)]
        for text in (predicted, reference)
    )
    common = len(set(predicted_items) & set(reference_items))
    return 2 * common / (len(predicted_items) + len(set(reference_items))) if common else 0.0


def letter(text: str) -> str | None:
    """Return the option that an answer names: ``B``, ``(B)``, ``B.``, ``option B``; None if it says anything else."""
    option = regex.fullmatch(r"(?:option\s+)?\(?([A-Za-z])\)?[.:]?", text.strip(), regex.IGNORECASE)
    return option[1].upper() if option else None


def choice(predicted: str, reference: str) -> float:
    """Return 1 if the answer is the reference's letter and nothing else, else 0."""
    option = regex.match(r"\(?([A-Za-z])\b", reference.strip())
    return float(option is not None and letter(predicted) == option[1].upper())


def rouge_l(predicted: str, reference: str) -> float:
    """Return the F1 of the longest common subsequence of tokens (Lin, 2004). Incoherent text can score high."""
    predicted_tokens, reference_tokens = words(predicted), words(reference)
    common = longest_common_subsequence(predicted_tokens, reference_tokens)
    return 2 * common / (len(predicted_tokens) + len(reference_tokens)) if common else 0.0


def longest_common_subsequence(left: Sequence[str], right: Sequence[str]) -> int:
    """Return the length of the longest common subsequence. Each row of the table is one integer (Hyyrö, 2004)."""
    where: dict[str, int] = {}
    for place, item in enumerate(left):
        where[item] = where.get(item, 0) | 1 << place
    row = whole = (1 << len(left)) - 1
    for item in right:
        hits = row & where.get(item, 0)
        row = ((row + hits) | (row - hits)) & whole
    return len(left) - row.bit_count()


MATH_CHARACTERS = 200
EXPLODES = regex.compile(r"!|\^\s*\{?\s*\(?[\w\\]*\s*\^|\*\*[^+]*\*\*|(?:\^|\*\*)\s*\{?\s*\(?\d{3,}|\d{40,}")
"""Factorials, powers of powers and huge exponents, which are short to write and too expensive to compute."""
MATH_SECONDS = 3


def mathematical(predicted: str, reference: str) -> float:
    """Return 1 if both are the same number or expression according to ``math-verify``, else 0.

    An answer that is longer than ``MATH_CHARACTERS``, or too expensive to compute, is wrong without being parsed.

    Raises:
        ValueError: math-verify is not installed.
    """
    if len(predicted) > MATH_CHARACTERS or not words(predicted) or EXPLODES.search(predicted):
        return 0.0
    try:
        from math_verify import parse, verify
    except ImportError as error:
        raise ValueError("the grader math needs math-verify: pip install 'longctx-rl[rewards]'") from error
    # The time limits of math-verify are alarms, which only the main thread may set.
    limit = MATH_SECONDS if threading.current_thread() is threading.main_thread() else None
    reference_value = parse(f"${reference}$", parsing_timeout=limit) or parse(reference, parsing_timeout=limit)
    predicted_value = parse(f"${predicted}$", parsing_timeout=limit) or parse(predicted, parsing_timeout=limit)
    return float(
        bool(reference_value and predicted_value) and verify(reference_value, predicted_value, timeout_seconds=limit)
    )
