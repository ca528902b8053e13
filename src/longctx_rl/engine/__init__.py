"""Engines: how gradients are accumulated, reduced, clipped and applied, and where weights live.

``local`` is plain torch in one process, the reference; ``zero3`` is DeepSpeed ZeRO-3 on any number of ranks. Both do
the same arithmetic: the gradient of a step is the *sum* of all losses over micro-batches and ranks, so every factor,
the global denominator included, is inside the loss. Order of use::

    distributed.init(config)
    with engine.loading(config):
        policy = ...                       # from_pretrained; with several ranks parameters are sharded from here on
    trainer = engine.build(config, policy, total_steps)
    teacher = trainer.freeze(teacher_module)
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from longctx_rl.config.schema import Config
from longctx_rl.engine.optimizer import TrainingDiverged as TrainingDiverged


@dataclass(frozen=True)
class StepOutcome:
    """What one optimizer step did."""

    grad_norm: float
    """L2 norm of the whole gradient before clipping; infinity if the step was skipped."""
    skipped: bool
    """The gradient was not finite: weights and optimizer state are as before."""
    lr: float
    """Learning rate of this step."""


class Engine(Protocol):
    """A policy in training. Every method is called by all ranks, in the same order."""

    device: torch.device
    synced_gpus: bool
    """``generate`` must keep all ranks in step, because every forward pass gathers weights from the others."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The policy's forward pass, with or without gradient."""

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradient of this rank's share of the global sum.

        All ranks make the same number of calls per step; ``last`` marks the one before ``step`` or ``gradient``. A
        forward pass without gradient may come between two calls, but not between a loss's own forward and backward.
        """

    def gradient(self) -> Tensor:
        """A copy of this rank's part of the gradient so far, flat in float32; together the parts are the whole.

        Call it after a backward with ``last``. More calls of ``backward`` then add to the same step.
        """

    def step(self, spent: float = 0.0) -> StepOutcome:
        """Clip to optim.max_grad_norm, update, clear the gradient and advance the schedule.

        ``spent`` is the share of a budget other than steps that is used up; the schedule may not lag behind it.
        A gradient that is not finite skips the update. Raises TrainingDiverged at the optim.max_skipped-th in a row.
        """

    def freeze(self, module: nn.Module) -> nn.Module:
        """A frozen scorer (teacher, reference) on this engine's device. Use what is returned, under ``no_grad``.

        What was loaded whole stays whole, and gathers nothing; what was loaded in shards stays sharded.
        """

    def full_weights(self) -> AbstractContextManager[nn.Module]:
        """The policy module for sampling and evaluation, with whole weights unless rollout.gather_weights is off.

        Call ``module.model.generate`` inside, with ``synced_gpus``; do not train inside.
        """

    def full_parameter(self, parameter: Tensor) -> Tensor:
        """The detached whole value, in model.dtype, of a parameter of the policy or of a frozen module.

        A copy, unless it is of a frozen module that is whole.
        """

    def save(self, directory: Path) -> None:
        """Write weights, optimizer state and progress into an existing directory. Raises OSError on all ranks."""

    def load(self, directory: Path) -> None:
        """Continue from what ``save`` wrote, on any engine and any number of ranks. Raises ValueError on all ranks."""

    def export(self, directory: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write a folder that AutoModelForCausalLM.from_pretrained loads, in model.dtype. Replaces an earlier one.

        Raises ValueError on all ranks if it cannot be written.
        """


def loading(config: Config) -> AbstractContextManager[None]:
    """Entered around from_pretrained of what shall be sharded. With ZeRO-3 on several ranks each keeps only its shard.

    A parameter is then an empty placeholder: its shape is ``parameter.ds_shape``, its value ``Engine.full_parameter``.
    """
    if config.engine.name == "zero3":
        from longctx_rl.engine import zero3

        return zero3.loading(config)
    return nullcontext()


def build(config: Config, module: nn.Module, total_steps: int | None) -> Engine:
    """The engine that config.engine names, around a policy module whose ``model`` is the causal language model.

    ``total_steps`` is the length of the cosine schedule; None: other budgets end it. Call ``distributed.init`` first.
    """
    if config.engine.name == "zero3":
        from longctx_rl.engine.zero3 import Zero3Engine

        return Zero3Engine(config, module, total_steps)
    from longctx_rl.engine.local import LocalEngine

    return LocalEngine(config, module, total_steps)
