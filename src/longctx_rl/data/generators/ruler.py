"""RULER's thirteen task shapes (arXiv 2404.06654), made here: no essays, SQuAD or HotpotQA to fetch.

Needles, variables, counts and questions are RULER's; haystacks are noise sentences, this package's own chronicles in
place of essays, and its own questions in place of SQuAD (one fact) and HotpotQA (two). Two things differ on purpose:
variable tracking has several chains, since with one every variable in the text is an answer, and positions are drawn
for each sample.

Scores are in ``rewards.ruler``: RULER's own recall, and one that listing everything does not fool.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, pairwise
from random import Random

from longctx_rl.data.generators import grounding, multihop
from longctx_rl.data.generators.chronicle import LENGTH_TOLERANCE, Request, fit_units, token_counter
from longctx_rl.data.generators.names import SYLLABLES, Cast, Split, split_of
from longctx_rl.data.generators.ruler_words import Draw
from longctx_rl.data.generators.world import Core, Narrator, essay
from longctx_rl.data.prompts import encode_prompt
from longctx_rl.types import UNANSWERABLE, Example

SOURCE = "RULER (generated)"
SEPARATOR = "; "
NOISE = (
    "The grass is green.", "The sky is blue.", "The sun is yellow.", "Here we go.", "There and back again.",
)  # fmt: skip
"""RULER's own noise haystack."""
UNIT_TOKENS = 96
"""More than any unit of a haystack takes, in a tokenizer of words; uuids of one token per letter take more."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A haystack's beginning and end, what must stand in it, and an endless supply of hay."""

    instruction: str
    needles: tuple[str, ...]
    hay: Iterator[str]
    question: str
    answers: tuple[str, ...]
    any_answer: bool = False
    """One of the answers is enough (questions); otherwise all are wanted."""
    ordered: bool = True
    """The needles' order is kept; it is drawn anew otherwise."""


@dataclass(frozen=True, slots=True)
class Niah:
    """A needle task's parameters."""

    hay: str
    key: str = "words"
    value: str = "numbers"
    keys: int = 1
    values: int = 1
    queries: int = 1


NIAH: dict[str, Niah] = {
    "niah_single_1": Niah("noise"),
    "niah_single_2": Niah("essay"),
    "niah_single_3": Niah("essay", value="uuids"),
    "niah_multikey_1": Niah("essay", keys=4),
    "niah_multikey_2": Niah("needles"),
    "niah_multikey_3": Niah("needles", key="uuids", value="uuids"),
    "niah_multivalue": Niah("essay", values=4),
    "niah_multiquery": Niah("essay", queries=4),
}


def generate_ruler(request: Request, *, shape: str) -> tuple[Example, ...]:
    """One sample of a task. ``length`` is met where hay can be cut; 0 leaves it out.

    Raises:
        ValueError: the length is too short for the needles.
    """
    rng = request.rng(f"ruler/{shape}")
    made = _niah(rng, request.split, NIAH[shape]) if shape in NIAH else OTHERS[shape](rng, request)
    frame = _example(request, shape, made, made.instruction + "\n")
    used = sum(map(len, encode_prompt(request.tokenizer, frame)))
    count = token_counter(request.tokenizer)
    used += sum(count(f"{needle}\n") for needle in made.needles)
    hay: list[str] = []
    if request.length:
        if used > request.length * (1 + LENGTH_TOLERANCE):
            raise ValueError(f"{shape} takes {used} tokens before its haystack: raise length={request.length}")
        hay = list(fit_units((f"{unit}\n" for unit in made.hay), request.length - used, count, most=UNIT_TOKENS))
        missing = request.length - used - sum(map(count, hay))  # units that all are alike cannot fit
        hay += fit_units((f"{sentence}\n" for sentence in cycle(NOISE)), max(missing, 0), count)
    places = request.rng(f"places/{shape}")
    spots = [places.random() for _ in made.needles]
    if made.ordered:
        spots.sort()
    placed = [*zip(spots, (f"{needle}\n" for needle in made.needles), strict=True)]
    placed += [((index + 0.5) / len(hay), unit) for index, unit in enumerate(hay)]
    placed.sort(key=lambda one: one[0])
    document = f"{made.instruction}\n" + "".join(text for _, text in placed).rstrip("\n")
    return (_example(request, shape, made, document),)


def _example(request: Request, shape: str, made: Shape, document: str) -> Example:
    return Example(
        id=f"{request.family_id}-{shape}-L{request.length}",
        document=document,
        question=made.question,
        answer=SEPARATOR.join(made.answers),
        task=request.task,
        source=SOURCE,
        family_id=f"{request.family_id}-{shape}",
        length=request.length,
    )


def _needle(key: str, kind: str, value: str) -> str:
    return f"One of the special magic {kind} for {key} is: {value}."


def _niah(rng: Random, split: Split, niah: Niah) -> Shape:
    draw = Draw(rng, split)
    keys = [draw.new(niah.key) for _ in range(max(niah.keys, niah.queries))]
    values = {key: [draw.new(niah.value) for _ in range(niah.values)] for key in keys}
    needles = [_needle(key, niah.value, value) for key in keys for value in values[key]]
    asked = rng.sample(keys, niah.queries)

    def hay() -> Iterator[str]:
        if niah.hay == "essay":
            yield from essay(rng, split)
        while True:
            if niah.hay == "noise":
                yield " ".join(NOISE)
            else:
                yield _needle(draw.new(niah.key), niah.value, draw.new(niah.value))

    one = niah.queries == niah.values == 1
    what = f"the special magic {niah.value.removesuffix('s') if one else niah.value} for {', '.join(asked)}"
    return Shape(
        instruction=(
            f"Some special magic {niah.value} are hidden within the following text. Make sure to memorize it. I will "
            f"quiz you about the {niah.value} afterwards."
        ),
        needles=tuple(needles),
        hay=hay(),
        question=f"What {'is' if one else 'are all'} {what} mentioned in the provided text?",
        answers=tuple(value for key in asked for value in values[key]),
        ordered=False,
    )


def _variable_tracking(rng: Random, request: Request, *, chains: int = 3, hops: int = 4) -> Shape:
    names: set[str] = set()

    def name() -> str:
        while True:
            one = "".join(rng.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ", k=5))
            if one not in names and split_of(one) == request.split:
                names.add(one)
                return one

    told: list[list[str]] = []
    variables: list[list[str]] = []
    values = rng.sample(range(10_000, 100_000), chains)
    for value in values:
        chain = [name() for _ in range(hops + 1)]
        variables.append(chain)
        lines = [f"VAR {chain[0]} = {value}"]
        lines += [f"VAR {b} = VAR {a}" for a, b in pairwise(chain)]
        told.append(lines)
    order = [index for index, lines in enumerate(told) for _ in lines]
    rng.shuffle(order)
    streams = [iter(lines) for lines in told]
    needles = tuple(next(streams[index]) for index in order)
    return Shape(
        instruction="Memorize and track the chains of variable assignment hidden in the following text.",
        needles=needles,
        hay=(" ".join(NOISE) for _ in iter(int, 1)),
        question=(
            f"Find all variables that are assigned the value {values[0]} in the text above, directly or through other "
            f"variables."
        ),
        answers=tuple(variables[0]),
    )


def _nonce(rng: Random, split: Split, count: int, known: set[str]) -> list[str]:
    """New lower-case words of two or three syllables, which are added to ``known``."""
    found: list[str] = []
    while len(found) < count:
        word = "".join(rng.choices(SYLLABLES, k=rng.choice((2, 3))))
        if split_of(word) == split and word.lower() not in known:
            found.append(word.lower())
            known.add(word.lower())
    return found


def _common_words(rng: Random, request: Request, *, common: int = 10, often: int = 30, seldom: int = 3) -> Shape:
    """Ten words that come often among words that come three times."""
    wanted = _nonce(rng, request.split, common, set())
    count = max(1, min(often, (request.length or 2048) // 128))
    listed = [word for word in wanted for _ in range(max(count, seldom + 2))]

    def hay() -> Iterator[str]:
        known = set(wanted)
        while True:
            block = _nonce(rng, request.split, 40, known) * seldom
            rng.shuffle(block)
            yield from block

    rng.shuffle(listed)
    return Shape(
        instruction="Below is a list of words. In it some words come more often than others. Memorize those.",
        needles=tuple(listed),
        hay=hay(),
        question=f"What are the {common} most common words in the list above?",
        answers=tuple(sorted(wanted)),
    )


def _frequent_words(rng: Random, request: Request, *, alpha: float = 2.0) -> Shape:
    """Coded words whose frequencies follow a zeta law; the most frequent is noise, the next three are wanted."""
    words = _nonce(rng, request.split, 200, set())
    weights = [1 / rank**alpha for rank in range(1, len(words) + 1)]
    total = max(60, (request.length or 1024) // 8)
    counts = Counter({word: int(total * weight / sum(weights)) for word, weight in zip(words, weights, strict=True)})
    for word, extra in zip(words[1:4], (3, 2, 1), strict=True):  # no ties among what is asked for
        counts[word] += extra
    listed = [word if word != words[0] else "..." for word, times in counts.items() for _ in range(times)]
    rng.shuffle(listed)
    return Shape(
        instruction="Read the following coded text and track the frequency of each coded word.",
        needles=(" ".join(listed),),
        hay=("..." for _ in iter(int, 1)),
        question="What are the three most frequently appearing words in the coded text above? Do not count the dots.",
        answers=tuple(words[1:4]),
    )


def _questions(core: Callable[[Narrator], Core]) -> Callable[[Random, Request], Shape]:
    """A question about paragraphs, some of which hold the answer, the others not."""

    def shape(rng: Random, request: Request) -> Shape:
        narrator = Narrator(rng, Cast(request.split), request.split)
        fixed = core(narrator)
        while fixed.query.answer == UNANSWERABLE:
            fixed = core(narrator)
        stream = essay(rng, request.split)

        def paragraphs() -> Iterator[str]:
            while True:
                yield f"{next(stream)} {next(stream)}"

        return Shape(
            instruction="Answer the question from the given paragraphs. Give the answer alone.",
            needles=tuple(" ".join(one.sentence for one in unit) for unit in fixed.units),
            hay=paragraphs(),
            question=fixed.query.question,
            answers=(fixed.query.answer,),
            any_answer=True,
            ordered=False,
        )

    return shape


OTHERS: dict[str, Callable[[Random, Request], Shape]] = {
    "vt": _variable_tracking,
    "cwe": _common_words,
    "fwe": _frequent_words,
    "qa_1": _questions(grounding.core),
    "qa_2": _questions(multihop.core),
}
SHAPES: Sequence[str] = (*NIAH, *OTHERS)
"""RULER's thirteen."""
