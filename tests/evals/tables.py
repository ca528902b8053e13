"""Reading the plain-text tables of evaluations."""

import re


def rows(text: str) -> list[dict[str, str]]:
    """The rows of all aligned tables in a text, each as heading to cell. Columns are at least two spaces apart."""
    result: list[dict[str, str]] = []
    head: list[str] = []
    for line in text.splitlines():
        cells = re.split(" {2,}", line.strip())
        if cells[0] == "task":
            head = cells
        elif len(cells) == len(head) > 1:
            result.append(dict(zip(head, cells, strict=True)))
    return result
