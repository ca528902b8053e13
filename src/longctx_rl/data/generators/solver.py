"""An independent solver: parses a document with regular expressions and answers a question, or raises the reason.

It shares no code with the generators, so that it can verify their answers.
"""

import re
from collections import defaultdict

from longctx_rl.types import UNANSWERABLE

_NAME = r"([A-Z][a-z]{2}[A-Z][a-z]{2})"

_FACTS = (  # groups: relation or subject, the other of the two, "now ", value
    (re.compile(rf"\bthe ([a-z]+) of {_NAME} is (now )?{_NAME}$"), "relation first"),
    (re.compile(rf"\b{_NAME}'s ([a-z]+) is (now )?{_NAME}$"), "subject first"),
    (re.compile(rf"\bfor {_NAME} the ([a-z]+) is (now )?{_NAME}$"), "subject first"),
)
_STARTS = re.compile(rf"\bfirst {_NAME} (?:was at|set out from|left) {_NAME}$")
_LEGS = re.compile(rf"\b(?:from|after) {_NAME} (?:on )?{_NAME} (?:went|came|rode) to {_NAME}$")
_HOMES = re.compile(rf"\b(?:from|after) {_NAME} (?:on )?{_NAME} (?:went|came|rode) home$")

_CHAIN_QUESTION = re.compile(rf"\b(?:who is|name|who is said to be) ((?:the [a-z]+ of )+){_NAME}[?.]$")
_JOURNEY_QUESTION = re.compile(rf"\b(?:did|stops of) {_NAME} (?:travel, )?in order[?.]$")
_CONTINUED = re.compile(rf"^the ([a-z]+) of {_NAME} is$")
_TURNED = re.compile(rf"^{_NAME} is the ([a-z]+) of$")


class AmbiguousError(ValueError):
    """The document does not determine the answer."""


class Chronicle:
    """The facts of a document, parsed from its text."""

    def __init__(self, document: str) -> None:
        self.facts: defaultdict[tuple[str, str], list[tuple[bool, str]]] = defaultdict(list)
        self.starts: defaultdict[str, list[str]] = defaultdict(list)
        self.legs: defaultdict[tuple[str, str], list[str | None]] = defaultdict(list)
        self.subjects: set[str] = set()
        header, *sentences = [sentence for sentence in re.split(r"\.\s*", document) if sentence] or [""]
        if header != "Chronicle":
            raise ValueError(f"not a chronicle: it begins with {header!r}")
        for sentence in sentences:
            self._read(sentence)

    def _read(self, sentence: str) -> None:
        for pattern, order in _FACTS:
            if match := pattern.search(sentence):
                first, second, now, value = match.groups()
                relation, subject = (first, second) if order == "relation first" else (second, first)
                self.facts[relation, subject].append((now is not None, value))
                self.subjects.add(subject)
                return
        if match := _STARTS.search(sentence):
            self.starts[match[1]].append(match[2])
        elif match := _LEGS.search(sentence):
            self.legs[match[2], match[1]].append(match[3])
        elif match := _HOMES.search(sentence):
            self.legs[match[2], match[1]].append(None)
        else:
            raise ValueError(f"cannot read the sentence {sentence!r}")

    def relation(self, relation: str, subject: str) -> str:
        """Return the current value of a subject's relation; "unknown" if the document does not state it."""
        statements = self.facts.get((relation, subject), [])
        match [now for now, _ in statements]:
            case []:
                if subject not in self.subjects:
                    raise AmbiguousError(f"the document says nothing about {subject}")
                return UNANSWERABLE
            case [False] | [False, True]:
                return statements[-1][1]
        raise AmbiguousError(f"the {relation} of {subject} is ambiguous: {statements}")

    def subject(self, relation: str, value: str) -> str:
        """Return the only subject whose relation has this value."""
        subjects = [
            who for (key, who), statements in self.facts.items() if key == relation and statements[-1][1] == value
        ]
        if len(subjects) != 1:
            raise AmbiguousError(f"{value} is the {relation} of {subjects}")
        return subjects[0]

    def journey(self, traveller: str) -> list[str]:
        """Return the places of a journey in order, from its start until the traveller goes home."""
        starts = self.starts.get(traveller, [])
        if len(starts) != 1:
            raise AmbiguousError(f"{traveller} starts from {starts}")
        places = list(starts)
        while True:
            onward = self.legs.get((traveller, places[-1]), [])
            if len(onward) != 1 or onward[0] in places:
                raise AmbiguousError(f"from {places} {traveller} goes to {onward}")
            if onward[0] is None:
                break
            places.append(onward[0])
        if len(places) != sum(subject == traveller for subject, _ in self.legs):
            raise AmbiguousError(f"{traveller} has other legs than those over {places}")
        if traveller in self.subjects:
            raise AmbiguousError(f"the document says more about {traveller} than the journey over {places}")
        return places


def solve(document: str, question: str) -> str:
    """Return the answer to a question about a chronicle, in the format of ``Example.answer``.

    Raises:
        AmbiguousError: the document supports two answers, or an inconsistent order of events.
        ValueError: a sentence or the question is not worded as in the mini world.
    """
    chronicle = Chronicle(document)
    question = question.strip()
    if match := _CHAIN_QUESTION.search(question):
        subject = match[2]
        for relation in reversed(re.findall(r"the ([a-z]+) of", match[1])):
            subject = chronicle.relation(relation, subject)
        return subject
    if match := _CONTINUED.search(question):
        return chronicle.relation(match[1], match[2])
    if match := _TURNED.search(question):
        return chronicle.subject(match[2], match[1])
    if match := _JOURNEY_QUESTION.search(question):
        return "; ".join(chronicle.journey(match[1]))
    raise ValueError(f"cannot read the question {question!r}")
