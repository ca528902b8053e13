"""The task of a LongBlocks row. Hub rows have none, so a rule assigns it from columns of the store.

The first case that applies:

1. the row's own ``task`` column, which rows of this package's generators and builders have;
2. ``short``: the row has no document;
3. ``code``: the row comes from Stack-Edu, whose ``language`` is a programming language;
4. ``longform``: the reference answer is longer than ``LONGFORM_TOKENS``;
5. ``grounding``: the document contains the reference answer verbatim, so that it can be looked up;
6. ``multihop``: the remaining short answers, which require reasoning.
"""

import re

CODE_SOURCE = "Stack-Edu"
LONGFORM_TOKENS = 64
TASKS = ("multihop", "grounding", "longform", "code", "short")


def task_of(named: str, source: str, *, document_tokens: int, answer_tokens: int, verbatim: bool) -> str:
    """Return the task of a row. ``verbatim``: ``place_of`` finds the answer."""
    if named:
        return named
    if not document_tokens:
        return "short"
    if source == CODE_SOURCE:
        return "code"
    if answer_tokens > LONGFORM_TOKENS:
        return "longform"
    return "grounding" if verbatim else "multihop"


def place_of(document: str, answer: str) -> tuple[int, int] | None:
    """Return the first span of the answer in the document, ignoring case and white space, at word boundaries."""
    words = answer.strip().rstrip(".").split()
    if not words:
        return None
    for occurrence in re.finditer(r"\s+".join(map(re.escape, words)), document, re.IGNORECASE):
        start, end = occurrence.span()
        if not (
            _one_word(document[start - 1 : start], words[0][0]) or _one_word(words[-1][-1], document[end : end + 1])
        ):
            return start, end
    return None


def _one_word(left: str, right: str) -> bool:
    """Whether two adjacent characters belong to one word. In scripts without spaces they never do."""
    return left.isalnum() and right.isalnum() and left < "\u2e80" and right < "\u2e80"
