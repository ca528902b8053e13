"""Credit for reasoning steps that restate the document's evidence."""

import re
from collections import Counter

from longctx_rl.types import Example

NOT_STATED = "is not stated"


def evidence_f1(text: str, example: Example) -> float:
    """F1 between the statements before the final line and the example's evidence, each counted once.

    A statement is what stands between full stops or line breaks; one that says that something is not stated asserts
    nothing and is left out. With nothing to restate, a text that asserts nothing scores 1.
    """
    reasoning = text.strip().rpartition("\n")[0]
    pieces = (" ".join(piece.split()) for piece in re.split(r"\.\s|\.$|\n", reasoning))
    stated = Counter(piece for piece in pieces if piece and not piece.endswith(NOT_STATED))
    evidence = Counter(" ".join(item.statement.split()) for item in example.evidence)
    total = stated.total() + evidence.total()
    if total == 0:
        return 1.0
    return 2 * (stated & evidence).total() / total
