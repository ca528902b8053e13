"""AdamW and the learning-rate schedule of both engines, and the counter of skipped steps."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from longctx_rl.config.schema import OptimConfig

MOMENTS = ("exp_avg", "exp_avg_sq")
"""Adam's two running averages, by their names in torch's optimizer state."""


AVERAGE = "average"
"""Key of the exponential moving average of a weight, beside Adam's state and sharded like it."""


class TrainingDiverged(RuntimeError):
    """Too many gradients in a row were not finite."""


@dataclass
class UpdateCounter:
    """Counts optimizer steps. Both engines use it, and checkpoints store it."""

    step: int = 0
    """Calls of ``step()``, including skipped ones: the position in the learning-rate schedule."""
    updates: int = 0
    """Applied updates: Adam's step count for bias correction."""
    skipped_in_row: int = 0

    def record(self, skipped: bool, max_skipped: int) -> None:
        """Count one step. Raises TrainingDiverged at the ``max_skipped``-th skipped step in a row."""
        self.step += 1
        if not skipped:
            self.updates += 1
            self.skipped_in_row = 0
            return
        self.skipped_in_row += 1
        if self.skipped_in_row >= max_skipped:
            raise TrainingDiverged(
                f"the gradient was infinite or not a number in {self.skipped_in_row} steps in a row, up to step "
                f"{self.step}: start another run (experiment_name=<new name>) with a lower optim.lr or "
                "optim.max_grad_norm, or with model.dtype=float32"
            )


def full_shape(parameter: Tensor) -> torch.Size:
    """Return the full shape of a parameter, even where ZeRO-3 left an empty placeholder."""
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return shape


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return groups with weight decay on matrices, none on vectors (norms, biases). A tied weight appears once."""
    parameters = list(module.parameters())
    assert all(parameter.requires_grad for parameter in parameters), "the policy trains all of its parameters"
    matrices = [parameter for parameter in parameters if len(full_shape(parameter)) > 1]
    vectors = [parameter for parameter in parameters if len(full_shape(parameter)) <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def adamw(module: nn.Module, optim: OptimConfig) -> torch.optim.AdamW:
    """Return torch's fused AdamW, which runs on CPU and GPU."""
    first, second = optim.betas
    return torch.optim.AdamW(
        parameter_groups(module, optim.weight_decay), lr=optim.lr, betas=(first, second), eps=optim.eps, fused=True
    )


def reset_state(optimizer: torch.optim.Optimizer, parameter: Tensor, updates: int, *, averaged: bool = False) -> None:
    """Give ``parameter`` zero moments and the step count ``updates``, in the format that fused AdamW creates itself.

    ``averaged``: also the average that ``update_averages`` maintains, which starts at the parameter's value.
    """
    optimizer.state[parameter] = {
        "step": torch.tensor(float(updates), device=parameter.device),
        **{moment: torch.zeros_like(parameter, requires_grad=False) for moment in MOMENTS},
        **({AVERAGE: parameter.detach().clone()} if averaged else {}),
    }


@torch.no_grad()
def update_averages(optimizer: torch.optim.Optimizer, half_life: float) -> None:
    """Move each average towards its parameter: the distance to a constant one halves in ``half_life`` updates."""
    share = 1.0 - 0.5 ** (1.0 / half_life)
    for parameter, state in optimizer.state.items():
        state[AVERAGE].lerp_(parameter, share)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def learning_rate(optim: OptimConfig, step: int, total_steps: int | None, spent: float = 0.0) -> float:
    """Return the learning rate of optimizer step ``step``, a pure function of its arguments.

    Linear warm-up over ``optim.warmup_steps`` reaches ``optim.lr`` at its last step. After that the schedule is
    ``constant`` or ``cosine``: half a cosine period down to ``optim.lr * optim.min_lr_ratio``, where it stays.

    Args:
        step: counted from 0, including skipped steps.
        total_steps: the step at which the cosine ends; None: only ``spent`` counts.
        spent: used share of another budget. The cosine follows ``step`` or ``spent``, whichever is further along.
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
