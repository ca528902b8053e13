"""Nonce helper functions: their names, their documented topics, and their unguessable behaviour.

A helper is identified by its topic ("the KesDal of x"), which its docstring states before the import; its name carries
no information. Its body uses random constants, so code that neither calls nor copies it is wrong on nearly every input.
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
"""Bodies of level 0, of several lengths, so that their sums reach nearly any token count."""


@dataclass(frozen=True, slots=True)
class Helper:
    """One helper function in its module."""

    module: str
    name: str
    topic: str
    parameters: tuple[str, ...]
    doc: str
    body: tuple[str, ...]
    """Lines without indentation."""

    @property
    def source(self) -> str:
        """The definition with a docstring that states its topic and its import."""
        head, lines = self.code.split("\n", 1)
        return f'{head}\n    """{self.doc}\n\n    >>> from {self.module} import {self.name}\n    """\n{lines}'

    @property
    def code(self) -> str:
        """The definition without a docstring: only the document states its topic."""
        lines = "\n".join(f"    {line}" for line in self.body)
        return f"def {self.name}({', '.join(self.parameters)}):\n{lines}"


@dataclass(frozen=True, slots=True)
class Module:
    """The helpers of one file."""

    name: str
    helpers: tuple[Helper, ...]

    @property
    def text(self) -> str:
        """The text of the module in the document."""
        return f"# {self.name}.py\n" + "\n\n".join(helper.source for helper in self.helpers) + "\n\n"

    @property
    def source(self) -> str:
        """The source of the importable module."""
        return "\n\n\n".join(helper.code for helper in self.helpers) + "\n"


class Author:
    """Writes the helpers and modules of one document, without repeating a name.

    Args:
        level: 0 for bodies of one or two lines with one argument; above 0, piecewise bodies with one or two arguments.
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
        """Return a helper, with new values for omitted arguments. ``note`` is appended to the docstring's sentence."""
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
        """Return a helper whose names resemble no other name in the document, except deliberate look-alikes."""
        rng, cast = self.rng, self.cast
        return self.helper(
            module=cast.protagonist(rng), name=cast.protagonist(rng), topic=cast.protagonist(rng), parameters=parameters
        )

    def module(self) -> Module:
        """Return a module that the task does not need; above level 0 it has one to three helpers."""
        name = self.cast.new(self.rng)
        count = self.rng.randint(1, 3) if self.level else 1
        return Module(name, tuple(self.helper(module=name) for _ in range(count)))

    def shared(self, helper: Helper) -> Module:
        """Return the module of a helper; above level 0 with as many other helpers as any module."""
        count = self.rng.randint(1, 3) if self.level else 1
        helpers = [helper, *(self.helper(module=helper.module) for _ in range(count - 1))]
        if count > 1:
            self.rng.shuffle(helpers)
        return Module(helper.module, tuple(helpers))

    def modules(self) -> Iterator[Module]:
        """Yield modules endlessly. Raises ValueError when names are exhausted."""
        while True:
            yield self.module()

    def resembling(self, helper: Helper) -> list[Module]:
        """Return look-alikes of ``helper``: its name in another module, its topic deprecated, a similar topic."""
        rng, cast = self.rng, self.cast
        lookalikes = [
            self.helper(name=helper.name, parameters=helper.parameters),
            self.helper(topic=helper.topic, parameters=helper.parameters, note=f" Deprecated: use {helper.name}."),
            self.helper(topic=cast.near(rng, helper.topic), parameters=helper.parameters),
        ]
        return [Module(lookalike.module, (lookalike,)) for lookalike in lookalikes]

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
