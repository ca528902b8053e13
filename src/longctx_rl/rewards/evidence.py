"""Credit for reasoning steps that restate the document's evidence."""

import re
from collections import Counter

from longctx_rl.types import Example


def evidence_f1(text: str, example: Example) -> float:
    """F1 between the statements before the final line and the example's evidence, each counted once.

    A statement is what stands between full stops or line breaks. Where the document does not answer, the one thing to
    say is that what was asked for is not stated.
    """
    reasoning = text.strip().rpartition("\n")[0]
    stated = Counter(_statements(reasoning))
    evidence = Counter(" ".join(item.statement.split()) for item in example.evidence)
    if not evidence:
        evidence = Counter(_statements(example.target.rpartition("\n")[0]))
    total = stated.total() + evidence.total()
    return 2 * (stated & evidence).total() / total if total else 0.0


def _statements(text: str) -> list[str]:
    return [" ".join(piece.split()) for piece in re.split(r"\.\s|\.$|\n", text) if piece.strip()]
