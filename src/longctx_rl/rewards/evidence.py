"""Credit for reasoning steps that restate the document's evidence."""

import re
from collections import Counter

from longctx_rl.types import Example


def evidence_score(text: str, example: Example, beta: float = 1.0) -> float:
    """F-beta between the statements before the final line and the example's evidence, each counted once.

    Beta above 1 counts what was left out more than what was said too much (LongRLVR, arXiv 2603.02146, has 2).

    A statement is what stands between full stops or line breaks. Where the document does not answer, the one thing to
    say is that what was asked for is not stated.
    """
    reasoning = text.strip().rpartition("\n")[0]
    stated = Counter(_statements(reasoning))
    evidence = Counter(" ".join(item.statement.split()) for item in example.evidence)
    if not evidence:
        evidence = Counter(_statements(example.target.rpartition("\n")[0]))
    hits, square = (stated & evidence).total(), beta * beta
    total = square * evidence.total() + stated.total()
    return (1 + square) * hits / total if total else 0.0


def _statements(text: str) -> list[str]:
    return [" ".join(piece.split()) for piece in re.split(r"\.\s|\.$|\n", text) if piece.strip()]
