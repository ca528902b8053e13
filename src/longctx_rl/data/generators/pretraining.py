"""Running text that teaches a fresh model to look back: copies of random sequences, and single facts by the dozen."""

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from random import Random

from transformers import PreTrainedTokenizerBase

from longctx_rl.data.generators.chronicle import SOURCE, Request, more_queries, render, tell
from longctx_rl.data.generators.names import SYLLABLES, Cast, Split, split_of, syllables
from longctx_rl.data.generators.wording import CORES, OPENERS, RELATIONS, Statement
from longctx_rl.data.generators.world import Ledger, Narrator, Query, filler
from longctx_rl.types import Example

COPY_LENGTH = 64
"""Tokens of a copy row if no length is asked for."""
MIN_PERIOD, MAX_PERIOD = 4, 48
MAX_GAP = 8
"""A period and a gap of fixed width would teach to look back by distance instead of by content."""

NAME = re.compile(r"\b[A-Z][a-z]{2}[A-Z][a-z]{2}\b")

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


def generate_lookup(request: Request) -> tuple[Example, ...]:
    """Facts as running text, and the beginning of one of them in canonical words; the target is its value alone.

    In training each name is any two tokens, by a mapping that keeps who resembles whom. With real names a model learns
    those of training by heart, instead of matching two tokens whatever they are, and then misses held-out ones.
    """
    rng = request.rng("lookup")
    cast = Cast(request.split)
    narrator = Narrator(rng, cast, request.split)
    first = narrator.fact(cast.new(rng), rng.choice(RELATIONS))
    query = lookup_query(first)
    stream = filler(Narrator(request.rng("filler"), cast, request.split), updates=False, journeys=False)
    facts = tell(request, [(first,)], stream, query.question, chat=False)
    queries = [query, *more_queries(request, ask_lookup, Ledger(facts), {query.topic})]
    examples = render(request, facts, queries, chat=False)
    if request.split == "test":
        return examples
    new = renaming(rng, examples[0].document, *name_parts(request.tokenizer))

    def rename(text: str) -> str:
        return NAME.sub(lambda match: new[match[0]], text)

    return tuple(
        replace(
            example,
            document=rename(example.document),
            question=rename(example.question),
            answer=rename(example.answer),
            response=rename(example.target),
            evidence=tuple(replace(e, text=rename(e.text), statement=rename(e.statement)) for e in example.evidence),
        )
        for example in examples
    )


def renaming(rng: Random, document: str, beginnings: Sequence[str], endings: Sequence[str]) -> dict[str, str]:
    """New names for those of a document, syllable by syllable, one map for each place; none is of the test split."""
    pairs = {syllables(name) for name in NAME.findall(document)}
    while True:
        first, second = (
            dict(zip(used, rng.sample(parts, len(used)), strict=True))
            for used, parts in ((sorted({a for a, _ in pairs}), beginnings), (sorted({b for _, b in pairs}), endings))
        )
        new = {a + b: first[a] + second[b] for a, b in pairs}
        if not any(NAME.fullmatch(name) and split_of(name) == "test" for name in new.values()):
            return new


@lru_cache(maxsize=8)
def name_parts(tokenizer: PreTrainedTokenizerBase) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Single tokens that can begin a name, after a space, and single tokens that can end it.

    Words of the documents themselves are left out, so that a name can be told from what stands around it.
    """
    told = " ".join([*OPENERS, *RELATIONS, *(core for cores in CORES.values() for core in cores)])
    taken = set(re.findall(r"\w+", told))
    words = sorted({str(tokenizer.decode([index])) for index in tokenizer.get_vocab().values()})
    beginnings = [word[1:] for word in words if re.fullmatch(r" ([a-z]{2,}|[A-Z][a-z]+)", word)]
    endings = [word for word in words if re.fullmatch(r"[A-Z][a-z]*|[0-9]", word)]
    return tuple(word for word in beginnings if word not in taken), tuple(word for word in endings if word not in taken)


def ask_lookup(rng: Random, split: Split, ledger: Ledger) -> Query | None:
    """Any fact of the document; it is asked for in the same words in every split."""
    del split
    return lookup_query(rng.choice(list(ledger.facts.values())))


def lookup_query(fact: Statement) -> Query:
    """The fact's canonical words, cut off before the value."""
    start = fact.canonical.removesuffix(fact.value).rstrip()
    return Query(start, f" {start}", fact.value, (fact,), f" {fact.value}")
