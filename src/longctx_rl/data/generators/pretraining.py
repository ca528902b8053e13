"""Running text that teaches a fresh model to look back: copies of random sequences, facts and drills by the dozen."""

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
"""Tokens of a copy row if no length is asked for."""
MIN_PERIOD, MAX_PERIOD = 4, 48
MAX_GAP = 8
"""A period and a gap of fixed width would teach to look back by distance instead of by content."""

MAX_OPENER_WORDS = 5
MAX_RELATIONS = 3
"""Relations that a list of pairs is about."""
AMOUNTS, SUMS = 4, 8
"""Of a drill."""

_OPENER_WORDS = tuple(sorted({word for opener in OPENERS for word in opener.split()}))
_PIECES = (*SYLLABLES, *(f" {syllable}" for syllable in SYLLABLES), *(f" {relation}" for relation in RELATIONS))


def generate_copy(request: Request) -> tuple[Example, ...]:
    """Some tokens, then a sequence of distinct tokens over and over. One question only.

    Its period is at most 3/8 of the length, so that every row holds it at least twice. The question is the first
    token of the second time; all that follows can be known, and is the target.
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
    """Single-token pieces in random order; two neighbours never spell a name of the other split.

    Pieces at ``starts`` begin a word, so that anything may stand before them.
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
    """Opens a sentence of a training list with any few of the openers' words, never in a held-out wording.

    From the wordings of the split alone, which are few, a model learns how to read each of them, and then misreads
    the held-out ones.
    """

    def say(self, kind: Kind, subject: str, key: str, value: str) -> Statement:
        """A statement as described."""
        if self.split == "test":
            return super().say(kind, subject, key, value)
        while True:
            opener = " ".join(self.rng.choices(_OPENER_WORDS, k=self.rng.randint(1, MAX_OPENER_WORDS)))
            wording = opener, self.rng.randrange(NUM_CORES)
            if wording not in wordings("test"):
                return Statement(kind, subject, key, value, wording)


def generate_lookup(request: Request) -> tuple[Example, ...]:
    """A list of facts, and the beginning of one of them in canonical words; the target is its value alone.

    A short list seldom tells a relation of two people, so the relation alone tells which fact is meant.
    """
    return _generate_list(request, RELATIONS, ask_lookup)


def generate_pairs(request: Request) -> tuple[Example, ...]:
    """The same about few relations, so that it takes the subject to tell which fact is meant; asked from both sides.

    Questions for the subject are what makes a model tie a value to its subject. Without them it takes thousands of
    steps, as the value is all that has to be found.
    """
    rng = request.rng("relations")
    told = rng.sample(RELATIONS, rng.randint(1, MAX_RELATIONS))
    return _generate_list(request, told, ask_pairs)


def _generate_list(
    request: Request, told: Sequence[str], ask: Callable[[Random, Split, Ledger], Query | None]
) -> tuple[Example, ...]:
    """Facts about the relations ``told``; the first question is for a value, what ``ask`` draws are the others."""
    rng = request.rng(request.task)
    cast = Cast(request.split)
    narrator = ListNarrator(rng, cast, request.split)
    first = narrator.fact(cast.new(rng), rng.choice(told))
    query = value_query(first)
    others = ListNarrator(request.rng("filler"), cast, request.split)
    stream = filler(others, told=told, updates=False, journeys=False)
    facts = tell(request, [(first,)], stream, query.question, chat=False)
    queries = [query, *more_queries(request, ask, Ledger(facts), {query.topic})]
    return render(request, facts, queries, chat=False)


def ask_lookup(rng: Random, split: Split, ledger: Ledger) -> Query | None:
    """For the value of any fact; it is asked for in the same words in every split."""
    del split
    return value_query(rng.choice(list(ledger.facts.values())))


def ask_pairs(rng: Random, split: Split, ledger: Ledger) -> Query | None:
    """For the value or for the subject of any fact; None if the subject is not the only one with this value."""
    if rng.random() < 0.5:
        return ask_lookup(rng, split, ledger)
    fact = rng.choice(list(ledger.facts.values()))
    alike = [other for other in ledger.facts.values() if (other.key, other.value) == (fact.key, fact.value)]
    return subject_query(fact) if len(alike) == 1 else None


def value_query(fact: Statement) -> Query:
    """The fact's canonical words, cut off before the value."""
    return _continued(fact.canonical.removesuffix(fact.value).rstrip(), fact.value, fact)


def subject_query(fact: Statement) -> Query:
    """The fact told from its value's side, cut off before the subject."""
    return _continued(f"{fact.value} is the {fact.key} of", fact.subject, fact)


def _continued(start: str, answer: str, fact: Statement) -> Query:
    return Query(start, f" {start}", answer, (fact,), f" {answer}")


def generate_drill(request: Request) -> tuple[Example, ...]:
    """What multiple choice is made of, by turns: letters of names and of numbers, amounts that are told, and sums.

    Each is one token of a response of forty, too seldom for a fresh model to learn from whole responses. The target is
    that token alone.
    """
    rng = request.rng(request.task)
    document, asked = (_names, _numbers, _amounts, _sums)[request.family % 4](rng, request.split)
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
        for index, (start, end) in enumerate(rng.sample(asked, min(request.questions, len(asked))))
    )


Drill = tuple[str, list[tuple[str, str]]]
"""A document; what a sentence begins with, and its next word."""


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
