"""What is asked to be written: small functions of nonce helpers, from one call to list processing.

Level 0 nests one or two calls, for the mini models. Level 1 combines calls of one or two arguments. Level 2 has bodies
as benchmarks of short code have them: filters, sorts, counts, runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from longctx_rl.data.generators.helpers import Helper
from longctx_rl.data.generators.names import Split
from longctx_rl.data.generators.wording import wordings

ENTRY = "solve"
OPENERS = ("Task:", "In Python,", "Code:", "With the modules above,")
CORES = (
    "write {signature}, which returns {what}.",
    "define {signature} to return {what}.",
    "make {signature} return {what}.",
)


@dataclass(frozen=True, slots=True)
class Task:
    """A function to write, in words and in code."""

    parameters: tuple[str, ...]
    """Of the function: ``x`` and ``y`` are integers, ``values`` a list of them."""
    what: str
    """What it returns, by topics."""
    body: tuple[str, ...]
    helpers: tuple[Helper, ...]
    """In the order in which the words name them."""

    @property
    def topics(self) -> tuple[str, ...]:
        return tuple(helper.topic for helper in self.helpers)

    def definition(self) -> str:
        """The function alone."""
        lines = "\n".join(f"    {line}" for line in self.body)
        return f"def {ENTRY}({', '.join(self.parameters)}):\n{lines}"

    def calling(self) -> str:
        """The solution that imports its helpers, each under the topic that it was found by.

        A small model copies what follows a topic once it has said the topic itself; without that, hundreds of steps
        taught it the form of a solution and nothing of whose helper it is.
        """
        imports = "\n".join(f"# {one.topic}\nfrom {one.module} import {one.name}" for one in self.helpers)
        return f"{imports}\n\n{self.definition()}"

    def inlined(self) -> str:
        """The solution that repeats its helpers."""
        return "\n\n".join([*(helper.source for helper in self.helpers), self.definition()])

    def worded(self, rng: Random, split: Split) -> str:
        """The task in one of the split's wordings."""
        opener, core = rng.choice(wordings(split, OPENERS))
        signature = f"{ENTRY}({', '.join(self.parameters)})"
        return f"{opener} {CORES[core].format(signature=signature, what=self.what)}"


@dataclass(frozen=True, slots=True)
class Kind:
    """A task without its helpers: {t0} is the first one's topic, {f0} its name."""

    helpers: tuple[tuple[str, ...], ...]
    """Parameters of each helper."""
    parameters: tuple[str, ...]
    what: str
    body: tuple[str, ...]

    def about(self, helpers: Sequence[Helper]) -> Task:
        """The task of some helpers with the right parameters."""
        assert [helper.parameters for helper in helpers] == list(self.helpers)
        words = {f"t{index}": helper.topic for index, helper in enumerate(helpers)}
        words |= {f"f{index}": helper.name for index, helper in enumerate(helpers)}
        body = tuple(line.format(**words) for line in self.body)
        return Task(self.parameters, self.what.format(**words), body, tuple(helpers))


ONE, TWO = ("x",), ("x", "y")
CALL = Kind((ONE,), ONE, "the {t0} of x", ("return {f0}(x)",))
NESTED = Kind((ONE, ONE), ONE, "the {t0} of the {t1} of x", ("return {f0}({f1}(x))",))
CHAIN = Kind((ONE, ONE, ONE), ONE, "the {t0} of the {t1} of the {t2} of x", ("return {f0}({f1}({f2}(x)))",))

KINDS: dict[int, tuple[Kind, ...]] = {
    0: (CALL, NESTED),
    1: (
        CALL,
        NESTED,
        CHAIN,
        Kind((ONE, TWO), TWO, "the {t0} of x plus the {t1} of x and y", ("return {f0}(x) + {f1}(x, y)",)),
        Kind((TWO, ONE), TWO, "the {t0} of x and the {t1} of y", ("return {f0}(x, {f1}(y))",)),
        Kind(
            (ONE, ONE),
            ONE,
            "the {t0} of x if that is even, and else the {t1} of x",
            ("first = {f0}(x)", "return first if first % 2 == 0 else {f1}(x)"),
        ),
    ),
    2: (
        Kind(
            (ONE, ONE),
            ("values",),
            "the sum of the {t1} of those values whose {t0} is even",
            ("return sum({f1}(x) for x in values if {f0}(x) % 2 == 0)",),
        ),
        Kind(
            (ONE,),
            ("values",),
            "the values sorted by their {t0}, and equal ones by value",
            ("return sorted(values, key=lambda x: ({f0}(x), x))",),
        ),
        Kind(
            (ONE,),
            ("values",),
            "a dict from each remainder of the values' {t0} modulo 5 to how many values have it",
            (
                "counts = {{}}",
                "for x in values:",
                "    rest = {f0}(x) % 5",
                "    counts[rest] = counts.get(rest, 0) + 1",
                "return counts",
            ),
        ),
        Kind(
            (ONE,),
            ("values",),
            "a tuple of the smallest and the largest {t0} of the values, or None if there are no values",
            (
                "if not values:",
                "    return None",
                "found = [{f0}(x) for x in values]",
                "return min(found), max(found)",
            ),
        ),
        Kind(
            (TWO, ONE),
            ("values",),
            "a list of the {t0} of each value and the {t1} of the value after it",
            ("return [{f0}(a, {f1}(b)) for a, b in zip(values, values[1:])]",),
        ),
        Kind(
            (ONE,),
            ("values",),
            "the length of the longest run of neighbouring values along which the {t0} grows",
            (
                "best = run = 0",
                "last = None",
                "for x in values:",
                "    now = {f0}(x)",
                "    run = run + 1 if last is not None and now > last else 1",
                "    best, last = max(best, run), now",
                "return best",
            ),
        ),
    ),
}
"""Kinds of task by level."""
