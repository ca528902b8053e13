"""An item of a suite: an example, and the row of the tables in which it counts."""

from dataclasses import dataclass

from longctx_rl.types import Example

WITHOUT_LENGTH = ("original", "expanded", "closed", "short", "python")
"""Labels whose prompts are not fitted to a length; their records have length 0."""


@dataclass(frozen=True, slots=True)
class Item:
    """An example, and the row of the tables in which it counts."""

    label: str
    example: Example
    floor: float | None = None
    """Score of always giving the most frequent answer; None: not multiple choice."""

    @property
    def has_length(self) -> bool:
        """Whether the prompt is fitted to a length."""
        return self.label not in WITHOUT_LENGTH

    @property
    def depth(self) -> float | None:
        """Position of the first piece of evidence as a share of the document; None: no evidence."""
        return self.example.evidence[0].depth if self.example.evidence else None
