"""Numbers in prose: marked blocks of READMEs are filled from the tables, and quoted estimates must stand in a table.

A marked block holds the Markdown of one table, here ``levels`` of ``table1``:

<!-- table1/levels -->
... replaced ...
<!-- end -->
"""

import re
from collections.abc import Mapping
from pathlib import Path

MARK = re.compile(r"<!-- ([\w-]+)/([\w-]+) -->\n")
END = "<!-- end -->"
BLOCK = re.compile(f"{MARK.pattern}.*?{END}", re.DOTALL)
NUMBER = "[+\N{MINUS SIGN}-]?" + r"\d+(?:\.\d+)?"
QUOTED = re.compile(rf"(?<![\w.])({NUMBER})(?: points?)?\s+\[({NUMBER}),\s+({NUMBER})\]")
"""An estimate with its interval, such as ``+28.6 [+24.1, +33.2]``."""
PAPER = Path("docs", "paper.md")

Quote = tuple[float, float, float]
"""Estimate and bounds, as printed."""


def readmes(checkout: Path) -> list[Path]:
    """Files that may contain marked blocks."""
    places = (checkout / "README.md", *sorted(checkout.glob("experiments/*/README.md")))
    return [path for path in places if path.is_file()]


def studies(checkout: Path) -> list[str]:
    """Experiments that have tables: tables.md exists, or their own README marks a block for one of their tables."""
    with_marks = {
        path.parent.name
        for path in checkout.glob("experiments/*/README.md")
        if path.parent.name in {mark[1] for mark in MARK.finditer(path.read_text(encoding="utf-8"))}
    }
    return sorted(with_marks | {path.parent.name for path in checkout.glob("experiments/*/tables.md")})


def filled(path: Path, experiment: str, tables: Mapping[str, str]) -> str:
    """The text of a file in which this experiment's blocks are filled; blocks of other experiments stay as they are.

    Args:
        tables: name of each table to its Markdown.

    Raises:
        ValueError: a block has no end, or names a table that does not exist.
    """
    text, done, parts = path.read_text(encoding="utf-8"), 0, []
    for mark in MARK.finditer(text):
        place, name = f"{mark[1]}/{mark[2]}", mark[2]
        end = text.find(END, mark.end())
        following = MARK.search(text, mark.end())
        if end < 0 or (following and following.start() < end):
            raise ValueError(f"{path}: the block <!-- {place} --> has no end: add a line {END} below it")
        if mark[1] != experiment:
            continue
        if name not in tables:
            raise ValueError(
                f"{path}: <!-- {place} --> names a table that the results do not give: choose one of "
                f"{', '.join(tables)}; tables of gains need results of the base model (docs/report.md)"
            )
        parts += [text[done : mark.end()], tables[name], "\n"]
        done = end
    return "".join([*parts, text[done:]])


def unfounded(checkout: Path) -> list[str]:
    """Estimates with intervals in READMEs and docs/paper.md that stand in no experiment's tables.md, a sentence each.

    The estimate of b minus a may be quoted where a table has a minus b. Numbers without an interval are not checked.
    """
    tables = checkout.glob("experiments/*/tables.md")
    known = {quote for path in tables for _, quote in _quotes(path.read_text(encoding="utf-8"))}
    known |= {(-estimate, -high, -low) for estimate, low, high in known}
    pages = [path for path in (*readmes(checkout), checkout / PAPER) if path.is_file()]
    return [
        f"{path} quotes {text}, which no experiments/*/tables.md contains: correct the quotation"
        for path in pages
        for text, quote in _quotes(BLOCK.sub("", path.read_text(encoding="utf-8")))
        if quote not in known
    ]


def _quotes(text: str) -> list[tuple[str, Quote]]:
    return [
        (" ".join(match[0].split()), (_number(match[1]), _number(match[2]), _number(match[3])))
        for match in QUOTED.finditer(text)
    ]


def _number(text: str) -> float:
    return float(text.replace("\N{MINUS SIGN}", "-"))
