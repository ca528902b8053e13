"""Wordings of the mini world: statements, questions, and the wordings that are held out for testing.

A sentence is ``opener core.``; a question is ``opener core``. Every opener and every core occurs in training, but each
pair belongs to one split only, like names. The subject always precedes the value, so that a model reads values from
left to right. A response restates each fact in the first core of its kind, without an opener, so that its tokens are
those of the document.
"""

from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Literal

from longctx_rl.data.generators.names import Split

Kind = Literal["fact", "update", "start", "leg", "home"]
QuestionKind = Literal["chain", "journey"]
Wording = tuple[str, int]
"""An opener, and the index of a core."""

NUM_CORES = 3
"""Number of wordings of each kind of statement and question."""

HEADER = "Chronicle."
"""First sentence of every document, so that all other sentences follow a space."""

RELATIONS: tuple[str, ...] = (
    "mentor",
    "neighbour",
    "rival",
    "cousin",
    "tenant",
    "guest",
    "doctor",
    "guard",
    "partner",
    "heir",
    "tutor",
    "patron",
    "pupil",
    "courier",
    "ally",
    "host",
)

OPENERS: tuple[str, ...] = (
    "Records show that",
    "It is said that",
    "Note that",
    "By all accounts,",
    "As the elders tell,",
    "We know that",
)

CORES: dict[Kind, tuple[str, ...]] = {
    "fact": ("the {key} of {subject} is {value}", "{subject}'s {key} is {value}", "for {subject} the {key} is {value}"),
    "update": (
        "the {key} of {subject} is now {value}",
        "{subject}'s {key} is now {value}",
        "for {subject} the {key} is now {value}",
    ),
    "start": ("first {subject} was at {value}", "first {subject} set out from {value}", "first {subject} left {value}"),
    "leg": (
        "from {key} {subject} went to {value}",
        "after {key} {subject} came to {value}",
        "from {key} on {subject} rode to {value}",
    ),
    "home": (
        "from {key} {subject} went home",
        "after {key} {subject} came home",
        "from {key} on {subject} rode home",
    ),
}

QUESTION_OPENERS: tuple[str, ...] = ("Tell me:", "By the chronicle,", "From the text,", "Question:")

QUESTION_CORES: dict[QuestionKind, tuple[str, ...]] = {
    "chain": ("who is {topic}?", "name {topic}.", "who is said to be {topic}?"),
    "journey": (
        "where did {topic} travel, in order?",
        "list the stops of {topic} in order.",
        "through which places did {topic} travel, in order?",
    ),
}


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement of a chronicle.

    ``fact``, ``update``: the ``key`` (a relation) of ``subject`` is (now) ``value``. ``start``: the subject's journey
    begins at ``value``. ``leg``: the subject goes from ``key`` to ``value``. ``home``: it goes home from ``key``; no
    value.
    """

    kind: Kind
    subject: str
    key: str
    value: str
    wording: Wording

    @property
    def sentence(self) -> str:
        """The sentence in the document."""
        opener, core = self.wording
        return f"{opener} {self._fill(CORES[self.kind][core])}."

    @property
    def canonical(self) -> str:
        """The wording in a response."""
        return self._fill(CORES[self.kind][0])

    def _fill(self, core: str) -> str:
        return core.format(key=self.key, subject=self.subject, value=self.value)


def wording_split(opener: int, core: int, num_openers: int) -> Split:
    """Return the split of a pair: each opener is held out with at most one core, each core with at least one opener."""
    return "test" if opener * 3 // num_openers == core else "train"


@cache
def wordings(split: Split, openers: tuple[str, ...] = OPENERS) -> tuple[Wording, ...]:
    """Return all (opener, core) pairs of a split; every kind of statement and question has three cores."""
    pairs = ((index, core) for index in range(len(openers)) for core in range(NUM_CORES))
    return tuple((openers[i], core) for i, core in pairs if wording_split(i, core, len(openers)) == split)


def word_question(rng: Random, split: Split, kind: QuestionKind, topic: str) -> str:
    """Return a question about ``topic`` in one of the split's wordings."""
    opener, core = rng.choice(wordings(split, QUESTION_OPENERS))
    return f"{opener} {QUESTION_CORES[kind][core].format(topic=topic)}"
