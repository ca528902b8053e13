"""RULER's scores: its own, by which others' numbers are made, and one that dumping the text does not fool."""

import re
from collections.abc import Sequence

QUESTIONS = ("qa_1", "qa_2")
"""Tasks in which one answer is enough."""


def recall(text: str, answers: Sequence[str], *, any_answer: bool = False) -> float:
    """RULER's ``string_match_all``: share of the answers that occur anywhere, whatever else is said; or
    ``string_match_part``: 1 if one does."""
    found = [answer.lower() in text.lower() for answer in answers]
    return float(any(found)) if any_answer else sum(found) / len(found)


KINDS = (
    r"\d{5,7}",
    r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}",
    r"[A-Z]{5}",
    r"(?:[A-Z][a-z]{2}){2,3}",
    r"(?:[bdfghjklmnprstvz][aeiou][lnrsmdkv]){2,3}",
)
"""What answers look like: numbers, uuids, variables, names, coded words."""


MOST_WORDS, WORDS_EACH = 64, 8
"""Words in which answers are named, and for each answer: whoever says more has not chosen."""


def strict(text: str, answers: Sequence[str], question: str = "") -> float:
    """Right answers minus wrong ones over the number of answers, never below 0: naming all that the text holds is
    worth nothing where it holds as many wrong ones. Neither is repeating the text, which may hold no wrong one:
    answers among more than ``MOST_WORDS`` and ``WORDS_EACH`` words for each of them are not counted.

    What is named is read behind the last ``Answer:`` if there is one, else in the whole text behind its reasoning. Only
    what looks like the right answers is counted, and nothing that the question itself names, so a sentence around them
    costs nothing.
    """
    kind = next((one for one in KINDS if all(re.fullmatch(one, answer) for answer in answers)), None)
    said = text.rpartition("</think>")[2].rpartition("Answer:")[2]
    if len(said.split()) > MOST_WORDS + WORDS_EACH * len(answers):
        return 0.0
    if kind is None:
        items = {word.strip(".,;:") for word in said.split()} - {""}
    else:
        items = set(re.findall(rf"(?<![\w-])(?:{kind})(?![\w-])", said))
        items -= set(re.findall(rf"(?<![\w-])(?:{kind})(?![\w-])", question))
    right = len(items & set(answers))
    return max(0, right - len(items - set(answers))) / len(set(answers))
