"""Rules that grade free text and resist the common ways of gaming them.

Answers are compared token by token. A token is a word, a number, a sign that carries meaning, or one character of a
script without spaces. Case, width, punctuation, markup and English articles do not count. An answer without tokens is
never right.
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
LISTING = regex.compile(r"[/;|&,:\n\u3001\u3002\u060c\u061b\u2022]|\.\s+\S|\s[-\u2014]\s")
FUNCTION_WORDS = frozenset(
    [
        *("it", "is", "was", "were", "are", "be", "been", "of", "in", "on", "at", "by", "to", "from", "for", "with"),
        *("a", "an", "the", "that", "this", "he", "she", "they", "his", "her", "its", "their", "as"),
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
OPERATORS = frozenset("<>≤≥≠±√÷∞^_+")
"""Signs that turn a number or a name into another one."""
REVERSALS = YES_NO | NEGATIONS | OPERATORS
"""Tokens that no right answer has beyond those of the reference."""
MATCH_FACTOR, MATCH_SURPLUS, CONTENT_SURPLUS = 3, 5, 1
INVISIBLE = regex.compile(r"\p{Default_Ignorable_Code_Point}")
_SPELLINGS = (
    (regex.compile("[\u2120\u2122]"), ""),  # SM and TM, which NFKC would make letters of the word before them
    # 10² and m², but neither the charge of Ca²⁺ nor a footnote
    (regex.compile(r"(?<=[\p{N})\]\uff09\uff3d]|(?<!\p{L})\p{L}{1,2})[⁺⁻]?[⁰¹²³⁴-⁹]++(?![⁺⁻])"), r"^{\g<0>}"),
    (regex.compile(r"(?<=\p{Nd})(?=[₀-₉])"), "_"),  # 10₂
    (regex.compile(r"(?V1)(?<=\p{N})(?=[\p{No}--[₀-₉⁰¹²³⁴-⁹]])|(?<=[\p{No}--[₀-₉⁰¹²³⁴-⁹]])(?=\p{N})"), " "),  # 1½, 1①
    (regex.compile(r"[^\P{Nd}0-9]"), lambda digit: str(unicodedata.decimal(digit[0], digit[0]))),
    (regex.compile("(?<=(?<![0-9])[0-9]{1,3})[\u00a0\u2007\u2009\u202f\u066c\u2019](?=[0-9]{3}(?![0-9]))"), ""),
    (regex.compile("(?<=[0-9])\u066b(?=[0-9])"), "."),
)
"""Other ways of writing the same; they come before NFKC, which would make 102 of 10² and 11/2 of 1½."""
_DASHES_AND_SLASHES = str.maketrans(
    dict.fromkeys("\u2010\u2011\u2012\u2013\u2212\u2796", "-") | dict.fromkeys("\u2044\u2215", "/")
)
_GROUPED = regex.compile(r"(?<![\d,.])\d{1,3}(?:[,']\d{3})++(?![,']?\d)")
_AMOUNT = r"(-?\.?\d[\d./]*(?:\^\{?-?\d+\}?)?(?:\s?(?:thousand|[mbtr]+illion|bn|[kmb])\b)?)"
_SYNONYMS = tuple(
    (regex.compile(pattern), replacement)
    for pattern, replacement in (
        (r"[^\S\n]{2,}", " "),
        (r"\\(?:boxed|fbox|text(?:bf|it|rm)?|math(?:bf|it|rm|sf))(?=\s*\{)", ""),
        (r"\$(?<![\w\\$]\$)(\$?)(?=\S)((?:\\.|[^$\\\n])++)(?<=\S)\$\1(?![\d$])", r"\2"),  # $5$ is 5, but $5 is money
        (r"(?<=\d)(?=\\[dt]?frac)", " "),  # 1\frac{1}{2} is 1 1/2
        (r"\\[dt]?frac\s*\{(\d+)\}\s*\{(\d+)\}", r"\1/\2 "),
        (r"(?<=\d)[^\S\n]?/[^\S\n]?(?=\d)", "/"),
        (r"\\(?=[^\p{L}\s])", ""),
        (">=", "≥"),
        ("<=", "≤"),
        ("!=", "≠"),
        (r"\+/?-(?=\s?\.?\d)", "±"),
        (r"(\d)\s?[\u00d7\u2715*]\s?(?=\d)", r"\1 x "),
        (r"(?<!\p{L})([kcdm]?m)([23])\b", r"\1^\2"),
        (r"(?<!\p{L})(?:percent|prozent|(?:per|por|pour)\s(?:cento?|ciento))(?!\p{L})", "%"),
        (r"(?<!\p{L})(?:us\$|(?:dollars?|usd)(?!\p{L}))", "$"),
        (r"(?<!\p{L})(?:euros?|eur)(?!\p{L})", "€"),
        (r"(?<!\p{L})(?:pounds?|gbp)(?!\p{L})", "£"),
        (r"(?<!\p{L})(?:yen|jpy)(?!\p{L})", "¥"),
        (r"(?<!\p{L})degrees?(?!\p{L})", "°"),
        (r"°(?=\s?[cfk]\b)", " "),
        (r"\ba\$", "au$"),  # no article
        (rf"([\p{{Sc}}%])(?<!\d.){_AMOUNT}", r"\2 \1"),  # $5 is 5 $
        (rf"([\p{{Sc}}%])(?<!\d\s?.)\s{_AMOUNT}", r"\2 \1"),
    )
)
"""Other ways of writing the same in case-folded text, where a sign stands after its number."""
_SPACELESS = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Thai}\p{Lao}\p{Myanmar}\p{Khmer}\u30fc]"
_MINUS = r"(?:-(?<![\p{L}\p{M}\p{N})\]%°\p{Sc}]-))?"
_TOKEN = regex.compile(
    rf"(?V1)[\p{{L}}--{_SPACELESS}][[\p{{L}}\p{{M}}]--{_SPACELESS}]*+"
    r"(?:(?:\+{1,2}|\#)(?![\p{L}\p{N}+])"  # C++, AB+
    r"|-(?<=(?<![\p{L}\p{M}\p{N}])[\p{L}\p{M}]{1,2}-)(?<!\bno-)(?![\p{L}\p{M}\p{N}-]))?"  # AB-
    rf"|{_SPACELESS}\p{{M}}*"
    rf"|{_MINUS}(?<![\d/.,])\d{{1,3}}/\d{{1,3}}(?![\d/]|\.\d)"  # a fraction, but no date
    rf"|{_MINUS}(?:\d+(?:\.\d+)?|\.(?<![\p{{L}}\p{{M}}\p{{N}})\].]\.)\d+)(?:e[-+]?\d+(?![\p{{L}}\p{{N}}]))?"
    r"|[\p{Sc}%‰°±÷√∞≤≥≠^]|_(?<=\d_)(?=\d)"
    r"|\+(?<=[\p{L}\p{N})%]\+)|\+(?<=[\p{L}\p{N})%] \+)(?= \S)"
    r"|[<>](?=\s?-?\.?\d)(?<![-=].)(?<!</?[a-z]{1,9}.)"
)
_SYMBOL = regex.compile(r"[\p{So}\p{Sm}\p{No}]")


def folded(text: str) -> str:
    """Return the text without invisible characters, and with one form of width, digits, minus, exponents, fractions."""
    if not text.isascii():
        text = unicodedata.normalize("NFC", INVISIBLE.sub("", text))
        for pattern, replacement in _SPELLINGS:
            text = pattern.sub(replacement, text)
        text = unicodedata.normalize("NFKC", text).translate(_DASHES_AND_SLASHES)
    return text


def words(text: str) -> list[str]:
    """Return the tokens that count, in order. Articles count only where there is no other token.

    A sign counts where it makes another number, amount or name: -5, 5 %, $5, 10², C++, AB-. Symbols such as emoji count
    only if there is nothing else.
    """
    tokens = _tokens(text)
    return [token for token in tokens if token not in ARTICLES] or tokens


def _tokens(text: str) -> list[str]:
    text = unicodedata.normalize("NFKC", folded(text).casefold()).replace("i\u0307", "i")
    text = _GROUPED.sub(lambda number: regex.sub("[,']", "", number[0]), text)
    for pattern, replacement in _SYNONYMS:
        text = pattern.sub(replacement, text)
    return [_number(token) for token in _TOKEN.findall(text)] or _SYMBOL.findall(text)


def _number(token: str) -> str:
    """Write .5 as 0.5 and 1e+5 as 1e5."""
    return regex.sub(r"^(-?)\.", r"\g<1>0.", token).replace("e+", "e") if _is_number(token) else token


def contains(text: str, part: str) -> bool:
    """Whether the tokens of ``part`` occur in ``text``, contiguous and in order."""
    return _contains(words(text), words(part))


def _contains(tokens: Sequence[str], part: Sequence[str]) -> bool:
    return bool(part) and f" {' '.join(part)} " in f" {' '.join(tokens)} "


def same(predicted: str, reference: str) -> bool:
    """Whether both have the same tokens, or the same text where the reference has no tokens, such as ``**``."""
    predicted_tokens, reference_tokens = _both(predicted, reference)
    if reference_tokens:
        return predicted_tokens == reference_tokens
    return folded(predicted).strip() == folded(reference).strip() != ""


def _both(predicted: str, reference: str) -> tuple[list[str], list[str]]:
    """Return the tokens of both; with their articles if one of them ends with one, as *vitamin A* does."""
    both = _tokens(predicted), _tokens(reference)
    return both if any(side and side[-1] in ARTICLES for side in both) else (words(predicted), words(reference))


def match(predicted: str, reference: str) -> float:
    """Return 1 if the answer contains the reference as whole words and little else, else 0.

    The test is one-sided: an answer that is a part of the reference is wrong. The answer may have at most three times
    the reference's tokens plus five, of which at most one is a word that is neither in the reference nor a function
    word; no negation or operator, and no other number or sign where the reference has one; and no more alternatives
    ("A or B", "A, B") than the reference.
    """
    predicted_tokens, reference_tokens = _both(predicted, reference)
    if not reference_tokens:
        return float(same(predicted, reference))
    if predicted_tokens == reference_tokens:
        return 1.0
    allowed = MATCH_FACTOR * len(reference_tokens) + MATCH_SURPLUS
    if len(predicted_tokens) > allowed or not _contains(predicted_tokens, reference_tokens):
        return 0.0
    if _alternatives(predicted, predicted_tokens) > _alternatives(reference, reference_tokens):
        return 0.0
    surplus = Counter(predicted_tokens) - Counter(reference_tokens)
    content = sum(count for token, count in surplus.items() if not _is_sign(token) and token not in FUNCTION_WORDS)
    others = any(any(map(kind, surplus)) and any(map(kind, reference_tokens)) for kind in (_is_number, _is_sign))
    return float(content <= CONTENT_SURPLUS and not others and not REVERSALS & set(surplus))


def _is_number(token: str) -> bool:
    return token[-1].isdigit()


def _is_sign(token: str) -> bool:
    return not any(map(str.isalnum, token))


def _alternatives(text: str, tokens: Sequence[str]) -> int:
    without_numbers = regex.sub(r"(?<=\d)[,/:.](?=\d)", "", folded(text).strip())
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
        [tokens for item in regex.split(r"[;,\u3001\u060c\u061b\n]", folded(text)) if (tokens := tuple(words(item)))]
        for text in (predicted, reference)
    )
    common = len(set(predicted_items) & set(reference_items))
    return 2 * common / (len(predicted_items) + len(set(reference_items))) if common else 0.0


def letter(text: str) -> str | None:
    """Return the option that an answer names: ``B``, ``(B)``, ``B.``, ``option B``; None if it says anything else."""
    option = regex.fullmatch(r"(?:option\s+)?\(?([a-z])\)?[.:\u3002]?", folded(text).strip().casefold())
    return option[1].upper() if option else None


def choice(predicted: str, reference: str) -> float:
    """Return 1 if the answer is the reference's letter and nothing else, else 0."""
    option = regex.match(r"\(?([A-Za-z])\b", folded(reference).strip())
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
    if len(predicted) > MATH_CHARACTERS or not words(predicted):
        return 0.0
    predicted, reference = _expression(predicted), _expression(reference)
    if EXPLODES.search(predicted):
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


def _expression(text: str) -> str:
    """Return the text with the numbers that math-verify would misread, 1 1/2, 1 000 and 1e5, as expressions."""
    text = regex.sub(
        r"(?<![\d.,/])(\d{1,3}(?:[ ]\d{3})++)(?![\d ])", lambda number: number[0].replace(" ", ""), folded(text)
    )
    text = regex.sub(r"(?<![\d.,/])(\d+)\s+(\d+)/(\d+)", r"(\1+\2/\3)", text)
    return str(regex.sub(r"(\d)e([-+]?\d+)\b", r"\1 \\cdot 10^{\2}", text, flags=regex.IGNORECASE))
