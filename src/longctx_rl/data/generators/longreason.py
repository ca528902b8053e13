"""Short reasoning items, told at length: LongReason's construction (arXiv 2501.15089) on the mini world.

An item is a handful of facts, a question and four options. The same item comes in three forms:

    original    the facts, one sentence each
    expanded    each fact in a passage of its own
    context     those passages among passages of the same kind about other people, up to a length

So expanded against original is what wordiness costs, and a length against expanded is what distance and distraction
cost. Three kinds of reasoning: reading (relations in a chain), logic (an order from pairs), arithmetic (amounts from
differences).

A small model copies what follows a name, and in a thousand steps did not learn to find what stands before one, or a few
tokens behind. So an option's letter and somebody's amount stand right behind them, a response names an option with its
letter before the last line, and starts at whom the question names, to go on from fact to fact.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import Literal, get_args

from longctx_rl.data.generators.chronicle import LENGTH_TOLERANCE, SOURCE, Request, fit_units, token_counter
from longctx_rl.data.generators.names import Cast, Split
from longctx_rl.data.generators.wording import CORES, RELATIONS, Wording, wordings
from longctx_rl.data.prompts import encode_prompt
from longctx_rl.types import Evidence, Example

Form = Literal["original", "expanded", "context"]
FORMS: tuple[Form, ...] = get_args(Form)
Reasoning = Literal["reading", "logic", "arithmetic"]
REASONING: tuple[Reasoning, ...] = get_args(Reasoning)
LETTERS = "ABCD"
HEADER = "Chronicle."
FACTS: dict[str, tuple[str, ...]] = {
    "relation": CORES["fact"],
    "before": (
        "{subject} came before {value}",
        "{subject} arrived before {value}",
        "{subject} was there before {value}",
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
"""Kind of fact to its wordings; the first is the one in which a response restates it."""
AROUND = (
    "That is all that is known.",
    "No one has said more of it.",
    "It was so for a very long time.",
    "The elders tell it to this day.",
    "Of the rest there are no records.",
    "So it is written in the table of the host.",
)
"""What a passage says beside its fact: nothing."""
MOST = 9
"""Of anything: one digit, one token, which a letter follows."""
MAX_ITEMS = 4
"""In one document: each keeps the syllables of its people to itself."""
MOST_TOKENS = 80
"""More than any passage takes."""


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing that an item's passages tell."""

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


@dataclass(frozen=True, slots=True)
class Item:
    """What is the same in every form."""

    reasoning: Reasoning
    facts: tuple[Fact, ...]
    question: str
    options: tuple[str, ...]
    right: int
    steps: tuple[str, ...]

    @property
    def letter(self) -> str:
        return LETTERS[self.right]


class Teller:
    """Draws facts of one document: wordings from the split, names from the cast."""

    def __init__(self, rng: Random, cast: Cast, split: Split) -> None:
        self.rng, self.cast, self.split = rng, cast, split
        self._wordings = wordings(split)

    def fact(self, kind: str, subject: str, value: str, key: str = "") -> Fact:
        return Fact(kind, subject, value, key, self.rng.choice(self._wordings))

    def amount(self) -> Fact:
        """How many somebody has, or how many more or fewer than somebody else."""
        kind = self.rng.choice(("has", "more", "less"))
        return self.fact(kind, self.cast.new(self.rng), str(self.rng.randint(1, MOST)), self.cast.new(self.rng))

    def passage(self, fact: Fact) -> str:
        """A fact with sentences around it that say nothing."""
        before, after = self.rng.sample(AROUND, 2)
        return f"{fact.sentence} {after}\n" if self.rng.random() < 0.5 else f"{before} {fact.sentence}\n"

    def others(self) -> Iterator[str]:
        """Passages of the same kinds about people of whom nothing is asked, without end."""
        rng, cast = self.rng, self.cast
        while True:
            kind = rng.choice(tuple(FACTS))
            subject, other = cast.new(rng), cast.new(rng)
            if kind == "relation":
                fact = self.fact(kind, subject, other, rng.choice(RELATIONS))
            elif kind == "before":
                fact = self.fact(kind, subject, other)
            else:
                fact = self.fact(kind, subject, str(rng.randint(1, MOST)), other)
            yield self.passage(fact)


def draw_item(teller: Teller, reasoning: Reasoning) -> Item:
    """An item of a kind, with the right letter drawn uniformly."""
    return {"reading": _reading, "logic": _logic, "arithmetic": _arithmetic}[reasoning](teller)


def _reading(teller: Teller) -> Item:
    rng, cast = teller.rng, teller.cast
    hops = rng.randint(1, 2)
    people = [cast.protagonist(rng) for _ in range(hops + 1)]
    relations = rng.sample(RELATIONS, hops + 1)
    facts = [teller.fact("relation", people[i], people[i + 1], relations[i]) for i in range(hops)]
    elsewhere = [teller.fact("relation", people[i], cast.protagonist(rng), relations[hops]) for i in range(hops)]
    wrong = [*people[1:-1], *(fact.value for fact in elsewhere)]
    while len(wrong) < 3:  # every option is somebody in the document
        elsewhere.append(teller.fact("relation", cast.near(rng, people[0]), cast.protagonist(rng), relations[0]))
        wrong.append(elsewhere[-1].value)
    topic = "the " + " of the ".join(reversed(relations[:hops])) + f" of {people[0]}"
    steps = tuple(fact.canonical for fact in facts)
    return _item(rng, "reading", [*facts, *elsewhere], f"who is {topic}?", people[-1], wrong[:3], steps)


def _logic(teller: Teller) -> Item:
    rng, cast = teller.rng, teller.cast
    people = [cast.protagonist(rng) for _ in range(4)]
    facts = [teller.fact("before", a, b) for a, b in pairwise(people)]
    first = rng.random() < 0.5
    order = people[::-1] if first else people
    start = rng.randrange(len(people) - 1)
    told = [fact.canonical for fact in (facts[::-1] if first else facts)[start:]]
    place, side = ("first", "before") if first else ("last", "after")
    question = f"who was there {place}, {side} {order[start]} and two others?"
    return _item(rng, "logic", facts, question, order[-1], order[:-1], (*told, f"the {place} is {order[-1]}"))


def _arithmetic(teller: Teller) -> Item:
    rng, cast = teller.rng, teller.cast
    people = [cast.protagonist(rng) for _ in range(rng.randint(2, 3))]
    amount = rng.randint(1, MOST)
    facts = [teller.fact("has", people[0], str(amount))]
    sums: list[str] = []
    for before, person in pairwise(people):
        total = rng.choice([one for one in range(1, MOST + 1) if one != amount])
        kind = "less" if total < amount else "more"
        facts.append(teller.fact(kind, person, str(abs(total - amount)), before))
        sums.append(f"{addition(amount, total)} {total}")
        amount = total
    steps = (*(fact.canonical for fact in reversed(facts)), *sums)
    highest = MOST + 1 - len(LETTERS)
    lowest = rng.randint(max(amount + 1 - len(LETTERS), 0), min(amount, highest))  # the right one is at any place
    wrong = [one for one in consecutive(rng, lowest) if one != str(amount)]
    question = f"how many tables belong to {people[-1]}?"
    return _item(rng, "arithmetic", facts, question, str(amount), wrong, steps)


def addition(amount: int, total: int) -> str:
    """What leads from an amount to a total, without the total: ``5 + 3 =``."""
    return f"{amount} {'-' if total < amount else '+'} {abs(total - amount)} ="


def consecutive(rng: Random, lowest: int) -> list[str]:
    """As many numbers as there are letters, in random order."""
    return [str(lowest + one) for one in rng.sample(range(len(LETTERS)), len(LETTERS))]


def list_options(options: Sequence[str]) -> str:
    """The options with their letters, as a question ends."""
    return "Options: " + ", ".join(f"{option} {letter}" for option, letter in zip(options, LETTERS, strict=True)) + "."


def _item(
    rng: Random,
    reasoning: Reasoning,
    facts: Sequence[Fact],
    question: str,
    answer: str,
    wrong: Sequence[str],
    steps: tuple[str, ...],
) -> Item:
    right = rng.randrange(len(LETTERS))
    options = rng.sample(list(wrong), len(wrong))
    options.insert(right, answer)
    return Item(reasoning, tuple(facts), question, tuple(options), right, steps)


def generate_any_form(request: Request) -> tuple[Example, ...]:
    """For training: up to the length; without one, the facts alone or each in a passage, by turns."""
    short: Form = "original" if request.family % 2 else "expanded"
    return generate_longreason(request, form="context" if request.length else short)


def generate_longreason(request: Request, *, form: Form = "context") -> tuple[Example, ...]:
    """One item; ``length`` is met by the form ``context`` alone, and 0 leaves the other passages out.

    With ``request.questions``, further items told in the same document, four at most, if there is room for them.

    Raises:
        ValueError: the length is too short for the family.
    """
    cast = Cast(request.split)
    teller = Teller(request.rng("item"), cast, request.split)
    count = min(request.questions, MAX_ITEMS)
    kinds = [REASONING[(request.family + index) % len(REASONING)] for index in range(count)]
    told = [draw_item(teller, kind) for kind in kinds]
    kept = told
    while True:
        document = _document(request, form, teller, kept)
        if document is not None:
            break
        kept = kept[:-1]
        if not kept:
            raise ValueError(f"{request.family_id} does not fit: raise length={request.length}")
    return tuple(_example(request, form, item, document, index) for index, item in enumerate(kept))


def _document(request: Request, form: Form, teller: Teller, items: Sequence[Item]) -> str | None:
    """The text that tells the items' facts; None if the length is too short for them."""
    places = request.rng("places")
    facts = [fact for item in items for fact in item.facts]
    texts = [f"{fact.sentence}\n" if form == "original" else teller.passage(fact) for fact in facts]
    placed = [(places.random(), text) for text in texts]
    if form == "context" and request.length:
        count = token_counter(request.tokenizer)
        frame = _example(request, form, items[0], f"{HEADER}\n", 0)
        used = sum(map(len, encode_prompt(request.tokenizer, frame))) + sum(count(text) for text in texts)
        if used > request.length * (1 + LENGTH_TOLERANCE):
            return None
        others = Teller(request.rng("others"), teller.cast, request.split).others()
        filler = fit_units(others, request.length - used, count, most=MOST_TOKENS)
        placed += [(places.random(), text) for text in filler]
    placed.sort(key=lambda one: one[0])
    return f"{HEADER}\n" + "".join(text for _, text in placed).rstrip("\n")


def _example(request: Request, form: Form, item: Item, document: str, number: int) -> Example:
    suffix = f"-q{number}" if number else ""
    return Example(
        id=f"{request.family_id}-{form}-L{request.length}{suffix}",
        document=document,
        question=f"Question: {item.question} {list_options(item.options)}",
        answer=item.letter,
        task=request.task,
        response=". ".join(item.steps) + f" {item.letter}.\nAnswer: {item.letter}",
        source=SOURCE,
        evidence=tuple(
            Evidence(fact.sentence, fact.canonical, max(document.find(fact.sentence), 0) / max(len(document), 1))
            for fact in item.facts
            if fact.canonical in item.steps
        ),
        family_id=f"{request.family_id}-{item.reasoning}",
        length=request.length,
    )
