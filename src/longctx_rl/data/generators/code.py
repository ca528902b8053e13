"""Code tasks with buried helpers: the same small task with its helpers nearby, far away, or among look-alikes.

The design is paired: a family fixes helpers, task and inputs; a condition determines the rest of the prompt.

    closed      no definitions: measures guessing
    short       definitions and task only: coding skill, the denominator
    pad         definitions, then prose up to the length: effect of length
    pad_near    prose, then definitions next to the task: effect of length without distance
    bury        definitions among other modules: effect of length and search
    hard        as bury, with look-alikes of each required helper: effect of interference

Modes: with ``call`` the helpers can be imported; with ``inline`` they cannot, so the answer must reproduce them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal, get_args

from longctx_rl.data.generators.chronicle import LENGTH_TOLERANCE, Request, fit_units, token_counter
from longctx_rl.data.generators.code_tasks import ENTRY, KINDS, Kind, Task
from longctx_rl.data.generators.helpers import Author, Module
from longctx_rl.data.generators.names import Cast
from longctx_rl.data.generators.world import essay
from longctx_rl.data.prompts import encode_prompt
from longctx_rl.types import CodeTask, Evidence, Example

Condition = Literal["closed", "short", "pad", "pad_near", "bury", "hard"]
CONDITIONS: tuple[Condition, ...] = get_args(Condition)
Mode = Literal["call", "inline"]
SOURCE = "LongBlocks-mini"
DECOYS = 16
"""Importable modules that the prompt does not show, so that trying every module does not find the right one."""
MOST_TOKENS = {0: 320, 1: 512, 2: 512}
"""Exceeds the tokens of any module of a level, and is large enough that sums of modules reach any token count."""
CHOICE = 64
"""Modules from which the last ones are chosen; they are large, so few combinations fill the rest."""


TRAINED: tuple[Condition, ...] = ("pad", "pad_near", "bury", "bury", "bury", "bury", "bury", "bury")
"""Conditions of long training documents, in rotation: some contain prose beside code."""


@dataclass(frozen=True, slots=True)
class Setting:
    """Presentation of a family."""

    condition: Condition = "bury"
    mode: Mode = "call"
    level: int = 0


def generate_any_condition(request: Request) -> tuple[Example, ...]:
    """Generate a training example: ``short`` if the length is 0, else among other modules or beside prose."""
    condition = TRAINED[request.family % len(TRAINED)] if request.length else "short"
    return generate_code(request, Setting(condition))


def generate_code(request: Request, setting: Setting | None = None) -> tuple[Example, ...]:
    """Return a task about a document and, with ``request.questions``, further tasks about its other helpers.

    A length of 0 omits distractors and prose.

    Raises:
        ValueError: the length is too short for the family, or too long for the supply of names.
    """
    setting = setting or Setting()
    cast = Cast(request.split)
    author = Author(request.rng("code"), cast, request.split, setting.level)
    kind = author.rng.choice(KINDS[setting.level])
    needed = [author.protagonist(parameters) for parameters in kind.helpers]
    fixed = [author.shared(helper) for helper in needed]
    resembling = [module for helper in needed for module in author.resembling(helper)]
    task = kind.about(needed)
    shown = {"closed": [], "hard": fixed + resembling}.get(setting.condition, fixed)
    document, others = _document(request, setting, cast, task, shown)
    tasks = [task, *_more_tasks(request, setting, others)]
    decoys = islice(Author(request.rng("decoys"), cast, request.split, setting.level).modules(), DECOYS)
    modules = sorted([*fixed, *resembling, *others, *decoys], key=lambda module: module.name)
    return tuple(_example(request, setting, task, document, modules, index) for index, task in enumerate(tasks))


def _document(
    request: Request, setting: Setting, cast: Cast, task: Task, shown: list[Module]
) -> tuple[str, list[Module]]:
    """Return the text before the task, and the distractor modules in it."""
    places = request.rng("places")
    placed = [(places.random(), module.text) for module in shown]
    others: list[Module] = []
    if request.length and setting.condition not in ("closed", "short"):
        frame, count = _example(request, setting, task, "", [], 0), token_counter(request.tokenizer)
        used = sum(map(len, encode_prompt(request.tokenizer, frame)))
        used += sum(count(text) for _, text in placed)
        if used > request.length * (1 + LENGTH_TOLERANCE):
            raise ValueError(f"{request.family_id} takes {used} tokens before filler: raise length={request.length}")
        budget = request.length - used
        if setting.condition in ("pad", "pad_near"):
            prose = (f"{text}\n" for text in essay(request.rng("prose"), request.split))
            place = 1.0 if setting.condition == "pad" else -1.0
            placed += [(place, text) for text in fit_units(prose, budget, count)]
        else:
            author = Author(request.rng("distractors"), cast, request.split, setting.level)
            most = MOST_TOKENS[setting.level]
            chosen = fit_units(author.modules(), budget, lambda module: count(module.text), most=most, lookahead=CHOICE)
            others = list(chosen)
            placed += [(places.random(), module.text) for module in others]
            left = budget - sum(count(module.text) for module in others)
            if left > LENGTH_TOLERANCE * request.length:  # modules are too large to fill the rest
                remarks = (f"# {text}\n" for text in essay(request.rng("remarks"), request.split))
                placed += [(1.0, text) for text in fit_units(remarks, left, count)]
    placed.sort(key=lambda pair: pair[0])
    return "".join(text for _, text in placed).rstrip("\n"), others


def _more_tasks(request: Request, setting: Setting, modules: Sequence[Module]) -> Iterator[Task]:
    """Yield tasks about other helpers of the document; every helper is used once."""
    rng = request.rng(f"tasks/{request.length}")
    free = [helper for module in modules for helper in module.helpers]
    rng.shuffle(free)
    for _ in range(request.questions - 1):
        kind: Kind = rng.choice(KINDS[setting.level])
        chosen = []
        for parameters in kind.helpers:
            helper = next(
                (candidate for candidate in free if candidate.parameters == parameters and candidate not in chosen),
                None,
            )
            if helper is None:
                return
            chosen.append(helper)
        free = [candidate for candidate in free if candidate not in chosen]
        yield kind.about(chosen)


def _example(
    request: Request, setting: Setting, task: Task, document: str, modules: Sequence[Module], number: int
) -> Example:
    calling = setting.mode == "call"
    question = task.worded(request.rng(f"words/{number}"), request.split)
    question += " Import its helpers." if calling else " Its helpers cannot be imported."
    solution = task.calling() if calling else task.inlined()
    evidence = tuple(
        Evidence(helper.source, helper.doc, document.find(helper.source) / len(document))
        for helper in task.helpers
        if helper.source in document
    )
    suffix = f"-q{number}" if number else ""
    return Example(
        id=f"{request.family_id}-{setting.condition}-{setting.mode}-{setting.level}-L{request.length}{suffix}",
        document=document,
        question=question,
        answer=solution,
        task=request.task,
        source=SOURCE,
        evidence=evidence,
        family_id=f"{request.family_id}-{setting.level}",
        length=request.length,
        code=CodeTask(
            entry=ENTRY,
            parameters=task.parameters,
            reference=task.inlined(),
            helpers=tuple(helper.name for helper in task.helpers),
            modules=tuple((module.name, module.source) for module in modules) if calling else (),
        ),
    )
