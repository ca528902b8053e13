"""The content of a chronicle: its statements, the questions about it, and the endless stream of filler."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random

from longctx_rl.data.generators.names import Cast, Split
from longctx_rl.data.generators.wording import RELATIONS, Kind, Statement, wordings
from longctx_rl.types import UNANSWERABLE

Unit = tuple[Statement, ...]
"""Statements that a document contains together and in order: one fact, a fact and its update, or a journey."""

MAX_FILLER_NAMES = 256
MAX_FILLER_PLACES = 24
MAX_FILLER_TRAVELLERS = 64


@dataclass(frozen=True, slots=True)
class Query:
    """A question and its worked answer."""

    topic: str
    """Subject of the question; two queries with the same topic are the same question."""
    question: str
    answer: str
    steps: tuple[Statement, ...]
    """The statements that support the answer, in the order of reasoning."""
    response: str


@dataclass(frozen=True, slots=True)
class Core:
    """The fixed part of a family at every length: its statements (evidence and near-duplicates) and its question."""

    units: tuple[Unit, ...]
    query: Query


def worked_response(steps: Sequence[str], answer: str) -> str:
    """Return the reasoning steps followed by the final line."""
    return ". ".join(steps) + f".\nAnswer: {answer}"


class Narrator:
    """Draws the statements of one document, with wordings from the split and names from the cast."""

    def __init__(self, rng: Random, cast: Cast, split: Split) -> None:
        self.rng = rng
        self.cast = cast
        self.split: Split = split
        self._wordings = wordings(split)

    def say(self, kind: Kind, subject: str, key: str, value: str) -> Statement:
        """Return a statement in one of the split's wordings."""
        return Statement(kind, subject, key, value, self.rng.choice(self._wordings))

    def fact(self, subject: str, relation: str, value: str | None = None) -> Statement:
        """Return the fact that the subject's relation is ``value``, or a new name if that is None."""
        return self.say("fact", subject, relation, self.cast.new(self.rng) if value is None else value)

    def other_fact(self, subject: str, relations: set[str]) -> Statement:
        """Return a fact in a relation that is not yet in ``relations``, and add the relation to it."""
        relation = self.rng.choice([name for name in RELATIONS if name not in relations])
        relations.add(relation)
        return self.fact(subject, relation)

    def journey(self, subject: str, places: Sequence[str]) -> Unit:
        """Return a journey from the first place via the others, then home."""
        start = self.say("start", subject, "", places[0])
        legs = tuple(self.say("leg", subject, a, b) for a, b in pairwise(places))
        return (start, *legs, self.say("home", subject, places[-1], ""))


def filler(
    narrator: Narrator, *, told: Sequence[str] = RELATIONS, updates: bool = True, journeys: bool = True
) -> Iterator[Unit]:
    """Yield endless filler: facts, superseded facts, journeys; each (relation, subject) is stated only once.

    Nothing is stated about a traveller except the journey.

    Args:
        told: relations of the facts.

    Raises:
        ValueError: the world is exhausted, at about 40,000 tokens.
    """
    rng, cast = narrator.rng, narrator.cast
    people = [cast.new(rng), cast.new(rng)]
    places: list[str] = []
    relations: dict[str, set[str]] = {name: set() for name in people}
    travellers = 0
    while True:
        draw = rng.random()
        if journeys and draw < 0.06:
            if travellers < MAX_FILLER_TRAVELLERS:
                travellers += 1
                subject = cast.near(rng, rng.choice(people))
                yield narrator.journey(subject, _places(narrator, places, rng.randint(2, 3)))
            continue
        subject = _person(narrator, people, relations)
        if len(relations[subject]) == len(told):
            if len(people) >= MAX_FILLER_NAMES and all(len(stated) == len(told) for stated in relations.values()):
                raise ValueError("the mini world has no more content: choose a shorter context length")
            continue
        relation = _relation(rng, told, people, relations, subject)
        value = cast.new(rng) if len(people) < MAX_FILLER_NAMES and rng.random() < 0.3 else rng.choice(people)
        if value == subject:
            continue
        relations[subject].add(relation)
        if value not in relations:
            people.append(value)
            relations[value] = set()
        fact = narrator.fact(subject, relation, value)
        if updates and draw > 0.92:
            newer = rng.choice(people)
            if newer not in (subject, value):
                yield fact, narrator.say("update", subject, relation, newer)
                continue
        yield (fact,)


def essay(rng: Random, split: Split, avoid: Sequence[str] = ()) -> Iterator[str]:
    """Yield endless text that no question is about: one chronicle after another.

    ``avoid``: names whose syllables do not occur in the text's names.
    """
    while True:
        cast = Cast(split)
        for name in avoid:
            cast.block(name)
        stream = filler(Narrator(rng, cast, split))
        for _ in range(1000):
            yield " ".join(statement.sentence for statement in next(stream))


def _person(narrator: Narrator, people: list[str], relations: dict[str, set[str]]) -> str:
    """Return a known person, or a new one whose name is often a near-duplicate of a known name."""
    rng = narrator.rng
    if len(people) < MAX_FILLER_NAMES and rng.random() < 0.3:
        near = rng.random() < 0.6
        name = narrator.cast.near(rng, rng.choice(people)) if near else narrator.cast.new(rng)
        people.append(name)
        relations[name] = set()
        return name
    return rng.choice(people)


def _relation(
    rng: Random, allowed: Sequence[str], people: list[str], relations: dict[str, set[str]], subject: str
) -> str:
    """Return a relation not yet stated for the subject, often one that is stated for another person."""
    open_relations = [name for name in allowed if name not in relations[subject]]
    copied = [name for name in relations[rng.choice(people)] if name in open_relations]
    return rng.choice(sorted(copied) if copied and rng.random() < 0.6 else open_relations)


def _places(narrator: Narrator, places: list[str], count: int) -> list[str]:
    while len(places) < count or (len(places) < MAX_FILLER_PLACES and narrator.rng.random() < 0.5):
        places.append(narrator.cast.new(narrator.rng))
    return narrator.rng.sample(places, count)


class Ledger:
    """The facts of a finished document, indexed for questions."""

    def __init__(self, statements: Sequence[Statement]) -> None:
        self.facts: dict[tuple[str, str], Statement] = {}
        self.updates: dict[tuple[str, str], Statement] = {}
        self.journeys: dict[str, list[Statement]] = {}
        for statement in statements:
            pair = statement.key, statement.subject
            if statement.kind == "fact":
                self.facts[pair] = statement
            elif statement.kind == "update":
                self.updates[pair] = statement
            else:
                self.journeys.setdefault(statement.subject, []).append(statement)
        self.settled = {pair: fact for pair, fact in self.facts.items() if pair not in self.updates}
        """Facts that no update supersedes."""
        self.relations_of: dict[str, list[str]] = {}
        for relation, subject in self.settled:
            self.relations_of.setdefault(subject, []).append(relation)


def not_stated_query(topic: str, question: str) -> Query:
    """Return the query of a question that the document does not answer."""
    return Query(topic, question, UNANSWERABLE, (), worked_response([f"{topic} is not stated"], UNANSWERABLE))
