"""RULER's haystacks: their contents, and the questions of the thirteen shapes about them.

Shapes with the same kind of hay share a haystack, so that one document serves several questions: a needle and variables
in noise; a number and a uuid, or keys with one and with four values, in essays; paragraphs for both kinds of question.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random

from longctx_rl.data.generators import grounding, multihop
from longctx_rl.data.generators.chronicle import Request
from longctx_rl.data.generators.names import Cast
from longctx_rl.data.generators.ruler_sources import Sources, essay_lines, hotpot, squad
from longctx_rl.data.generators.ruler_words import Draw, nonce_words, variable_name
from longctx_rl.data.generators.world import Core, Narrator, essay
from longctx_rl.types import UNANSWERABLE

NOISE = (
    "The grass is green.", "The sky is blue.", "The sun is yellow.", "Here we go.", "There and back again.",
)  # fmt: skip
"""RULER's noise sentences."""
KEYS = 4
"""Number of keys with one value each, and number of values of the multi-value key."""
CHAINS, HOPS = 3, 4
"""Chains of variables and their hops. RULER has one chain, so every variable in its text is an answer."""
UNIT_TOKENS, PARAGRAPH_TOKENS = 128, 512
"""Maximum tokens of a line of generated hay (two uuids with one token per character take 98), and of most paragraphs
from data sets."""
COMMON, OFTEN, SELDOM = 10, 30, 3
"""Number of common words, their maximum frequency, and the frequency of other words."""


@dataclass(frozen=True, slots=True)
class HaystackQuery:
    """The question of a shape about a haystack."""

    question: str
    answers: tuple[str, ...]
    needles: tuple[str, ...] = ()
    """The needles that answer the question."""
    read: bool = False
    """Whether it comes from a data set: answers are free text, and any one of them is correct."""


@dataclass(frozen=True, slots=True)
class Haystack:
    """The required contents of a document, and an endless supply of hay."""

    about: str
    """What the instruction tells the model to look for."""
    needles: tuple[str, ...]
    hay: Iterator[str]
    asked: Mapping[str, HaystackQuery]
    """Question of each shape."""
    unit_tokens: int = field(default=UNIT_TOKENS, kw_only=True)
    """Exceeds the tokens of most lines of hay."""
    ordered: bool = field(default=False, kw_only=True)
    """Whether the needles keep their order instead of being shuffled."""


Maker = Callable[[Random, Request, Sources], Haystack]


def needle(key: str, kind: str, value: str) -> str:
    return f"One of the special magic {kind} for {key} is: {value}."


def ask(kind: str, values: Mapping[str, Sequence[str]]) -> HaystackQuery:
    """Return the question for all values of some keys."""
    answers = tuple(value for of_key in values.values() for value in of_key)
    single = len(answers) == 1
    what = f"the special magic {kind.removesuffix('s') if single else kind} for {', '.join(values)}"
    return HaystackQuery(
        f"What {'is' if single else 'are all'} {what} mentioned in the provided text?",
        answers,
        tuple(needle(key, kind, value) for key, of_key in values.items() for value in of_key),
    )


def noise(rng: Random, request: Request, sources: Sources) -> Haystack:
    """Return a number and chains of variables in noise."""
    draw = Draw(rng, request.split)
    single = ask("numbers", {draw.new("words"): (draw.new("numbers"),)})
    names: set[str] = set()
    chains = [[variable_name(rng, request.split, names) for _ in range(HOPS + 1)] for _ in range(CHAINS)]
    values = rng.sample(range(10_000, 100_000), CHAINS)
    assignments = [
        [f"VAR {chain[0]} = {value}", *(f"VAR {b} = VAR {a}" for a, b in pairwise(chain))]
        for value, chain in zip(values, chains, strict=True)
    ]
    order = [index for index, lines in enumerate(assignments) for _ in lines]
    rng.shuffle(order)
    streams = [iter(lines) for lines in assignments]
    needles = [next(streams[index]) for index in order]
    needles[(place := rng.randrange(len(needles) + 1)) : place] = single.needles
    variables = HaystackQuery(
        f"Find all variables that are assigned the value {values[0]} in the text above, directly or through other "
        "variables.",
        tuple(chains[0]),
        tuple(assignments[0]),
    )
    hay = (" ".join(NOISE) for _ in iter(int, 1))
    queries = {"niah_single_1": single, "vt": variables}
    return Haystack("the special magic numbers and variables", tuple(needles), hay, queries, ordered=True)


def singles(rng: Random, request: Request, sources: Sources) -> Haystack:
    """Return one number and one uuid in essays."""
    draw = Draw(rng, request.split)
    number, uuid = (ask(kind, {draw.new("words"): (draw.new(kind),)}) for kind in ("numbers", "uuids"))
    return Haystack(
        "the special magic numbers and uuids",
        number.needles + uuid.needles,
        _essays(rng, request, sources),
        {"niah_single_2": number, "niah_single_3": uuid},
    )


def several(rng: Random, request: Request, sources: Sources) -> Haystack:
    """Return numbers in essays: four keys with one value, of which one or all are queried, and one key with four."""
    draw = Draw(rng, request.split)
    values = {draw.new("words"): (draw.new("numbers"),) for _ in range(KEYS)}
    many = {draw.new("words"): tuple(draw.new("numbers") for _ in range(KEYS))}
    single_key = rng.choice(list(values))
    query = rng.sample(list(values), KEYS)
    every = ask("numbers", {key: values[key] for key in query})
    several_values = ask("numbers", many)
    return Haystack(
        "the special magic numbers",
        every.needles + several_values.needles,
        _essays(rng, request, sources),
        {
            "niah_multikey_1": ask("numbers", {single_key: values[single_key]}),
            "niah_multivalue": several_values,
            "niah_multiquery": every,
        },
    )


def among_needles(shape: str, keys: str, kind: str) -> Maker:
    """Return the maker of a needle in hay that consists of needles."""

    def make(rng: Random, request: Request, sources: Sources) -> Haystack:
        draw = Draw(rng, request.split)
        query = ask(kind, {draw.new(keys): (draw.new(kind),)})
        hay = (needle(draw.new(keys), kind, draw.new(kind)) for _ in iter(int, 1))
        return Haystack(f"the special magic {kind}", query.needles, hay, {shape: query})

    return make


def common_words(rng: Random, request: Request, sources: Sources) -> Haystack:
    """Return ten common words among words that occur three times."""
    common = nonce_words(rng, request.split, COMMON, set())
    count = max(SELDOM + 2, min(OFTEN, (request.length or 2048) // 128))
    listed = [word for word in common for _ in range(count)]

    def hay() -> Iterator[str]:
        known = set(common)
        while True:
            block = nonce_words(rng, request.split, 40, known) * SELDOM
            rng.shuffle(block)
            yield from block

    question = f"What are the {COMMON} most common words in the list above?"
    rng.shuffle(listed)
    return Haystack(
        "the words that come more often than others",
        tuple(listed),
        hay(),
        {"cwe": HaystackQuery(question, tuple(sorted(common)))},
    )


def frequent_words(rng: Random, request: Request, sources: Sources, *, alpha: float = 2.0) -> Haystack:
    """Return coded words with zeta-distributed frequencies; the most frequent is noise, the next three count."""
    words = nonce_words(rng, request.split, 200, set())
    weights = [1 / rank**alpha for rank in range(1, len(words) + 1)]
    total = max(60, (request.length or 1024) // 8)
    counts = Counter({word: int(total * weight / sum(weights)) for word, weight in zip(words, weights, strict=True)})
    for word, extra in zip(words[1:4], (3, 2, 1), strict=True):  # no ties among the answers
        counts[word] += extra
    listed = [word if word != words[0] else "..." for word, times in counts.items() for _ in range(times)]
    rng.shuffle(listed)
    question = "What are the three most frequently appearing words in the coded text above? Do not count the dots."
    return Haystack(
        "the frequency of each coded word",
        (" ".join(listed),),
        ("..." for _ in iter(int, 1)),
        {"fwe": HaystackQuery(question, tuple(words[1:4]))},
    )


def paragraphs(rng: Random, request: Request, sources: Sources) -> Haystack:
    """Return the evidence for a one-fact and a multi-fact question, among paragraphs about other people."""
    narrator = Narrator(rng, Cast(request.split), request.split)
    cores = {"qa_1": _answerable(narrator, grounding.core), "qa_2": _answerable(narrator, multihop.core)}
    subjects = [step.subject for core in cores.values() for step in core.query.steps]
    stream = essay(rng, request.split, subjects)
    texts = {
        shape: [" ".join(statement.sentence for statement in unit) for unit in core.units]
        for shape, core in cores.items()
    }
    queries = {}
    for shape, core in cores.items():
        steps = [step.sentence for step in core.query.steps]
        holding = tuple(text for text in texts[shape] if any(step in text for step in steps))
        queries[shape] = HaystackQuery(core.query.question, (core.query.answer,), holding)
    return Haystack(
        "the paragraphs",
        tuple(text for of_shape in texts.values() for text in of_shape),
        (f"{first} {next(stream)}" for first in stream),
        queries,
    )


def read_paragraphs(shape: str) -> Maker:
    """Return the maker of a SQuAD or HotpotQA question, with its paragraphs among those of other questions."""

    def make(rng: Random, request: Request, sources: Sources) -> Haystack:
        path = sources.squad if shape == "qa_1" else sources.hotpot
        assert path is not None
        questions = squad(path) if shape == "qa_1" else hotpot(path)
        question = questions.of(request.family)
        query = HaystackQuery(question.question, question.answers, question.evidence, read=True)
        hay = questions.others(rng, question)
        return Haystack("the paragraphs", question.paragraphs, hay, {shape: query}, unit_tokens=PARAGRAPH_TOKENS)

    return make


def _essays(rng: Random, request: Request, sources: Sources) -> Iterator[str]:
    return essay(rng, request.split) if sources.essays is None else essay_lines(sources.essays, rng)


def _answerable(narrator: Narrator, core: Callable[[Narrator], Core]) -> Core:
    while (candidate := core(narrator)).query.answer == UNANSWERABLE:
        pass
    return candidate


HAYSTACKS: dict[tuple[str, ...], Maker] = {
    ("niah_single_1", "vt"): noise,
    ("niah_single_2", "niah_single_3"): singles,
    ("niah_multikey_1", "niah_multivalue", "niah_multiquery"): several,
    ("niah_multikey_2",): among_needles("niah_multikey_2", "words", "numbers"),
    ("niah_multikey_3",): among_needles("niah_multikey_3", "uuids", "uuids"),
    ("cwe",): common_words,
    ("fwe",): frequent_words,
    ("qa_1", "qa_2"): paragraphs,
}
"""Groups of shapes that share a document, and its maker."""

READ = {shape: read_paragraphs(shape) for shape in ("qa_1", "qa_2")}
"""Shapes whose questions can come from a file, and the maker of the document in that case."""


def haystack_of(shape: str, sources: Sources) -> tuple[tuple[str, ...], Maker]:
    """Return the shapes that share a shape's document, and its maker."""
    if (shape == "qa_1" and sources.squad is not None) or (shape == "qa_2" and sources.hotpot is not None):
        return (shape,), READ[shape]
    return next((shapes, make) for shapes, make in HAYSTACKS.items() if shape in shapes)
