"""Facts of reasoning items in the split's wordings, as a single sentence or in a passage without further content."""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from longctx_rl.data.generators.names import Cast, Split
from longctx_rl.data.generators.wording import CORES, RELATIONS, Wording, wordings

FACTS: dict[str, tuple[str, ...]] = {
    "relation": CORES["fact"],
    "before": (
        "{subject} came before {value}",
        "{subject} arrived before {value}",
        "{subject} was there before {value}",
    ),
    "after": (
        "{subject} came after {value}",
        "{subject} arrived after {value}",
        "{subject} was there after {value}",
    ),
    "has": (
        "to {subject} {value} tables belong",
        "with {subject} {value} tables stand",
        "by {subject} {value} tables are kept",
    ),
    "more": (
        "to {subject} {value} more tables belong than to {key}",
        "with {subject} {value} more tables stand than with {key}",
        "by {subject} {value} more tables are kept than by {key}",
    ),
    "less": (
        "to {subject} {value} fewer tables belong than to {key}",
        "with {subject} {value} fewer tables stand than with {key}",
        "by {subject} {value} fewer tables are kept than by {key}",
    ),
}
"""Wordings by kind of fact; a response restates a fact in the first one."""
AROUND = (
    "That is all that is known.",
    "No one has said more of it.",
    "It was so for a very long time.",
    "The elders tell it to this day.",
    "Of the rest there are no records.",
    "So it is written in the table of the host.",
)
"""Sentences without content that surround the fact of a passage."""
MOST = 9
"""Maximum amount: one digit, so that it is one token before an option's letter."""


@dataclass(frozen=True, slots=True)
class Fact:
    """One fact of an item."""

    kind: str
    subject: str
    value: str
    key: str
    wording: Wording

    @property
    def sentence(self) -> str:
        opener, core = self.wording
        return f"{opener} {self._fill(core)}."

    @property
    def canonical(self) -> str:
        return self._fill(0)

    def _fill(self, core: int) -> str:
        return FACTS[self.kind][core].format(subject=self.subject, value=self.value, key=self.key)


class Teller:
    """Draws the facts of one document: wordings from the split, names from the cast."""

    def __init__(self, rng: Random, cast: Cast, split: Split) -> None:
        self.rng, self.cast, self.split = rng, cast, split
        self._wordings = wordings(split)

    def fact(self, kind: str, subject: str, value: str, key: str = "") -> Fact:
        return Fact(kind, subject, value, key, self.rng.choice(self._wordings))

    def amount(self) -> Fact:
        """Return a fact about how many tables a person has, or how many more or fewer than another."""
        kind = self.rng.choice(("has", "more", "less"))
        return self.fact(kind, self.cast.new(self.rng), str(self.rng.randint(1, MOST)), self.cast.new(self.rng))

    def passage(self, fact: Fact) -> str:
        """Return a fact with a sentence without content before or after it."""
        before, after = self.rng.sample(AROUND, 2)
        return f"{fact.sentence} {after}\n" if self.rng.random() < 0.5 else f"{before} {fact.sentence}\n"

    def others(self) -> Iterator[str]:
        """Yield endless passages of the same kinds about people that no question mentions."""
        rng, cast = self.rng, self.cast
        while True:
            kind = rng.choice(tuple(FACTS))
            subject, other = cast.new(rng), cast.new(rng)
            if kind == "relation":
                fact = self.fact(kind, subject, other, rng.choice(RELATIONS))
            elif kind in ("before", "after"):
                fact = self.fact(kind, subject, other)
            else:
                fact = self.fact(kind, subject, str(rng.randint(1, MOST)), other)
            yield self.passage(fact)
