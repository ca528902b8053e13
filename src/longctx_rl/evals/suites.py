"""What each suite asks: items by label and length, the same families at every length.

A label is a row of the tables: a task, a form, a condition. Families are counted from ``first``, so that what a
decision was taken on need not be what is reported. Items are generated, or read from a data set or file; of those there
may be fewer than are asked for.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from typing import get_args

from transformers import PreTrainedTokenizerBase

from longctx_rl.config.eval import SuiteConfig
from longctx_rl.data.generators import generate
from longctx_rl.data.generators.chronicle import Request
from longctx_rl.data.generators.code import Condition, Setting, generate_code
from longctx_rl.data.generators.longreason import LETTERS, Form, generate_longreason
from longctx_rl.data.generators.ruler import SHAPES, generate_ruler
from longctx_rl.data.generators.ruler_sources import Sources
from longctx_rl.evals import functions, longblocks_suite, longreason_hub
from longctx_rl.evals.items import WITHOUT_LENGTH, Item
from longctx_rl.types import Example

CONDITIONS: tuple[Condition, ...] = get_args(Condition)
FORMS: tuple[Form, ...] = get_args(Form)


@dataclass(frozen=True, slots=True)
class Plan:
    """Which items of a suite are asked for."""

    suite: SuiteConfig
    items: int
    """Families of each label and length; where the suite's labels share them, of each length."""
    first: int = 0
    number: int = 0
    of: int = 1
    """Whole families are shared among ``of`` processes, and this is one of the shares."""

    @property
    def each(self) -> int:
        """Families of each label and length."""
        return ceil(self.items / len(self.suite.labels)) if self.suite.shared_items else self.items

    @property
    def families(self) -> range:
        return range(self.first + self.number, self.first + self.each, self.of)

    @property
    def size(self) -> int:
        """Number of items; of what is read there may be fewer."""
        return len(self.families) * len(list(self.cells()))

    def share(self, number: int, of: int) -> "Plan":
        """What process ``number`` of ``of`` asks for."""
        return replace(self, number=number, of=of)

    def cells(self) -> Iterator[tuple[str, int]]:
        """Labels with lengths; a label without length comes once."""
        for label in self.suite.labels:
            yield from ((label, length) for length in ((0,) if label in WITHOUT_LENGTH else self.suite.lengths))


def items_of(suite: str, plan: Plan, tokenizer: PreTrainedTokenizerBase) -> list[Item]:
    """All items of a plan, by label, length and family.

    Raises:
        ValueError: a suite or label that does not exist; a length that is too short for the suite; a data set that
            cannot be read or does not have what is asked.
    """
    check_suite(suite, plan.suite.labels)
    if suite in READ:
        read = READ[suite][1](plan.suite, plan.first, plan.each, tokenizer)
        families = list(dict.fromkeys(item.example.family_id for item in read))[plan.number :: plan.of]
        return [item for item in read if item.example.family_id in families]
    make = SUITES[suite][1]
    floor = 1 / len(LETTERS) if suite == "longreason" else None
    return [
        Item(label, make(plan, label, length, family, tokenizer), floor)
        for label, length in plan.cells()
        for family in plan.families
    ]


def check_suite(suite: str, labels: Sequence[str]) -> None:
    """Raise ValueError for a suite or a label that does not exist."""
    known = LABELS.get(suite)
    if known is None:
        raise ValueError(f"eval.suites.{suite} does not exist: choose from {', '.join(LABELS)}")
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
    sources = Sources(plan.suite.essays, plan.suite.squad, plan.suite.hotpot)
    request = Request("ruler", family, "test", length, tokenizer, 1)
    (example,) = generate_ruler(request, shape=label, sources=sources)
    return example


def _code(plan: Plan, label: str, length: int, family: int, tokenizer: PreTrainedTokenizerBase) -> Example:
    (condition,) = (one for one in CONDITIONS if one == label)
    request = Request("code", family, "test", length, tokenizer, 1)
    (example,) = generate_code(request, Setting(condition, plan.suite.mode, plan.suite.level))
    return example


Maker = Callable[[Plan, str, int, int, PreTrainedTokenizerBase], Example]
Reader = Callable[[SuiteConfig, int, int, PreTrainedTokenizerBase], list[Item]]
"""Of a suite's settings, the first family and the number of families of each label and length."""

SUITES: dict[str, tuple[tuple[str, ...], Maker]] = {
    "heldout": (("multihop", "grounding", "longform", "copy", "lookup", "pairs", "drill"), _heldout),
    "longreason": (FORMS, _longreason),
    "ruler": (tuple(SHAPES), _ruler),
    "code": (CONDITIONS, _code),
}
"""Labels of each generated suite, and what makes an item of one."""

READ: dict[str, tuple[tuple[str, ...], Reader]] = {
    "longreason_hub": (longreason_hub.LABELS, longreason_hub.read_items),
    "humaneval": (functions.LABELS, partial(functions.read_items, "humaneval")),
    "mbpp": (functions.LABELS, partial(functions.read_items, "mbpp")),
    "longblocks": (longblocks_suite.LABELS, longblocks_suite.read_items),
}
"""Labels of each suite that is read, and what reads its items."""

LABELS: dict[str, tuple[str, ...]] = {name: labels for name, (labels, _) in [*SUITES.items(), *READ.items()]}
