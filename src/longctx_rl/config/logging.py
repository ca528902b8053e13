"""The part of the configuration that says what is recorded, and where it is mirrored. See config.py."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggingConfig:
    name: str
    mode: Literal["offline", "online", "disabled"]
    """Of the wandb mirror; files on disk are always written."""
    project: str
    entity: str | None
    tags: tuple[str, ...]
    rollouts_every: int
    """Steps between saved rollouts; 0: none."""
    rollouts_kept: int  # groups saved each time
    artifacts: bool = False
    """Upload the trained model to wandb, too; results always are."""
