"""Which task a LongBlocks row counts as. The Hub's rows name none, so a rule says; its inputs are columns of the store.

In this order, the first that applies:

1. the row's own ``task`` column, as rows of our own generators and builders have it;
2. ``short``: the row has no document;
3. ``code``: the row comes from Stack-Edu, whose ``language`` is a programming language;
4. ``longform``: the reference answer is longer than ``LONGFORM_TOKENS``;
5. ``grounding``: the reference answer stands in the document word for word, so that it can be looked up;
6. ``multihop``: a short answer that has to be worked out.
"""

import re

CODE_SOURCE = "Stack-Edu"
LONGFORM_TOKENS = 64
TASKS = ("multihop", "grounding", "longform", "code", "short")


def task_of(named: str, source: str, *, document_tokens: int, answer_tokens: int, verbatim: bool) -> str:
    """The task of a row. ``verbatim``: ``place_of`` finds the answer."""
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
    """Where the answer first stands in the document: capitals and white space aside, not within a longer word."""
    words = answer.strip().rstrip(".").split()
    if not words:
        return None
    for found in re.finditer(r"\s+".join(map(re.escape, words)), document, re.IGNORECASE):
        start, end = found.span()
        if not (
            _one_word(document[start - 1 : start], words[0][0]) or _one_word(words[-1][-1], document[end : end + 1])
        ):
            return start, end
    return None


def _one_word(left: str, right: str) -> bool:
    """Two neighbouring characters are of one word. Scripts without spaces have no such neighbours."""
    return left.isalnum() and right.isalnum() and left < "\u2e80" and right < "\u2e80"
