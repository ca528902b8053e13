"""The part of the configuration that says what is recorded, and where it is mirrored. See config/schema.py."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggingConfig:
    """Saved rollouts and the wandb mirror; the metrics on disk are always written."""

    name: str
    mode: Literal["offline", "online", "disabled"]
    """Mode of the wandb mirror. ``offline``: `wandb sync` uploads it later. ``online``: needs `wandb login`.
    ``disabled``: no mirror."""
    project: str
    entity: str | None
    """Team or user on wandb. None: your default."""
    tags: tuple[str, ...]
    rollouts_every: int
    """Steps between saved rollouts. 0: none."""
    rollouts_kept: int
    """Number of groups saved each time."""
    gap_prompts: int = 0
    """Methods that sample and whose teacher reads a view: prompts that student and teacher answer before the first
    step. The difference of their scores is ``view/score_gap``. 0: not measured."""
    artifacts: bool = False
    """True: also upload the trained model (export/). Metrics, evaluations and the configuration are always uploaded."""
