"""Numbers in READMEs, between marks, from the same tables as everything else.

<!-- table1/levels -->
... replaced ...
<!-- end -->
"""

import re
from collections.abc import Mapping
from pathlib import Path

MARK = re.compile(r"<!-- ([\w-]+)/([\w-]+) -->\n")
END = "<!-- end -->"


def readmes(checkout: Path) -> list[Path]:
    """Files that may hold marks."""
    places = (checkout / "README.md", *sorted(checkout.glob("experiments/*/README.md")))
    return [path for path in places if path.is_file()]


def studies(checkout: Path) -> list[str]:
    """Experiments that tables are made of: their own README has marks of theirs, or they have tables already."""
    with_marks = {
        path.parent.name
        for path in checkout.glob("experiments/*/README.md")
        if path.parent.name in {mark[1] for mark in MARK.finditer(path.read_text(encoding="utf-8"))}
    }
    return sorted(with_marks | {path.parent.name for path in checkout.glob("experiments/*/tables.md")})


def filled(path: Path, experiment: str, tables: Mapping[str, str]) -> str:
    """The file's text with this experiment's marks filled; those of others stay.

    Raises:
        ValueError: a mark without end, or one that names no table.
    """
    text, done, parts = path.read_text(encoding="utf-8"), 0, []
    for mark in MARK.finditer(text):
        place, name = f"{mark[1]}/{mark[2]}", mark[2]
        end = text.find(END, mark.end())
        following = MARK.search(text, mark.end())
        if end < 0 or (following and following.start() < end):
            raise ValueError(f"{path}: <!-- {place} --> has no {END}")
        if mark[1] != experiment:
            continue
        if name not in tables:
            raise ValueError(
                f"{path}: the results give no table {place} (gains need the base: docs/report.md), "
                f"but {', '.join(tables)}"
            )
        parts += [text[done : mark.end()], tables[name], "\n"]
        done = end
    return "".join([*parts, text[done:]])
