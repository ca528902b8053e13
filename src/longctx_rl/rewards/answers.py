"""Exact graders of generated tasks, RULER's scores, and credit for evidence.

Only the text after the last ``Answer:`` on the last non-empty line counts. Naming the right answer elsewhere, or among
others, earns nothing. Exceptions are running text (``copy``, ``lookup``), which has no such line and is graded from its
start, and RULER's answers, which may stand in any line.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import takewhile

from longctx_rl.rewards.text import INVISIBLE, letter, longest_common_subsequence, match
from longctx_rl.types import Example, Reward

MARK = re.compile(r"(\*{0,3})Answer(\*{0,3})[:\uff1a]")
"""``Answer:``, also with a full-width colon or Markdown's emphasis."""
MARKUP = re.compile(
    r"(\*{1,3}|`{1,3}|\${1,2})(?=\S)(?P<a>(?:(?!\1).)+)(?<=\S)\1|\\\((?P<b>(?:(?!\\\)).)+)\\\)"
    r"|\\(?:boxed|fbox|text|textbf|mathrm|mathbf)\s*\{(?P<c>[^{}]*(?:\{[^{}]*\}[^{}]*)*)\}"
)
"""Emphasis, code marks and LaTeX around a whole answer."""
LIST_SEPARATOR = re.compile("[;\uff1b]")
RULER_KINDS = (
    r"\d{5,7}",
    r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}",
    r"[A-Z]{5}",
    r"(?:[A-Z][a-z]{2}){2,3}",
    r"(?:[bdfghjklmnprstvz][aeiou][lnrsmdkv]){2,3}",
)
"""The forms of RULER's answers: numbers, UUIDs, variables, names, coded words."""
RULER_WORDS, RULER_WORDS_EACH = 64, 8
"""Maximum length in words of a text that counts as a choice: a constant, plus an allowance per reference answer."""

Grader = Callable[[str, Example], Reward]


def final_answer(text: str) -> str | None:
    """Return the text after the last ``Answer:`` of the last line, without the markup around it and final full stop.

    None if the last non-empty line has no ``Answer:``, or nothing follows it.
    """
    lines = INVISIBLE.sub("", text).strip().splitlines()
    return _clean(_after_mark(lines[-1]) or "") or None if lines else None


def long_answer(text: str) -> str:
    """Return all lines after the last ``Answer:``, or the whole text if there is none; never the reasoning."""
    text = text.rpartition("</think>")[2]
    if "<think>" in text:  # which has no end
        return ""
    marked = _after_mark(text)
    return (text if marked is None else marked).strip()


def _after_mark(text: str) -> str | None:
    """Return the text after the last ``Answer:``, without the rest of the emphasis that begins before it."""
    marks = list(MARK.finditer(text))
    if not marks:
        return None
    (before, within), answer = marks[-1].groups(), text[marks[-1].end() :].strip()
    if within or not before:
        return answer
    return answer.removeprefix(before) if answer.startswith(before) else answer.rstrip(".").removesuffix(before)


def grade(text: str, example: Example) -> Reward:
    """Grade a completion with its task's exact grader. The score, in [0, 1], is that of the answer alone.

    Args:
        text: the completion without special tokens.

    Raises:
        ValueError: the task has no grader.
    """
    if example.task not in GRADERS:
        raise ValueError(f"no grader for task {example.task!r}: choose one of {', '.join(GRADERS)}")
    return GRADERS[example.task](text, example)


def grade_exact(text: str, example: Example) -> Reward:
    """Score 1 if the final answer equals the reference answer word for word, else 0."""
    predicted = final_answer(text)
    correct = predicted is not None and predicted.split() == _clean(example.answer).split()
    return _reward(float(correct), predicted, text, example)


def grade_letter(text: str, example: Example) -> Reward:
    """Score 1 if the final answer is the reference's letter, else 0; ``format`` is whether it is a letter."""
    predicted = final_answer(text)
    chosen = letter(predicted) if predicted is not None else None
    return _reward(float(chosen == example.answer), chosen, text, example)


def grade_ordered_list(text: str, example: Example) -> Reward:
    """Score the F1 of the longest common subsequence of predicted and reference items.

    Repeated and surplus items lower the score. ``set_f1`` ignores the order.
    """
    predicted = final_answer(text)
    items = _items(predicted or "")
    reference = _items(example.answer)
    ordered = _f1(longest_common_subsequence(items, reference), len(items), len(reference))
    unordered = _f1(len(set(items) & set(reference)), len(items), len(reference))
    return _reward(ordered, predicted, text, example, set_f1=unordered)


def grade_continuation(text: str, example: Example) -> Reward:
    """Score running text, which has no end: the share of the reference before the first wrong character."""
    reference = example.answer.strip()
    same = (a == b for a, b in zip(text.strip(), reference, strict=False))
    score = sum(1 for _ in takewhile(bool, same)) / max(1, len(reference))
    return Reward(score, {"answer": score, "format": 1.0, "evidence": 0.0})


def grade_ruler(text: str, example: Example) -> Reward:
    """Score right minus wrong answers, so that copying the document earns nothing; ``recall`` is RULER's own score."""
    references = example.answer.split("; ")
    score = ruler_strict(text, references, example.question)
    return _reward(score, text or None, text, example, recall=ruler_recall(text, references))


def grade_question(text: str, example: Example) -> Reward:
    """Score 1 if the text after the last ``Answer:``, or the whole text if there is none, matches one of the answers
    (``text.match``), else 0; ``recall`` is RULER's own score."""
    references = example.answer.split("\n")
    said = long_answer(text)
    score = max(match(said, answer) for answer in references)
    return _reward(score, text or None, text, example, recall=ruler_recall(text, references, any_answer=True))


GRADERS: dict[str, Grader] = {
    "multihop": grade_exact,
    "grounding": grade_exact,
    "longform": grade_ordered_list,
    "longreason": grade_letter,
    "longreason_hub": grade_letter,
    "ruler": grade_ruler,
    "ruler_question": grade_question,
    "copy": grade_continuation,
    "lookup": grade_continuation,
    "drill": grade_continuation,
    "pairs": grade_continuation,
}
"""The grader of each generated task except ``code``, whose answers are run. ``composed`` adds further parts."""


def ruler_recall(text: str, answers: Sequence[str], *, any_answer: bool = False) -> float:
    """RULER's own scores, as published results use them.

    Args:
        any_answer: ``string_match_part``, which is 1 if any answer occurs in the text; False: ``string_match_all``, the
            share of the answers that occur. Other content of the text does not matter in either.
    """
    hits = [answer.lower() in text.lower() for answer in answers]
    return float(any(hits)) if any_answer else sum(hits) / len(hits)


def ruler_strict(text: str, answers: Sequence[str], question: str = "") -> float:
    """Return right minus wrong answers, divided by the number of answers and never below 0.

    Listing every candidate earns nothing where the document holds as many wrong ones. Copying the document, which may
    hold no wrong candidate, earns nothing either: a text of more than ``RULER_WORDS`` words, plus ``RULER_WORDS_EACH``
    per answer, scores 0.

    The answers are read after the last ``Answer:`` if there is one, else in the whole text after its reasoning. Only
    strings of the reference answers' form count, and none that the question itself contains, so a sentence around the
    answers costs nothing.
    """
    kind = next((pattern for pattern in RULER_KINDS if all(re.fullmatch(pattern, answer) for answer in answers)), None)
    said = long_answer(text)
    if len(said.split()) > RULER_WORDS + RULER_WORDS_EACH * len(answers):
        return 0.0
    if kind is None:
        items = {word.strip(".,;:") for word in said.split()} - {""}
    else:
        items = set(re.findall(rf"(?<![\w-])(?:{kind})(?![\w-])", said))
        items -= set(re.findall(rf"(?<![\w-])(?:{kind})(?![\w-])", question))
    right = len(items & set(answers))
    return max(0, right - len(items - set(answers))) / len(set(answers))


def evidence_score(text: str, example: Example, beta: float = 1.0) -> float:
    """F-beta between the statements before the final line and the example's evidence, each counted once.

    A beta above 1 penalises missing evidence more than surplus statements (LongRLVR, arXiv 2603.02146, uses 2).

    Statements are separated by full stops or line breaks. Where the document does not hold the answer, the only
    expected statement is that the requested fact is not stated.
    """
    reasoning = text.strip().rpartition("\n")[0]
    stated = Counter(_statements(reasoning))
    evidence = Counter(" ".join(item.statement.split()) for item in example.evidence)
    if not evidence:
        evidence = Counter(_statements(example.target.rpartition("\n")[0]))
    hits, square = (stated & evidence).total(), beta * beta
    total = square * evidence.total() + stated.total()
    return (1 + square) * hits / total if total else 0.0


def _statements(text: str) -> list[str]:
    return [" ".join(piece.split()) for piece in re.split(r"\.\s|\.$|\n", text) if piece.strip()]


def _reward(answer: float, predicted: str | None, text: str, example: Example, **parts: float) -> Reward:
    has_answer = float(predicted is not None)
    return Reward(answer, {"answer": answer, "format": has_answer, "evidence": evidence_score(text, example), **parts})


def _clean(answer: str) -> str:
    answer = INVISIBLE.sub("", answer).strip().rstrip(".").strip()
    wrapped = MARKUP.fullmatch(answer)
    return _clean(wrapped["a"] or wrapped["b"] or wrapped["c"]) if wrapped else answer


def _items(answer: str) -> list[str]:
    return [" ".join(item.split()) for item in LIST_SEPARATOR.split(_clean(answer)) if item.strip()]


def _f1(common: int, predicted: int, reference: int) -> float:
    return 2 * common / (predicted + reference) if common else 0.0
