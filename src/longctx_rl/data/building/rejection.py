"""The checks that a written question must pass, each with its reason for rejection."""

import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from longctx_rl.data.tasks import place_of
from longctx_rl.rewards.replies import is_unicode
from longctx_rl.rewards.text import contains, same, token_f1, words

SAME_QUESTION = 0.8
"""Token F1 at which two questions about a document count as the same."""

FIELDS = {"question", "answer", "evidence"}
BRACES = 2000
"""Opening braces of a reply at which an object is looked for."""
DECODER = json.JSONDecoder(parse_int=Decimal, parse_float=Decimal)


@dataclass(frozen=True, slots=True)
class Written:
    """A question that a model wrote, with its answer and evidence."""

    question: str
    answer: str
    evidence: tuple[str, ...]
    language: str
    """Language code that the model reports; empty if it reports none."""


class Rejected(Exception):
    """A question fails a check; the message is the reason."""


def parse(reply: str) -> Written:
    """Read the last JSON object of a reply that has the expected fields. Raises Rejected with the reason if none has.

    Numbers stay as they are written.
    """
    found = list(_objects(reply))
    if not found:
        spelled = 0 <= reply.find("{") < reply.rfind("}")
        raise Rejected("the reply is not JSON" if spelled else "the reply holds no JSON object")
    whole = [each for each in found if each.keys() >= FIELDS]
    if not whole:
        raise Rejected("question, answer or evidence is missing")
    parsed = whole[-1]
    question, answer, evidence = parsed["question"], parsed["answer"], parsed["evidence"]
    answer = str(answer) if isinstance(answer, Decimal) else answer
    for name, value, kind in (("question", question, str), ("answer", answer, str), ("evidence", evidence, list)):
        if not isinstance(value, kind):
            raise Rejected(f"the {name} is not {'a list' if kind is list else 'text'}")
    if not words(question) or not words(answer):
        raise Rejected("question or answer is empty")
    quotes = tuple(quote for quote in evidence if isinstance(quote, str) and words(quote))
    if not quotes:
        raise Rejected("there is no evidence in text")
    if not is_unicode("".join((question, answer, *quotes))):
        raise Rejected("the reply is text with an unpaired surrogate")
    language = parsed.get("language")
    code = language.lower() if isinstance(language, str) and re.fullmatch(r"[A-Za-z]{2,3}", language) else ""
    return Written(question.strip(), answer.strip(), quotes, code)


def _objects(reply: str) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects of a reply, which may stand in prose or code blocks."""
    end = 0
    for brace in itertools.islice(re.finditer("{", reply), BRACES):
        if brace.start() < end:  # inside the object before
            continue
        try:
            value, end = DECODER.raw_decode(reply, brace.start())
        except (ValueError, RecursionError):  # not JSON, or nested too deeply
            continue
        yield value


def check_evidence(written: Written, document: str, task: str) -> list[tuple[int, int]]:
    """Locate the evidence in the document.

    Returns:
        Start and end of each quote, in the document's order.

    Raises:
        Rejected: a quote is not in the document; the quotes are a single place although the task needs several; the
            question contains its answer; or the answer to a grounding question is not in its evidence.
    """
    places = []
    for quote in written.evidence:
        place = place_of(document, quote)
        if place is None:
            raise Rejected("the evidence is not in the document")
        places.append(place)
    places.sort()
    apart = [place for number, place in enumerate(places) if number == 0 or place[0] >= places[number - 1][1]]
    if task != "grounding" and len(apart) < 2:
        raise Rejected("the evidence is a single place, but the task needs several")
    if task != "longform" and contains(written.question, written.answer):
        raise Rejected("the question contains its answer")
    if task == "grounding" and not any(place_of(quote, written.answer) for quote in written.evidence):
        raise Rejected("the answer is not in its evidence")
    return places


def check_closed_book(written: Written, guess: str, task: str) -> None:
    """Raise Rejected if the question was answered without the document."""
    known = token_f1(guess, written.answer) > 0.6 if task == "longform" else contains(guess, written.answer)
    if known:
        raise Rejected("it was answered without the document")


def is_repeated(question: str, answer: str, others: list[tuple[str, str]]) -> bool:
    """Whether another question about the same document has nearly the same words and the same answer."""
    return any(
        same(answer, other) and token_f1(question, other_question) >= SAME_QUESTION for other_question, other in others
    )
