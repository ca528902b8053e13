"""The learning rate as a pure function of the step."""

import math

from longctx_rl.config.schema import OptimConfig


def learning_rate(optim: OptimConfig, step: int, total_steps: int | None, spent: float = 0.0) -> float:
    """Learning rate of optimizer step ``step`` (0 is the first; skipped steps count).

    Linear warm-up over ``optim.warmup_steps``, which reaches ``optim.lr`` with its last step. Then ``constant``, or
    ``cosine``: half a cosine that reaches ``optim.lr * optim.min_lr_ratio`` at ``total_steps`` and stays there, or once
    ``spent``, the share of another budget that is used up, reaches 1: whichever is further along. Without
    ``total_steps``, ``spent`` alone counts.
    """
    assert step >= 0
    if step < optim.warmup_steps:
        return optim.lr * (step + 1) / optim.warmup_steps
    if optim.schedule == "constant":
        return optim.lr
    progress = spent
    if total_steps is not None:
        progress = max(spent, (step - optim.warmup_steps) / max(1, total_steps - optim.warmup_steps))
    progress = min(1.0, progress)
    share = optim.min_lr_ratio + (1.0 - optim.min_lr_ratio) * 0.5 * (1.0 + math.cos(math.pi * progress))
    return optim.lr * share
