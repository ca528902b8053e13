"""The functions that code tasks request: combinations of nonce helpers, from one call to list processing.

Level 0 nests one or two calls, for the mini models. Level 1 combines calls of one or two arguments. Level 2 has bodies
as in benchmarks of short code: filters, sorts, counts, runs and, as in BigCodeBench, standard-library calls.
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
    """Parameters of the function: ``x`` and ``y`` are integers, ``values`` is a list of integers."""
    what: str
    """Description of the return value, by topics."""
    body: tuple[str, ...]
    helpers: tuple[Helper, ...]
    """In the order in which the description names them."""
    imports: tuple[str, ...] = ()
    """Standard-library imports of the body."""

    @property
    def topics(self) -> tuple[str, ...]:
        return tuple(helper.topic for helper in self.helpers)

    def definition(self) -> str:
        """Return the function without imports."""
        lines = "\n".join(f"    {line}" for line in self.body)
        return f"def {ENTRY}({', '.join(self.parameters)}):\n{lines}"

    def calling(self) -> str:
        """Return the solution that imports its helpers, each after a comment with its topic.

        A small model copies what follows a topic once it has generated the topic itself. Without the comment, hundreds
        of training steps taught it the form of a solution but not which helper to import.
        """
        helpers = [f"# {helper.topic}\nfrom {helper.module} import {helper.name}" for helper in self.helpers]
        imports = "\n".join([*self.imports, *helpers])
        return f"{imports}\n\n{self.definition()}"

    def inlined(self) -> str:
        """Return the solution that includes its helpers' definitions."""
        sources = [helper.source for helper in self.helpers]
        return "\n\n".join([*filter(None, ["\n".join(self.imports)]), *sources, self.definition()])

    def worded(self, rng: Random, split: Split) -> str:
        """Return the task in one of the split's wordings."""
        opener, core = rng.choice(wordings(split, OPENERS))
        signature = f"{ENTRY}({', '.join(self.parameters)})"
        return f"{opener} {CORES[core].format(signature=signature, what=self.what)}"


@dataclass(frozen=True, slots=True)
class Kind:
    """A task template: {t0} is the topic of the first helper, {f0} its name."""

    helpers: tuple[tuple[str, ...], ...]
    """Parameters of each helper."""
    parameters: tuple[str, ...]
    what: str
    body: tuple[str, ...]
    imports: tuple[str, ...] = ()

    def about(self, helpers: Sequence[Helper]) -> Task:
        """Return the task for helpers with matching parameters."""
        assert [helper.parameters for helper in helpers] == list(self.helpers)
        words = {f"t{index}": helper.topic for index, helper in enumerate(helpers)}
        words |= {f"f{index}": helper.name for index, helper in enumerate(helpers)}
        body = tuple(line.format(**words) for line in self.body)
        return Task(self.parameters, self.what.format(**words), body, tuple(helpers), self.imports)


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
        Kind(
            (ONE,),
            ("values",),
            "a list of pairs, each of a remainder of the values' {t0} modulo 7 and how many values have it: of the "
            "three most frequent, those first, and of equally frequent ones the smaller remainder first",
            (
                "counts = Counter({f0}(x) % 7 for x in values)",
                "return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:3]",
            ),
            ("from collections import Counter",),
        ),
        Kind(
            (ONE, TWO),
            ("values",),
            "a JSON text: an object whose keys are the values in ascending order, each with a list of the {t0} of the "
            "key and the {t1} of the key and the number of values",
            (
                "size = len(values)",
                "return json.dumps({{str(x): [{f0}(x), {f1}(x, size)] for x in sorted(values)}})",
            ),
            ("import json",),
        ),
        Kind(
            (ONE,),
            ("values",),
            "the ISO dates, joined by commas, of the days that lie as many days after 2000-01-01 as the {t0} of each "
            "value modulo 10000 says, each date once and the earliest first",
            (
                "days = {{date(2000, 1, 1) + timedelta(days={f0}(x) % 10000) for x in values}}",
                'return ",".join(day.isoformat() for day in sorted(days))',
            ),
            ("from datetime import date, timedelta",),
        ),
        Kind(
            (ONE, ONE),
            ("values",),
            "a list of lists: neighbouring values with equal {t0} modulo 3 together, and of each the {t1}",
            ("return [[{f1}(x) for x in group] for _, group in groupby(values, key=lambda x: {f0}(x) % 3)]",),
            ("from itertools import groupby",),
        ),
        Kind(
            (ONE,),
            ("values",),
            "the first eight hexadecimal digits of the SHA-256 of the values' {t0}, written in decimal and joined by "
            "semicolons, or None if there are no values",
            (
                "if not values:",
                "    return None",
                'text = ";".join(str({f0}(x)) for x in values)',
                "return hashlib.sha256(text.encode()).hexdigest()[:8]",
            ),
            ("import hashlib",),
        ),
        Kind(
            (ONE, ONE),
            ("values",),
            "a tuple of the lower median of the values' {t0} and the greatest common divisor of their {t1}, or None if "
            "there are no values",
            (
                "if not values:",
                "    return None",
                "return statistics.median_low(map({f0}, values)), math.gcd(*map({f1}, values))",
            ),
            ("import math", "import statistics"),
        ),
    ),
}
"""Task templates by level."""
