"""Plain text that teaches a randomly initialised model to attend to its context: copies, lists of facts, drills."""

from collections.abc import Callable, Sequence
from random import Random

from longctx_rl.data.generators.chronicle import SOURCE, Request, more_queries, render, tell
from longctx_rl.data.generators.longreason import HEADER, LETTERS, addition, consecutive, list_options
from longctx_rl.data.generators.names import SYLLABLES, Cast, Split, split_of
from longctx_rl.data.generators.passages import MOST, Teller
from longctx_rl.data.generators.wording import NUM_CORES, OPENERS, RELATIONS, Kind, Statement, wordings
from longctx_rl.data.generators.world import Ledger, Narrator, Query, filler
from longctx_rl.types import Example

COPY_LENGTH = 64
"""Tokens of a copy row if the length is 0."""
MIN_PERIOD, MAX_PERIOD = 4, 48
MAX_GAP = 8
"""With a fixed period and gap, the model would learn to attend by distance instead of by content."""

MAX_OPENER_WORDS = 5
MAX_RELATIONS = 3
"""Maximum number of relations in a list of pairs."""
AMOUNTS, SUMS = 4, 8
"""Amounts and sums per drill."""

_OPENER_WORDS = tuple(sorted({word for opener in OPENERS for word in opener.split()}))
_PIECES = (*SYLLABLES, *(f" {syllable}" for syllable in SYLLABLES), *(f" {relation}" for relation in RELATIONS))


def generate_copy(request: Request) -> tuple[Example, ...]:
    """Return a few tokens followed by a repeated sequence of distinct tokens, as one question.

    The period is at most 3/8 of the length, so that every row contains the sequence at least twice. The question is the
    first token of the second repetition; everything after it is predictable and is the target.
    """
    rng = request.rng("copy")
    length = request.length or COPY_LENGTH
    period, gap = rng.randint(MIN_PERIOD, min(MAX_PERIOD, length * 3 // 8)), rng.randint(0, MAX_GAP)
    pieces = _distinct_pieces(rng, request.split, gap + period, starts=(0, gap))
    before, sequence = pieces[:gap], pieces[gap:]
    row = before + [sequence[i % period] for i in range(length - gap)]
    start = gap + period
    example = Example(
        id=request.example_id(0),
        document="".join(row[:start]),
        question=row[start],
        answer="".join(row[start + 1 :]),
        task=request.task,
        source=SOURCE,
        family_id=request.family_id,
        length=length,
        chat=False,
    )
    return (example,)


def _distinct_pieces(rng: Random, split: Split, count: int, starts: tuple[int, ...]) -> list[str]:
    """Return single-token pieces in random order; two neighbours never form a name of the other split.

    Pieces at ``starts`` begin a word, so that any piece may precede them.
    """
    chosen: list[str] = []
    for piece in rng.sample(_PIECES, len(_PIECES)):
        name = chosen[-1].strip() + piece if chosen else ""
        continues = not piece.startswith(" ")
        if continues and (len(chosen) in starts or (chosen[-1].strip() in SYLLABLES and split_of(name) != split)):
            continue
        chosen.append(piece)
        if len(chosen) == count:
            break
    return chosen


class ListNarrator(Narrator):
    """Opens the sentences of a training list with random words from the openers, but never in a held-out wording.

    The split has so few wordings that a model trained on them alone learns each one individually, and misreads the
    held-out ones.
    """

    def say(self, kind: Kind, subject: str, key: str, value: str) -> Statement:
        """Return a statement with a random opener, or with the split's wordings for the test split."""
        if self.split == "test":
            return super().say(kind, subject, key, value)
        while True:
            opener = " ".join(self.rng.choices(_OPENER_WORDS, k=self.rng.randint(1, MAX_OPENER_WORDS)))
            wording = opener, self.rng.randrange(NUM_CORES)
            if wording not in wordings("test"):
                return Statement(kind, subject, key, value, wording)


def generate_lookup(request: Request) -> tuple[Example, ...]:
    """Return a list of facts and the canonical beginning of one of them; the target is only its value.

    A short list rarely states a relation for two people, so the relation alone identifies the fact.
    """
    return _generate_list(request, RELATIONS, ask_lookup)


def generate_pairs(request: Request) -> tuple[Example, ...]:
    """Return such a list over few relations, so that only the subject identifies a fact; both directions are queried.

    Questions for the subject make a model associate a value with its subject. Without them this takes thousands of
    steps, because only the value has to be found.
    """
    rng = request.rng("relations")
    relations = rng.sample(RELATIONS, rng.randint(1, MAX_RELATIONS))
    return _generate_list(request, relations, ask_pairs)


def _generate_list(
    request: Request, relations: Sequence[str], ask: Callable[[Random, Split, Ledger], Query | None]
) -> tuple[Example, ...]:
    """Return facts in ``relations``; the first question is for a value, ``ask`` draws the others."""
    rng = request.rng(request.task)
    cast = Cast(request.split)
    narrator = ListNarrator(rng, cast, request.split)
    first = narrator.fact(cast.new(rng), rng.choice(relations))
    query = value_query(first)
    others = ListNarrator(request.rng("filler"), cast, request.split)
    stream = filler(others, told=relations, updates=False, journeys=False)
    facts = tell(request, [(first,)], stream, query.question, chat=False)
    queries = [query, *more_queries(request, ask, Ledger(facts), {query.topic})]
    return render(request, facts, queries, chat=False)


def ask_lookup(rng: Random, split: Split, ledger: Ledger) -> Query | None:
    """Return a query for the value of any fact, with the same wording in every split."""
    del split
    return value_query(rng.choice(list(ledger.facts.values())))


def ask_pairs(rng: Random, split: Split, ledger: Ledger) -> Query | None:
    """Return a query for the value or the subject of any fact; None if several subjects have this value."""
    if rng.random() < 0.5:
        return ask_lookup(rng, split, ledger)
    fact = rng.choice(list(ledger.facts.values()))
    alike = [other for other in ledger.facts.values() if (other.key, other.value) == (fact.key, fact.value)]
    return subject_query(fact) if len(alike) == 1 else None


def value_query(fact: Statement) -> Query:
    """Return the query with the fact's canonical wording up to the value."""
    return _continued(fact.canonical.removesuffix(fact.value).rstrip(), fact.value, fact)


def subject_query(fact: Statement) -> Query:
    """Return the query with the inverted wording of the fact up to the subject."""
    return _continued(f"{fact.value} is the {fact.key} of", fact.subject, fact)


def _continued(start: str, answer: str, fact: Statement) -> Query:
    return Query(start, f" {start}", answer, (fact,), f" {answer}")


def generate_drill(request: Request) -> tuple[Example, ...]:
    """Return a building block of multiple choice, in rotation: letters of names, letters of numbers, amounts, sums.

    Each is one token in a response of forty, too rare for a randomly initialised model to learn from full responses.
    The target is only that token.
    """
    rng = request.rng(request.task)
    document, pairs = (_names, _numbers, _amounts, _sums)[request.family % 4](rng, request.split)
    return tuple(
        Example(
            id=request.example_id(index),
            document=document,
            question=f" {start}",
            answer=f" {end}",
            task=request.task,
            source=SOURCE,
            family_id=request.family_id,
            length=request.length,
            chat=False,
        )
        for index, (start, end) in enumerate(rng.sample(pairs, min(request.questions, len(pairs))))
    )


Drill = tuple[str, list[tuple[str, str]]]
"""A document, and pairs of the beginning of a sentence and its next word."""


def _names(rng: Random, split: Split) -> Drill:
    cast = Cast(split)
    names = [cast.protagonist(rng) for _ in LETTERS]
    return list_options(names), list(zip(names, LETTERS, strict=True))


def _numbers(rng: Random, split: Split) -> Drill:
    del split
    numbers = consecutive(rng, rng.randint(0, MOST + 1 - len(LETTERS)))
    return list_options(numbers), list(zip(numbers, LETTERS, strict=True))


def _amounts(rng: Random, split: Split) -> Drill:
    teller = Teller(rng, Cast(split), split)
    facts = [teller.amount() for _ in range(AMOUNTS)]
    document = f"{HEADER}\n" + "\n".join(fact.sentence for fact in facts)
    return document, [(f"to {fact.subject}", fact.value) for fact in facts]


def _sums(rng: Random, split: Split) -> Drill:
    del split
    pairs = [rng.sample(range(1, MOST + 1), 2) for _ in range(SUMS)]
    return "Sums.", [(addition(amount, total), str(total)) for amount, total in pairs]
