"""Building blocks of HTML: all text is escaped, tables have headings, and figures have descriptions."""

import html
import re
from collections.abc import Mapping, Sequence

UNSEEN = re.compile("[^\t\n -~\xa0-\u2027\u202f-\u2065\u206a-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that HTML forbids, and marks that change the direction of text."""


def text(value: str) -> str:
    """Escape text for content or for an attribute in double quotes. Forbidden characters become U+FFFD."""
    return html.escape(UNSEEN.sub("\ufffd", value))


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that scrolls horizontally if it is wider than the page. The first cell of a row is its heading."""
    columns = "".join(f'<th scope="col">{text(heading)}</th>' for heading in head)
    body = "".join(
        f'<tr><th scope="row">{text(first)}</th>{"".join(f"<td>{text(cell)}</td>" for cell in others)}</tr>\n'
        for first, *others in rows
    )
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{text(caption)}">\n<table>\n'
        f"<caption>{text(caption)}</caption>\n<thead><tr>{columns}</tr></thead>\n<tbody>\n{body}</tbody>\n"
        "</table>\n</div>\n"
    )


def figure(title: str, svg: str, note: str = "") -> str:
    """A figure with a title above it and an optional note."""
    small = f"<small>{text(note)}</small>" if note else ""
    return f"<figure>\n<figcaption>{text(title)}{small}</figcaption>\n{svg}\n</figure>\n"


def figures(title: str, note: str, drawn: Sequence[str]) -> str:
    """Figures side by side under a heading; an empty string if there are none."""
    if not drawn:
        return ""
    return f'<h3>{text(title)}</h3>\n<p class="soft">{text(note)}</p>\n<div class="figures">\n{"".join(drawn)}</div>\n'


def definitions(entries: Mapping[str, str], css_class: str) -> str:
    """A definition list of names and values."""
    pairs = "".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in entries.items())
    return f'<dl class="{css_class}">{pairs}</dl>\n'


def quotations(entries: Mapping[str, str]) -> str:
    """A definition list of names and preformatted texts; empty texts are dropped."""
    pairs = "".join(
        f"<dt>{text(name)}</dt><dd><pre>{text(value)}</pre></dd>\n" for name, value in entries.items() if value
    )
    return f"<dl>\n{pairs}</dl>\n"
