"""Truncation of documents that exceed the context: both ends are kept and, optionally, the part with the answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from longctx_rl.data.tasks import place_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GAP = "\n[...]\n"
"""Marks a gap in the text."""
MIDDLE_SHARE = 0.25
"""Share of the kept tokens that surround the answer, if it would otherwise be cut."""


def cut(document: str, tokens: int, tokenizer: PreTrainedTokenizerBase, *, answer: str | None = None) -> str:
    """Return at most ``tokens`` tokens of the document: its beginning and its end.

    Args:
        answer: if the document contains it verbatim, its surroundings are kept too.

    Raises:
        ValueError: ``tokens`` is not positive.
    """
    if tokens <= 0:
        raise ValueError("data.longblocks.max_tokens leaves no room for a document beside its question: set it higher")
    budget, kept = tokens, document
    while True:
        kept = _once(document, budget, tokenizer, answer)
        excess = _count(kept, tokenizer) - tokens  # a truncated text can tokenise differently at its seams
        if excess <= 0:
            return kept
        budget -= excess
        if budget <= 0:
            return ""


def _once(document: str, tokens: int, tokenizer: PreTrainedTokenizerBase, answer: str | None) -> str:
    offsets = _offsets(document, tokenizer)
    if len(offsets) <= tokens:
        return document
    pieces = [(0, tokens - tokens // 2), (len(offsets) - tokens // 2, len(offsets))]
    place = place_of(document, answer) if answer else None
    if place is not None:
        first = next(i for i, (_, end) in enumerate(offsets) if end > place[0])
        last = next((i for i, (start, _) in enumerate(offsets) if start >= place[1]), len(offsets))
        if last > pieces[0][1] and first < pieces[1][0]:
            middle = max(int(tokens * MIDDLE_SHARE), min(last - first, tokens))
            side = (tokens - middle) // 2
            start = min(max(side, first - (middle - (last - first)) // 2), len(offsets) - side - middle)
            pieces = [(0, side), (start, start + middle), (len(offsets) - side, len(offsets))]
    texts = [document[offsets[start][0] : offsets[end - 1][1]] for start, end in pieces if end > start]
    return GAP.join(texts)


def _offsets(text: str, tokenizer: PreTrainedTokenizerBase) -> Sequence[tuple[int, int]]:
    encoding = tokenizer(text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)
    offsets: Sequence[tuple[int, int]] = encoding["offset_mapping"]
    return offsets


def _count(text: str, tokenizer: PreTrainedTokenizerBase) -> int:
    return len(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])
