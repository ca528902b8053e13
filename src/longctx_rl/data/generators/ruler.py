"""RULER's thirteen task shapes (arXiv 2404.06654), made here: no essays, SQuAD or HotpotQA to fetch.

Needles, variables, counts and questions are RULER's; haystacks are noise sentences, this package's own chronicles in
place of essays, and its own questions in place of SQuAD (one fact) and HotpotQA (two), unless their files are given
(``ruler_sources``). Four things differ on purpose:
variable tracking has several chains, since with one every variable in the text is an answer; positions are drawn for
each sample; shapes with the same kind of hay ask about one document, which is computed once for all of them; and so
the instruction before it says what is hidden there for all of them.

Scores are in ``rewards.answers``: RULER's own recall, and one that listing everything does not fool.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import cycle

from longctx_rl.data.generators.chronicle import LENGTH_TOLERANCE, Request, fit_units, token_counter
from longctx_rl.data.generators.ruler_haystacks import NOISE, Haystack, HaystackQuery, Maker, haystack_of
from longctx_rl.data.generators.ruler_sources import Sources
from longctx_rl.data.prompts import encode_prompt
from longctx_rl.types import Evidence, Example

SOURCE = "RULER"
SEPARATOR = "; "
SHAPES: Sequence[str] = (
    "niah_single_1", "niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multikey_2", "niah_multikey_3",
    "niah_multivalue", "niah_multiquery", "vt", "cwe", "fwe", "qa_1", "qa_2",
)  # fmt: skip
"""RULER's thirteen."""
GENERATED = Sources()
QUESTION = "ruler_question"
"""Task of questions that are read: free text, graded otherwise than what is generated."""
KEPT = 8192
"""Documents that are remembered, since the shapes of one do not follow each other."""


def generate_ruler(request: Request, *, shape: str, sources: Sources = GENERATED) -> tuple[Example, ...]:
    """One sample of a task. ``length`` is that of its document with the longest of the questions about it, met where
    hay can be cut; 0 leaves the hay out.

    Raises:
        ValueError: the length is too short for the needles, or a file of ``sources`` cannot be used.
    """
    shapes, make = haystack_of(shape, sources)
    document, asked = _document(request, shapes, make, sources)
    return (_example(request, shapes, shape, document, asked[shape]),)


@lru_cache(maxsize=KEPT)
def _document(
    request: Request, shapes: tuple[str, ...], make: Maker, sources: Sources
) -> tuple[str, dict[str, HaystackQuery]]:
    """The document that some shapes share, and what they ask about it."""
    made = make(request.rng(f"ruler/{shapes[0]}"), request, sources)
    instruction = f"Memorize {made.about} from the following text. I will ask you afterwards.\n"
    hay = _hay(request, shapes, made, instruction) if request.length else []
    places = request.rng(f"places/{shapes[0]}")
    spots = [places.random() for _ in made.needles]
    if made.ordered:
        spots.sort()
    placed = [*zip(spots, (f"{needle}\n" for needle in made.needles), strict=True)]
    placed += [((index + 0.5) / len(hay), unit) for index, unit in enumerate(hay)]
    placed.sort(key=lambda one: one[0])
    return instruction + "".join(text for _, text in placed).rstrip("\n"), dict(made.asked)


def _hay(request: Request, shapes: tuple[str, ...], made: Haystack, instruction: str) -> list[str]:
    """As many lines as fit beside the needles and the longest question."""
    count = token_counter(request.tokenizer)
    frames = [_example(request, shapes, shape, instruction, made.asked[shape]) for shape in shapes]
    used = max(sum(map(len, encode_prompt(request.tokenizer, frame))) for frame in frames)
    used += sum(count(f"{needle}\n") for needle in made.needles)
    if used > request.length * (1 + LENGTH_TOLERANCE):
        raise ValueError(f"{' and '.join(shapes)} take {used} tokens before hay: raise length={request.length}")
    hay = list(fit_units((f"{unit}\n" for unit in made.hay), request.length - used, count, most=made.unit_tokens))
    if hay and used + sum(map(count, hay)) > request.length * (1 + LENGTH_TOLERANCE / 2):
        hay.pop()
    missing = request.length - used - sum(map(count, hay))  # lines that are long, or all alike, cannot fit
    return [*hay, *fit_units((f"{sentence}\n" for sentence in cycle(NOISE)), max(missing, 0), count)]


def _example(request: Request, shapes: tuple[str, ...], shape: str, document: str, asked: HaystackQuery) -> Example:
    return Example(
        id=f"{request.family_id}-{shape}-L{request.length}",
        document=document,
        question=asked.question,
        answer=("\n" if asked.read else SEPARATOR).join(asked.answers),
        task=QUESTION if asked.read else request.task,
        source=SOURCE,
        evidence=tuple(
            Evidence(needle, needle, max(document.find(needle), 0) / len(document)) for needle in asked.needles
        ),
        family_id=f"{request.family_id}-{shapes[0]}",
        length=request.length,
    )
