"""Engines: how gradients are accumulated, reduced, clipped and applied, and where weights live.

``local`` is plain torch in one process, the reference; ``zero3`` is DeepSpeed ZeRO-3 on any number of ranks. Both
compute the same: the gradient of a step is that of the *sum* of all losses over micro-batches and ranks, so every
factor, including the global denominator, is part of the loss. This file is the contract of an engine; ``startup``
chooses one.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class StepOutcome:
    """The result of one optimizer step."""

    grad_norm: float
    """Global L2 norm of the gradient before clipping; infinity if the step was skipped."""
    skipped: bool
    """True if the gradient was not finite: weights and optimizer state are unchanged."""
    lr: float
    """Learning rate of this step."""


class Engine(Protocol):
    """A policy under training. All ranks call every method, in the same order."""

    device: torch.device
    dtype: torch.dtype
    """Compute dtype of the weights, and of what ``export`` writes."""

    @property
    def updates(self) -> int:
        """Number of updates of the weights since training began, those before a resume included."""

    synced_gpus: bool
    """Whether ``generate`` must keep all ranks in step, because every forward pass gathers weights from all of them."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the policy's forward pass, with or without gradient."""

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Accumulate the gradient of this rank's share of the global loss.

        All ranks make the same number of calls per step; ``last`` marks the call before ``step`` or ``gradient``. A
        forward pass without gradient is allowed between two calls, but not between the forward and the backward pass of
        one loss.
        """

    def gradient(self) -> Tensor:
        """Return a copy of this rank's part of the accumulated gradient, flat and in float32.

        The parts of all ranks make up the full gradient. Call it after a ``backward`` with ``last``. Further
        calls of ``backward`` still add to the same step.
        """

    def step(self, spent: float = 0.0) -> StepOutcome:
        """Clip to optim.max_grad_norm, update, zero the gradient and advance the learning-rate schedule.

        ``spent`` is the used share of a budget other than steps; the schedule does not lag behind it. The update is
        skipped if the gradient is not finite. Raises TrainingDiverged at the optim.max_skipped-th such step in a row.
        """

    def freeze(self, module: nn.Module) -> nn.Module:
        """Return a frozen scorer (teacher, reference) on this engine's device, to be used under ``no_grad``.

        A module that was loaded replicated stays replicated and gathers nothing; one that was loaded sharded stays
        sharded.
        """

    def full_weights(self, frozen: nn.Module | None = None) -> AbstractContextManager[nn.Module]:
        """Yield the policy module, or a frozen scorer that ``freeze`` returned, for sampling and evaluation.

        The policy has full weights unless rollout.gather_weights is off; a frozen scorer stays as it was loaded. Call
        ``module.model.generate`` inside, with ``synced_gpus``, also for a frozen scorer on several ranks; do not train
        inside.
        """

    def full_parameter(self, parameter: Tensor) -> Tensor:
        """Return the full value, detached and in model.dtype, of a parameter of the policy or of a frozen module.

        The result is a copy, unless the parameter belongs to a replicated frozen module.
        """

    def write_average(self, module: nn.Module) -> None:
        """Copy the exponential moving average of the policy's weights into a frozen module of the same architecture.

        The average is in float32, sharded and saved like Adam's moments; only configurations with
        ``Config.average_half_life`` have one.
        """

    def save(self, directory: Path) -> None:
        """Write weights, optimizer state and progress into an existing directory. Raises OSError on all ranks."""

    def load(self, directory: Path) -> None:
        """Continue from what ``save`` wrote, with any engine and number of ranks. Raises ValueError on all ranks."""

    def export(self, directory: Path, tokenizer: PreTrainedTokenizerBase, *, untied: bool = False) -> None:
        """Write a folder for AutoModelForCausalLM.from_pretrained, in model.dtype. Replaces an earlier export.

        ``untied``: write a head that is tied to the embedding as a weight of its own.

        Raises ValueError on all ranks if it cannot be written.
        """
