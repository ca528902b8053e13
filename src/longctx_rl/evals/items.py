"""An item of a suite: what is asked, and where it counts."""

from dataclasses import dataclass

from longctx_rl.types import Example

WITHOUT_LENGTH = ("original", "expanded", "closed", "short", "python")
"""Labels whose prompts have the length that they have; recorded as length 0."""


@dataclass(frozen=True, slots=True)
class Item:
    """An example, and the row of the tables that it counts in."""

    label: str
    example: Example
    floor: float | None = None
    """Score of whoever always gives the most frequent answer; None: there is no such answer."""

    @property
    def has_length(self) -> bool:
        return self.label not in WITHOUT_LENGTH

    @property
    def depth(self) -> float | None:
        """Where the first piece of evidence lies, as a share of the document."""
        return self.example.evidence[0].depth if self.example.evidence else None
