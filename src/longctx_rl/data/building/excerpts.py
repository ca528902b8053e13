"""Passages of a document that lie far apart."""

import random
import re


def choose_passages(
    text: str, *, count: int, characters: int, minimum_distance: float, draw: random.Random
) -> list[tuple[int, str]]:
    """``count`` pieces of whole paragraphs or sentences, with where they start, in the document's order.

    Between two lies at least ``minimum_distance`` of the document, as far as it is long enough; fewer if it is not.
    """
    pieces = split(text, characters)
    gap = minimum_distance * len(text)
    order = list(range(len(pieces)))
    draw.shuffle(order)
    chosen: list[int] = []
    for index in order:
        start, piece = pieces[index]
        apart = all(
            start - (other + len(passage)) >= gap or other - (start + len(piece)) >= gap
            for other, passage in (pieces[each] for each in chosen)
        )
        if apart:
            chosen.append(index)
        if len(chosen) == count:
            break
    return [pieces[index] for index in sorted(chosen)]


def split(text: str, characters: int) -> list[tuple[int, str]]:
    """The text in pieces of about so many characters, cut at paragraphs, or sentences, or where nothing else is."""
    pieces: list[tuple[int, str]] = []
    start = 0
    while start < len(text):
        end = min(len(text), start + characters)
        if end < len(text):
            window = text[start + characters // 2 : end]
            cut = max((found.end() for found in re.finditer(r"\n\s*\n|\n", window)), default=0)
            cut = cut or max((found.end() for found in re.finditer(r"[.!?]\s|[\u3002\uff01\uff1f]", window)), default=0)
            cut = cut or window.rfind(" ") + 1
            end = start + characters // 2 + cut if cut else end
        if text[start:end].strip():
            pieces.append((start, text[start:end].strip()))
        start = end
    return pieces
