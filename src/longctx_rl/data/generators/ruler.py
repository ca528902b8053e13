"""RULER's thirteen task shapes (arXiv 2404.06654), generated without downloading essays, SQuAD or HotpotQA.

Needles, variables, counts and questions follow RULER. Haystacks are noise sentences, this package's chronicles in place
of essays, and its own questions in place of SQuAD (one fact) and HotpotQA (two), unless their files are given
(``ruler_sources``). There are four deliberate differences: variable tracking has several chains, since with one chain
every variable in the text is an answer; positions are drawn for each sample; shapes with the same kind of hay share a
document, which is computed once; and its instruction therefore names everything that is hidden there.

Scores are in ``rewards.answers``: RULER's own recall, and a score that is robust to listing everything.
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
"""RULER's thirteen task shapes."""
GENERATED = Sources()
QUESTION = "ruler_question"
"""Task of questions from data sets: free text, with a different grader than generated answers."""
KEPT = 8192
"""Cached documents: the shapes of one document are not requested consecutively."""


def generate_ruler(request: Request, *, shape: str, sources: Sources = GENERATED) -> tuple[Example, ...]:
    """Return one sample of a task.

    ``length`` is that of the document with the longest question about it, met as far as hay is divisible; 0 omits the
    hay.

    Raises:
        ValueError: the length is too short for the needles, or a file of ``sources`` cannot be used.
    """
    shapes, make = haystack_of(shape, sources)
    document, queries = _document(request, shapes, make, sources)
    return (_example(request, shapes, shape, document, queries[shape]),)


@lru_cache(maxsize=KEPT)
def _document(
    request: Request, shapes: tuple[str, ...], make: Maker, sources: Sources
) -> tuple[str, dict[str, HaystackQuery]]:
    """Return the document that some shapes share, and their questions about it."""
    made = make(request.rng(f"ruler/{shapes[0]}"), request, sources)
    instruction = f"Memorize {made.about} from the following text. I will ask you afterwards.\n"
    hay = _hay(request, shapes, made, instruction) if request.length else []
    places = request.rng(f"places/{shapes[0]}")
    spots = [places.random() for _ in made.needles]
    if made.ordered:
        spots.sort()
    placed = [*zip(spots, (f"{needle}\n" for needle in made.needles), strict=True)]
    placed += [((index + 0.5) / len(hay), unit) for index, unit in enumerate(hay)]
    placed.sort(key=lambda pair: pair[0])
    return instruction + "".join(text for _, text in placed).rstrip("\n"), dict(made.asked)


def _hay(request: Request, shapes: tuple[str, ...], made: Haystack, instruction: str) -> list[str]:
    """Return as many lines of hay as fit beside the needles and the longest question."""
    count = token_counter(request.tokenizer)
    frames = [_example(request, shapes, shape, instruction, made.asked[shape]) for shape in shapes]
    used = max(sum(map(len, encode_prompt(request.tokenizer, frame))) for frame in frames)
    used += sum(count(f"{needle}\n") for needle in made.needles)
    if used > request.length * (1 + LENGTH_TOLERANCE):
        raise ValueError(f"{' and '.join(shapes)} take {used} tokens before hay: raise length={request.length}")
    hay = list(fit_units((f"{unit}\n" for unit in made.hay), request.length - used, count, most=made.unit_tokens))
    if hay and used + sum(map(count, hay)) > request.length * (1 + LENGTH_TOLERANCE / 2):
        hay.pop()
    missing = request.length - used - sum(map(count, hay))  # long or uniform lines cannot fill the rest
    return [*hay, *fit_units((f"{sentence}\n" for sentence in cycle(NOISE)), max(missing, 0), count)]


def _example(request: Request, shapes: tuple[str, ...], shape: str, document: str, query: HaystackQuery) -> Example:
    return Example(
        id=f"{request.family_id}-{shape}-L{request.length}",
        document=document,
        question=query.question,
        answer=("\n" if query.read else SEPARATOR).join(query.answers),
        task=QUESTION if query.read else request.task,
        source=SOURCE,
        evidence=tuple(
            Evidence(needle, needle, max(document.find(needle), 0) / len(document)) for needle in query.needles
        ),
        family_id=f"{request.family_id}-{shapes[0]}",
        length=request.length,
    )
