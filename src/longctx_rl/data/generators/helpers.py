"""Nonce helper functions: their names, what they are said to compute, and what they do, which nobody can guess.

A helper is found by its topic ("the KesDal of x"), which its docstring names before it shows the import; its name says
nothing. What it computes are random constants, so code that does not call it, or copy it, is wrong on nearly every
input.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from longctx_rl.data.generators.names import Cast, Split
from longctx_rl.data.generators.wording import wording_split

DOC_OPENERS = ("Return", "Compute", "Give", "Find", "Work out", "Look up")
DOC_CORES = ("{opener} the {topic} of {of}.", "{opener} what the {topic} of {of} is.", "{opener} {of}'s {topic}.")

LINES = (
    ("return x * {a} + {b}",),
    ("return (x * {a} + {b}) % {m}",),
    ("return x * {a} - {b}",),
    ("return (x + {b}) * {a} % {m}",),
    ("total = x * {a}", "return total + {b}"),
    ("total = (x + {b}) * {a}", "return total % {m}"),
)
"""Bodies of level 0; of several lengths, so that they add up to nearly any."""


@dataclass(frozen=True, slots=True)
class Helper:
    """One helper function in its module."""

    module: str
    name: str
    topic: str
    parameters: tuple[str, ...]
    doc: str
    body: tuple[str, ...]
    """Lines, without indentation."""

    @property
    def source(self) -> str:
        """Its definition, with what it is for and how it is imported."""
        head, lines = self.code.split("\n", 1)
        return f'{head}\n    """{self.doc}\n\n    >>> from {self.module} import {self.name}\n    """\n{lines}'

    @property
    def code(self) -> str:
        """Its definition without a word of what it is for: that stands in the document alone."""
        lines = "\n".join(f"    {line}" for line in self.body)
        return f"def {self.name}({', '.join(self.parameters)}):\n{lines}"


@dataclass(frozen=True, slots=True)
class Module:
    """Helpers that one file defines."""

    name: str
    helpers: tuple[Helper, ...]

    @property
    def text(self) -> str:
        """As it stands in the document."""
        return f"# {self.name}.py\n" + "\n\n".join(helper.source for helper in self.helpers) + "\n\n"

    @property
    def source(self) -> str:
        """As it can be imported."""
        return "\n\n\n".join(helper.code for helper in self.helpers) + "\n"


class Author:
    """Writes helpers and modules of one document, no name of which comes twice.

    Args:
        level: 0 for bodies of a line or two and one argument; above, piecewise ones of one or two.
    """

    def __init__(self, rng: Random, cast: Cast, split: Split, level: int) -> None:
        self.rng, self.cast, self.split, self.level = rng, cast, split, level
        self._docs = [
            (opener, core)
            for opener in range(len(DOC_OPENERS))
            for core in range(len(DOC_CORES))
            if wording_split(opener, core, len(DOC_OPENERS)) == split
        ]

    def helper(
        self,
        *,
        module: str | None = None,
        name: str | None = None,
        topic: str | None = None,
        parameters: tuple[str, ...] | None = None,
        note: str = "",
    ) -> Helper:
        """A helper; what is not given is new. ``note`` follows the docstring's sentence."""
        rng = self.rng
        if parameters is None:
            parameters = ("x", "y") if self.level and rng.random() < 0.4 else ("x",)
        topic = topic or self.cast.new(rng)
        opener, core = rng.choice(self._docs)
        doc = DOC_CORES[core].format(opener=DOC_OPENERS[opener], topic=topic, of=" and ".join(parameters))
        return Helper(
            module=module or self.cast.new(rng),
            name=name or self.cast.new(rng),
            topic=topic,
            parameters=parameters,
            doc=doc + note,
            body=self._piecewise(parameters) if self.level else self._line(),
        )

    def protagonist(self, parameters: tuple[str, ...] | None = None) -> Helper:
        """A helper whose names nothing else in the document resembles, unless it is asked for."""
        rng, cast = self.rng, self.cast
        return self.helper(
            module=cast.protagonist(rng), name=cast.protagonist(rng), topic=cast.protagonist(rng), parameters=parameters
        )

    def module(self) -> Module:
        """A module that the task does not need; above level 0 of several helpers."""
        name = self.cast.new(self.rng)
        count = self.rng.randint(1, 3) if self.level else 1
        return Module(name, tuple(self.helper(module=name) for _ in range(count)))

    def shared(self, helper: Helper) -> Module:
        """The module of a helper; above level 0 with as many others as any module has."""
        count = self.rng.randint(1, 3) if self.level else 1
        helpers = [helper, *(self.helper(module=helper.module) for _ in range(count - 1))]
        if count > 1:
            self.rng.shuffle(helpers)
        return Module(helper.module, tuple(helpers))

    def modules(self) -> Iterator[Module]:
        """Such modules without end. Raises ValueError when names are used up."""
        while True:
            yield self.module()

    def resembling(self, helper: Helper) -> list[Module]:
        """What is taken for ``helper``: its name elsewhere, its topic deprecated, a topic spelled much like it."""
        rng, cast = self.rng, self.cast
        found = [
            self.helper(name=helper.name, parameters=helper.parameters),
            self.helper(topic=helper.topic, parameters=helper.parameters, note=f" Deprecated: use {helper.name}."),
            self.helper(topic=cast.near(rng, helper.topic), parameters=helper.parameters),
        ]
        return [Module(one.module, (one,)) for one in found]

    def _line(self) -> tuple[str, ...]:
        a, b, m = self._constants()
        return tuple(line.format(a=a, b=b, m=m) for line in self.rng.choice(LINES))

    def _piecewise(self, parameters: tuple[str, ...]) -> tuple[str, ...]:
        a, b, m = self._constants()
        c, d, n = self._constants()
        other = "x" if len(parameters) == 1 else "y"
        return (
            f"if (x + {d}) % {self.rng.randint(2, 5)} == 0:",
            f"    return ({other} * {a} + {b}) % {m}",
            f"total = x * {c} - {other} * {a}",
            f"return total % {n} + {d}",
        )

    def _constants(self) -> tuple[int, int, int]:
        rng = self.rng
        return rng.randint(2, 9), rng.randint(1, 9), rng.randint(31, 97)
