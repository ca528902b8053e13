"""What each suite asks: items by label and length, the same families at every length.

A label is a row of the tables: a task, a form, a condition. Families are counted from ``first``, so that what a
decision was taken on need not be what is reported.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import get_args

from transformers import PreTrainedTokenizerBase

from longctx_rl.data.generators import generate
from longctx_rl.data.generators.chronicle import Request
from longctx_rl.data.generators.code import Condition, Setting, generate_code
from longctx_rl.data.generators.longreason import Form, generate_longreason
from longctx_rl.data.generators.ruler import SHAPES, generate_ruler
from longctx_rl.types import Example

CONDITIONS: tuple[Condition, ...] = get_args(Condition)
FORMS: tuple[Form, ...] = get_args(Form)
WITHOUT_LENGTH = ("original", "expanded", "closed", "short")
"""Labels whose prompts have the length that they have; recorded as length 0."""


@dataclass(frozen=True, slots=True)
class Item:
    """An example, and the row of the tables that it counts in."""

    label: str
    example: Example

    @property
    def has_length(self) -> bool:
        return self.label not in WITHOUT_LENGTH

    @property
    def depth(self) -> float | None:
        """Where the first piece of evidence lies, as a share of the document."""
        return self.example.evidence[0].depth if self.example.evidence else None


@dataclass(frozen=True, slots=True)
class Plan:
    """Which items of a suite are asked for."""

    labels: tuple[str, ...]
    lengths: tuple[int, ...]
    items: int
    """Families of each label and length."""
    first: int = 0
    level: int = 0
    """Of code: 0 for the mini models, up to 2."""
    stride: int = 1
    """Every how many-th family is taken."""

    @property
    def families(self) -> range:
        return range(self.first, self.first + self.items * self.stride, self.stride)

    @property
    def size(self) -> int:
        """Number of items."""
        return self.items * len(list(self.cells()))

    def share(self, number: int, of: int) -> "Plan":
        """What process ``number`` of ``of`` asks for: whole families."""
        families = self.families[number::of]
        return replace(self, first=self.first + number * self.stride, items=len(families), stride=self.stride * of)

    def cells(self) -> Iterator[tuple[str, int]]:
        """Labels with lengths; a label without length comes once."""
        for label in self.labels:
            yield from ((label, length) for length in ((0,) if label in WITHOUT_LENGTH else self.lengths))


def items_of(suite: str, plan: Plan, tokenizer: PreTrainedTokenizerBase) -> list[Item]:
    """All items of a plan, by label, length and family.

    Raises:
        ValueError: a suite or label that does not exist; a length that is too short for the suite.
    """
    check_suite(suite, plan.labels)
    make = SUITES[suite][1]
    return [
        Item(label, make(plan, label, length, family, tokenizer))
        for label, length in plan.cells()
        for family in plan.families
    ]


def check_suite(suite: str, labels: Sequence[str]) -> None:
    """Raise ValueError for a suite or a label that does not exist."""
    if suite not in SUITES:
        raise ValueError(f"eval.suites.{suite} does not exist: choose from {', '.join(SUITES)}")
    known, _ = SUITES[suite]
    for label in labels:
        if label not in known:
            raise ValueError(f"eval.suites.{suite}.labels={label} does not exist: choose from {', '.join(known)}")


def _heldout(plan: Plan, label: str, length: int, family: int, tokenizer: PreTrainedTokenizerBase) -> Example:
    (example,) = generate(label, family, split="test", length=length, tokenizer=tokenizer)
    return example


def _longreason(plan: Plan, label: str, length: int, family: int, tokenizer: PreTrainedTokenizerBase) -> Example:
    (form,) = (one for one in FORMS if one == label)
    (example,) = generate_longreason(Request("longreason", family, "test", length, tokenizer, 1), form=form)
    return example


def _ruler(plan: Plan, label: str, length: int, family: int, tokenizer: PreTrainedTokenizerBase) -> Example:
    (example,) = generate_ruler(Request("ruler", family, "test", length, tokenizer, 1), shape=label)
    return example


def _code(plan: Plan, label: str, length: int, family: int, tokenizer: PreTrainedTokenizerBase) -> Example:
    (condition,) = (one for one in CONDITIONS if one == label)
    request = Request("code", family, "test", length, tokenizer, 1)
    (example,) = generate_code(request, Setting(condition, "call", plan.level))
    return example


Maker = Callable[[Plan, str, int, int, PreTrainedTokenizerBase], Example]

SUITES: dict[str, tuple[tuple[str, ...], Maker]] = {
    "heldout": (("multihop", "grounding", "longform", "copy", "lookup", "pairs"), _heldout),
    "longreason": (FORMS, _longreason),
    "ruler": (tuple(SHAPES), _ruler),
    "code": (CONDITIONS, _code),
}
"""Labels of each suite, and what makes an item of one."""
