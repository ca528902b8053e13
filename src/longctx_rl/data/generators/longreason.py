"""Short reasoning items in long contexts: LongReason's construction (arXiv 2501.15089) in the mini world.

An item is a handful of facts, a question and four options. The same item comes in three forms:

    original    the facts, one sentence each
    expanded    each fact in a separate passage
    context     those passages among similar passages about other people, up to a length

The gap between expanded and original is the cost of wordiness; the gap between context and expanded is the cost of
distance and distraction. There are three kinds of reasoning: reading (relations in a chain), logic (an order from
pairs), arithmetic (amounts from differences).

A small model copies what follows a name; in a thousand steps it did not learn to find what precedes a name or follows
a few tokens later. Therefore the letter of an option and the amount of a person come directly after them, a response
names an option with its letter before the last line, and it starts from the person in the question and proceeds from
fact to fact.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import Literal, get_args

from longctx_rl.data.generators.chronicle import LENGTH_TOLERANCE, SOURCE, Request, fit_units, token_counter
from longctx_rl.data.generators.names import Cast
from longctx_rl.data.generators.passages import MOST, Fact, Teller
from longctx_rl.data.generators.wording import RELATIONS
from longctx_rl.data.prompts import encode_prompt
from longctx_rl.types import Evidence, Example

Form = Literal["original", "expanded", "context"]
FORMS: tuple[Form, ...] = get_args(Form)
Reasoning = Literal["reading", "logic", "arithmetic"]
REASONING: tuple[Reasoning, ...] = get_args(Reasoning)
LETTERS = "ABCD"
HEADER = "Chronicle."
MAX_ITEMS = 4
"""Maximum items in one document: the syllables of each item's people are exclusive to it."""
MOST_TOKENS = 80
"""Exceeds the tokens of any passage."""


@dataclass(frozen=True, slots=True)
class MultipleChoiceItem:
    """The content of an item, which is the same in every form."""

    reasoning: Reasoning
    facts: tuple[Fact, ...]
    question: str
    options: tuple[str, ...]
    right: int
    steps: tuple[str, ...]

    @property
    def letter(self) -> str:
        return LETTERS[self.right]


def _reading(teller: Teller) -> MultipleChoiceItem:
    rng, cast = teller.rng, teller.cast
    hops = rng.randint(1, 2)
    people = [cast.protagonist(rng) for _ in range(hops + 1)]
    relations = rng.sample(RELATIONS, hops + 1)
    facts = [teller.fact("relation", people[i], people[i + 1], relations[i]) for i in range(hops)]
    elsewhere = [teller.fact("relation", people[i], cast.protagonist(rng), relations[hops]) for i in range(hops)]
    wrong = [*people[1:-1], *(fact.value for fact in elsewhere)]
    while len(wrong) < 3:  # every option appears in the document
        elsewhere.append(teller.fact("relation", cast.near(rng, people[0]), cast.protagonist(rng), relations[0]))
        wrong.append(elsewhere[-1].value)
    topic = "the " + " of the ".join(reversed(relations[:hops])) + f" of {people[0]}"
    steps = tuple(fact.canonical for fact in facts)
    return _item(rng, "reading", [*facts, *elsewhere], f"who is {topic}?", people[-1], wrong[:3], steps)


def _logic(teller: Teller) -> MultipleChoiceItem:
    rng, cast = teller.rng, teller.cast
    order = [cast.protagonist(rng) for _ in range(4)]
    kind, place = rng.choice((("before", "last"), ("after", "first")))
    facts = [teller.fact(kind, a, b) for a, b in pairwise(order)]
    steps = (*(fact.canonical for fact in facts), f"the {place} is {order[-1]}")
    question = f"who was there {place}, {'after' if place == 'last' else 'before'} {order[0]} and two others?"
    return _item(rng, "logic", facts, question, order[-1], order[:-1], steps)


def _arithmetic(teller: Teller) -> MultipleChoiceItem:
    rng, cast = teller.rng, teller.cast
    people = [cast.protagonist(rng) for _ in range(rng.randint(2, 3))]
    amount = rng.randint(1, MOST)
    facts = [teller.fact("has", people[0], str(amount))]
    sums: list[str] = []
    for before, person in pairwise(people):
        total = rng.choice([other for other in range(1, MOST + 1) if other != amount])
        kind = "less" if total < amount else "more"
        facts.append(teller.fact(kind, person, str(abs(total - amount)), before))
        sums.append(f"{addition(amount, total)} {total}")
        amount = total
    steps = (*(fact.canonical for fact in reversed(facts)), *sums)
    highest = MOST + 1 - len(LETTERS)
    lowest = rng.randint(max(amount + 1 - len(LETTERS), 0), min(amount, highest))  # the answer may have any rank
    wrong = [option for option in consecutive(rng, lowest) if option != str(amount)]
    question = f"how many tables belong to {people[-1]}?"
    return _item(rng, "arithmetic", facts, question, str(amount), wrong, steps)


def addition(amount: int, total: int) -> str:
    """Return the sum that leads from an amount to a total, without the total: ``5 + 3 =``."""
    return f"{amount} {'-' if total < amount else '+'} {abs(total - amount)} ="


DRAWN: dict[Reasoning, Callable[[Teller], MultipleChoiceItem]] = {
    "reading": _reading,
    "logic": _logic,
    "arithmetic": _arithmetic,
}
"""Functions that draw an item of each kind, with a uniformly distributed correct letter."""


def consecutive(rng: Random, lowest: int) -> list[str]:
    """Return as many consecutive numbers as there are letters, in random order."""
    return [str(lowest + offset) for offset in rng.sample(range(len(LETTERS)), len(LETTERS))]


def list_options(options: Sequence[str]) -> str:
    """Return the options with their letters, which end a question."""
    return "Options: " + ", ".join(f"{option} {letter}" for option, letter in zip(options, LETTERS, strict=True)) + "."


def _item(
    rng: Random,
    reasoning: Reasoning,
    facts: Sequence[Fact],
    question: str,
    answer: str,
    wrong: Sequence[str],
    steps: tuple[str, ...],
) -> MultipleChoiceItem:
    right = rng.randrange(len(LETTERS))
    options = rng.sample(list(wrong), len(wrong))
    options.insert(right, answer)
    return MultipleChoiceItem(reasoning, tuple(facts), question, tuple(options), right, steps)


def generate_any_form(request: Request) -> tuple[Example, ...]:
    """Generate a training item: in context up to the length; if that is 0, alternately original and expanded."""
    short: Form = "original" if request.family % 2 else "expanded"
    return generate_longreason(request, form="context" if request.length else short)


def generate_longreason(request: Request, *, form: Form = "context") -> tuple[Example, ...]:
    """Return one item. Only the form ``context`` fills up to ``length``; 0 omits the other passages.

    With ``request.questions``, the document holds further items, at most four, if there is room for them.

    Raises:
        ValueError: the length is too short for the family.
    """
    cast = Cast(request.split)
    teller = Teller(request.rng("item"), cast, request.split)
    count = min(request.questions, MAX_ITEMS)
    kinds = [REASONING[(request.family + index) % len(REASONING)] for index in range(count)]
    items = [DRAWN[kind](teller) for kind in kinds]
    kept = items
    while True:
        document = _document(request, form, teller, kept)
        if document is not None:
            break
        kept = kept[:-1]
        if not kept:
            raise ValueError(f"{request.family_id} does not fit: raise length={request.length}")
    return tuple(_example(request, form, item, document, index) for index, item in enumerate(kept))


def _document(request: Request, form: Form, teller: Teller, items: Sequence[MultipleChoiceItem]) -> str | None:
    """Return the text with the items' facts; None if the length is too short for them."""
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
    placed.sort(key=lambda pair: pair[0])
    return f"{HEADER}\n" + "".join(text for _, text in placed).rstrip("\n")


def _example(request: Request, form: Form, item: MultipleChoiceItem, document: str, number: int) -> Example:
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
