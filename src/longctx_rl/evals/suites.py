"""The items of every suite, by label and length, with the same families at every length.

A label is a row of the tables: a task, a form, or a condition. Families are numbered from ``first``, so that a decision
and the final report can use different items. Items are generated, or read from a data set or a file, which may hold
fewer items than requested.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from longctx_rl.config.eval import EvalConfig, SuiteConfig
from longctx_rl.data.generators import generate
from longctx_rl.data.generators.chronicle import Request
from longctx_rl.data.generators.code import Condition, Setting, generate_code
from longctx_rl.data.generators.longreason import LETTERS, Form, generate_longreason
from longctx_rl.data.generators.ruler import SHAPES, generate_ruler
from longctx_rl.data.generators.ruler_sources import Sources
from longctx_rl.evals import functions, longblocks_suite, longreason_hub
from longctx_rl.evals.items import WITHOUT_LENGTH, Item
from longctx_rl.types import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CONDITIONS: tuple[Condition, ...] = get_args(Condition)
FORMS: tuple[Form, ...] = get_args(Form)


ProgressCallback = Callable[[str, int], None]
"""Called with a suite's name and the number of its items that were newly answered."""


@dataclass(frozen=True, slots=True)
class Share:
    """One process's share of an evaluation."""

    index: int = 0
    count: int = 1

    def file(self, out: Path, suite: str) -> Path:
        """The file of this share's records: the suite's own file if there is one share only."""
        return out / "evals" / (f"{suite}.jsonl" if self.count == 1 else f"{suite}.{self.index}.jsonl")


@dataclass(frozen=True, slots=True)
class Plan:
    """The items that are requested of a suite, or one process's share of them."""

    suite: SuiteConfig
    items: int
    """Families per label and length; with ``suite.shared_items``, per length."""
    first: int = 0
    """Number of the first family."""
    share_index: int = 0
    num_shares: int = 1
    """Whole families are divided among ``num_shares`` processes; this plan is the share ``share_index``."""

    @property
    def each(self) -> int:
        """Families per label and length, over all shares."""
        return ceil(self.items / len(self.suite.labels)) if self.suite.shared_items else self.items

    @property
    def families(self) -> range:
        """Numbers of this share's families."""
        return range(self.first + self.share_index, self.first + self.each, self.num_shares)

    @property
    def size(self) -> int:
        """Number of items. A suite that is read may hold fewer."""
        return len(self.families) * len(list(self.cells()))

    def share(self, index: int, count: int) -> Plan:
        """The share of process ``index`` out of ``count``."""
        return replace(self, share_index=index, num_shares=count)

    def cells(self) -> Iterator[tuple[str, int]]:
        """All pairs of label and length; a label without length occurs once, with length 0."""
        for label in self.suite.labels:
            yield from ((label, length) for length in ((0,) if label in WITHOUT_LENGTH else self.suite.lengths))


def plan_of(config: EvalConfig, name: str) -> Plan:
    """The plan of all items of the suite ``name``."""
    return Plan(config.suites[name], config.items, config.first)


def items_of(suite: str, plan: Plan, tokenizer: PreTrainedTokenizerBase) -> list[Item]:
    """All items of a plan, ordered by label, length and family.

    Raises:
        ValueError: an unknown suite or label; a length that is too short for the suite; a data set that cannot be read
            or lacks what is requested.
    """
    check_suite(suite, plan.suite.labels)
    if suite in READ:
        read = READ[suite][1](plan.suite, plan.first, plan.each, tokenizer)
        families = list(dict.fromkeys(item.example.family_id for item in read))[plan.share_index :: plan.num_shares]
        return [item for item in read if item.example.family_id in families]
    make = SUITES[suite][1]
    floor = 1 / len(LETTERS) if suite == "longreason" else None
    return [
        Item(label, make(plan, label, length, family, tokenizer), floor)
        for label, length in plan.cells()
        for family in plan.families
    ]


def check_suite(suite: str, labels: Sequence[str]) -> None:
    """Raise ValueError for an unknown suite or label."""
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
    (form,) = (name for name in FORMS if name == label)
    (example,) = generate_longreason(Request("longreason", family, "test", length, tokenizer, 1), form=form)
    return example


def _ruler(plan: Plan, label: str, length: int, family: int, tokenizer: PreTrainedTokenizerBase) -> Example:
    sources = Sources(plan.suite.essays, plan.suite.squad, plan.suite.hotpot)
    request = Request("ruler", family, "test", length, tokenizer, 1)
    (example,) = generate_ruler(request, shape=label, sources=sources)
    return example


def _code(plan: Plan, label: str, length: int, family: int, tokenizer: PreTrainedTokenizerBase) -> Example:
    (condition,) = (name for name in CONDITIONS if name == label)
    request = Request("code", family, "test", length, tokenizer, 1)
    (example,) = generate_code(request, Setting(condition, plan.suite.mode, plan.suite.level))
    return example


Maker = Callable[[Plan, str, int, int, "PreTrainedTokenizerBase"], Example]
"""Plan, label, length, family number and tokenizer to one example."""
Reader = Callable[[SuiteConfig, int, int, "PreTrainedTokenizerBase"], list[Item]]
"""Suite settings, first family, families per label and length, and tokenizer to items."""

SUITES: dict[str, tuple[tuple[str, ...], Maker]] = {
    "heldout": (("multihop", "grounding", "longform", "copy", "lookup", "pairs", "drill"), _heldout),
    "longreason": (FORMS, _longreason),
    "ruler": (tuple(SHAPES), _ruler),
    "code": (CONDITIONS, _code),
}
"""Labels of each generated suite, and the function that makes one item."""

READ: dict[str, tuple[tuple[str, ...], Reader]] = {
    "longreason_hub": (longreason_hub.LABELS, longreason_hub.read_items),
    "humaneval": (functions.LABELS, partial(functions.read_items, "humaneval")),
    "mbpp": (functions.LABELS, partial(functions.read_items, "mbpp")),
    "longblocks": (longblocks_suite.LABELS, longblocks_suite.read_items),
}
"""Labels of each suite that is read from a data set or file, and the function that reads its items."""

LABELS: dict[str, tuple[str, ...]] = {name: labels for name, (labels, _) in [*SUITES.items(), *READ.items()]}
"""Labels of every suite."""
