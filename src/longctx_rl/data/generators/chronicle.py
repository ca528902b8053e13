"""Documents of a given length from a family: fixed evidence and near-duplicates, and as much filler as fits."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from operator import itemgetter
from random import Random
from typing import TYPE_CHECKING, TypeVar

from longctx_rl.data.generators.names import Cast, Split
from longctx_rl.data.generators.wording import HEADER, Statement
from longctx_rl.data.generators.world import Core, Ledger, Narrator, Query, Unit, filler
from longctx_rl.data.prompts import encode_prompt, encode_text
from longctx_rl.types import Evidence, Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")
PlacedUnit = list[tuple[float, int, Statement]]
"""The statements of a unit with their positions: share of the document, tie-break, statement."""

SOURCE = "LongBlocks-mini"
LENGTH_TOLERANCE = 0.02
"""Maximum relative error of a prompt's length in tokens, for requested lengths from 256 tokens on."""

WORD = re.compile(r"\s*\S+\n*|\s+")
_LOOKAHEAD = 24
"""Filler units from which the last ones are chosen by length."""
_MAX_TOKENS = 64
"""Exceeds the tokens of any unit of a chronicle."""
_ATTEMPTS_PER_QUESTION = 8


@dataclass(frozen=True, slots=True)
class Request:
    """Arguments of a generator call."""

    task: str
    family: int
    split: Split
    length: int
    tokenizer: PreTrainedTokenizerBase
    questions: int

    @property
    def family_id(self) -> str:
        return f"{self.task}-{self.split}-{self.family:06d}"

    def rng(self, purpose: str) -> Random:
        """Return a separate random generator per purpose, so that draws for one do not affect another."""
        return Random(f"{self.family_id}/{purpose}")

    def example_id(self, question: int) -> str:
        suffix = f"-q{question}" if question else ""
        return f"{self.family_id}-L{self.length}{suffix}"


class TokenCounter:
    """Counts tokens word by word with a cache: the tokens of a text are those of its words.

    This holds for tokenizers that split at spaces first, such as those of the mini models and of Qwen. A word includes
    the blanks before it and the line ends after it, since tokens may contain both.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._counts: dict[str, int] = {}

    def __call__(self, text: str) -> int:
        counts = self._counts
        total = 0
        for word in WORD.findall(text):
            count = counts.get(word)
            if count is None:
                count = counts[word] = len(encode_text(self._tokenizer, word))
            total += count
        return total

    def sentence(self, statement: Statement) -> int:
        """Return the tokens that a statement adds to a document."""
        return self(f" {statement.sentence}")

    def unit(self, unit: PlacedUnit) -> int:
        """Return the tokens that a unit adds to a document."""
        return sum(self.sentence(statement) for _, _, statement in unit)


@lru_cache(maxsize=8)
def token_counter(tokenizer: PreTrainedTokenizerBase) -> TokenCounter:
    """Return the cached counter of a tokenizer."""
    return TokenCounter(tokenizer)


def generate_chronicle(
    request: Request,
    core: Callable[[Narrator], Core],
    ask: Callable[[Random, Split, Ledger], Query | None],
) -> tuple[Example, ...]:
    """Return a document's examples: the core's question, and up to ``questions - 1`` others that it supports.

    Raises:
        ValueError: the length is too short for the family's evidence and near-duplicates.
    """
    cast = Cast(request.split)
    rng = request.rng("core")
    fixed = core(Narrator(rng, cast, request.split))
    stream = filler(Narrator(request.rng("filler"), cast, request.split))
    statements = tell(request, fixed.units, stream, fixed.query.question)
    queries = [fixed.query]
    queries += more_queries(request, ask, Ledger(statements), {fixed.query.topic})
    return render(request, statements, queries)


def tell(
    request: Request, units: Sequence[Unit], stream: Iterator[Unit], question: str, *, chat: bool = True
) -> list[Statement]:
    """Return the document's statements in order: ``units`` and as much of ``stream`` as fits, at uniform positions.

    Raises:
        ValueError: the length is too short for ``units``.
    """
    rng = request.rng("places")
    placed = [_place(rng, unit) for unit in units]
    if request.length:
        budget = request.length - _tokens_before_filler(request, units, question, chat)
        placed += fit_units((_place(rng, unit) for unit in stream), budget, token_counter(request.tokenizer).unit)
    return [statement for _, _, statement in sorted((spot for unit in placed for spot in unit), key=itemgetter(0, 1))]


def more_queries(
    request: Request,
    ask: Callable[[Random, Split, Ledger], Query | None],
    ledger: Ledger,
    topics: set[str],
) -> Iterator[Query]:
    """Yield further questions about the document, each on a topic that is not yet in ``topics``."""
    rng = request.rng(f"questions/{request.length}")
    missing = request.questions - 1
    for _ in range(_ATTEMPTS_PER_QUESTION * missing):
        query = ask(rng, request.split, ledger)
        if query is not None and query.topic not in topics:
            topics.add(query.topic)
            yield query
            missing -= 1
            if missing == 0:
                return


def _tokens_before_filler(request: Request, units: Sequence[Unit], question: str, chat: bool) -> int:
    frame = Example(id="", document="", question=question, answer="", task=request.task, chat=chat)
    counter = token_counter(request.tokenizer)
    used = sum(len(part) for part in encode_prompt(request.tokenizer, frame)) + counter(HEADER)
    used += sum(counter.sentence(statement) for unit in units for statement in unit)
    if used > request.length * (1 + LENGTH_TOLERANCE):
        raise ValueError(f"{request.family_id} takes {used} tokens before filler: raise length={request.length}")
    return used


def fit_units(
    stream: Iterator[T],
    budget: int,
    cost_of: Callable[[T], int],
    *,
    most: int = _MAX_TOKENS,
    lookahead: int = _LOOKAHEAD,
) -> Iterator[T]:
    """Yield units of the stream that fill ``budget`` tokens: in order, with the last few chosen for the best fit.

    Args:
        most: remaining budget below which the last units are chosen; exceeds the cost of any unit.
        lookahead: number of units to choose from.
    """
    while budget > most:
        unit = next(stream)
        budget -= cost_of(unit)
        yield unit
    best: dict[int, tuple[T, ...]] = {0: ()}
    for unit in islice(stream, lookahead):
        if budget in best:
            break
        cost = cost_of(unit)
        for total, units in list(best.items()):
            if total < budget:
                best.setdefault(total + cost, (*units, unit))
    yield from best[min(best, key=lambda total: abs(total - budget))]


def render(
    request: Request, statements: Sequence[Statement], queries: Sequence[Query], *, chat: bool = True
) -> tuple[Example, ...]:
    """Return one example per query about the document that ``statements`` make up."""
    counter = token_counter(request.tokenizer)
    before: dict[Statement, int] = {}
    position = counter(HEADER)
    sentences = [HEADER]
    for statement in statements:
        before[statement] = position
        sentences.append(statement.sentence)
        position += counter.sentence(statement)
    document = " ".join(sentences)
    return tuple(
        Example(
            id=request.example_id(index),
            document=document,
            question=query.question,
            answer=query.answer,
            task=request.task,
            response=query.response,
            source=SOURCE,
            evidence=tuple(Evidence(s.sentence, s.canonical, before[s] / position) for s in query.steps),
            family_id=request.family_id,
            length=request.length,
            chat=chat,
        )
        for index, query in enumerate(queries)
    )


def _place(rng: Random, unit: Unit) -> PlacedUnit:
    shares = sorted(rng.random() for _ in unit)
    return [(share, index, statement) for index, (share, statement) in enumerate(zip(shares, unit, strict=True))]
