"""LongBlocks-mini: exactly gradable long-context questions about a small synthetic world, generated offline.

Three tasks follow LongBlocks (``multihop``, ``grounding``, ``longform``), two have a short and a long version of every
item (``longreason``, ``code``), and four are plain text for the first stages of training (``copy``, ``lookup``,
``pairs``, ``drill``). Everything is a deterministic function of task, family, split and length.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from longctx_rl.data.generators import grounding, longform, multihop
from longctx_rl.data.generators.chronicle import Request, generate_chronicle
from longctx_rl.data.generators.code import generate_any_condition
from longctx_rl.data.generators.longreason import generate_any_form
from longctx_rl.data.generators.names import Split
from longctx_rl.data.generators.pretraining import generate_copy, generate_drill, generate_lookup, generate_pairs
from longctx_rl.types import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["GENERATORS", "generate"]

GENERATORS: dict[str, Callable[[Request], tuple[Example, ...]]] = {
    "multihop": partial(generate_chronicle, core=multihop.core, ask=multihop.ask),
    "grounding": partial(generate_chronicle, core=grounding.core, ask=grounding.ask),
    "longform": partial(generate_chronicle, core=longform.core, ask=longform.ask),
    "longreason": generate_any_form,
    "code": generate_any_condition,
    "copy": generate_copy,
    "lookup": generate_lookup,
    "pairs": generate_pairs,
    "drill": generate_drill,
}


def generate(
    task: str,
    family: int,
    *,
    split: Split,
    length: int,
    tokenizer: PreTrainedTokenizerBase,
    questions: int = 1,
) -> tuple[Example, ...]:
    """Return the examples of one family: the same evidence, near-duplicates and first question at every length.

    ``length`` is the token count of the whole prompt, met within 2 % from 256 tokens on; 0 omits all filler.
    With ``questions > 1``, the examples are different questions about one shared document, and fewer of them if the
    document does not support that many (``copy`` always yields one; its length 0 means 64).

    Raises:
        ValueError: the task is unknown, or the length is too short for the family's evidence or too long for the world.
    """
    if task not in GENERATORS:
        raise ValueError(f"unknown task {task!r}: choose one of {', '.join(GENERATORS)}")
    if questions < 1 or length < 0:
        raise ValueError(f"need questions >= 1 and length >= 0, got questions={questions}, length={length}")
    return GENERATORS[task](Request(task, family, split, length, tokenizer, questions))
