"""Numbers that prose quotes: an estimate with its interval, ``+28.6 [+24.1, +33.2]``, has to stand in some table."""

import re
from pathlib import Path

from longctx_rl.report.marks import END, MARK, readmes
from longctx_rl.report.tables import MINUS

NUMBER = rf"[+{MINUS}-]?\d+(?:\.\d+)?"
QUOTED = re.compile(rf"(?<![\w.])({NUMBER})(?: points?)?\s+\[({NUMBER}),\s+({NUMBER})\]")
BLOCK = re.compile(f"{MARK.pattern}.*?{END}", re.DOTALL)
VERDICTS = Path("docs", "paper.md")

Quote = tuple[float, float, float]
"""Estimate and bounds, as printed."""


def unfounded(checkout: Path) -> list[str]:
    """Estimates with intervals in READMEs and docs/paper.md that no experiment's tables.md has, a sentence each.

    That of b minus a may be quoted where a table has a minus b. Numbers without an interval are not checked.
    """
    tables = checkout.glob("experiments/*/tables.md")
    known = {quote for path in tables for _, quote in _quotes(path.read_text(encoding="utf-8"))}
    known |= {(-estimate, -high, -low) for estimate, low, high in known}
    pages = [path for path in (*readmes(checkout), checkout / VERDICTS) if path.is_file()]
    return [
        f"{path} says {text}, which stands in no table of an experiment: correct it"
        for path in pages
        for text, quote in _quotes(BLOCK.sub("", path.read_text(encoding="utf-8")))
        if quote not in known
    ]


def _quotes(text: str) -> list[tuple[str, Quote]]:
    return [
        (" ".join(found[0].split()), (_number(found[1]), _number(found[2]), _number(found[3])))
        for found in QUOTED.finditer(text)
    ]


def _number(text: str) -> float:
    return float(text.replace(MINUS, "-"))
