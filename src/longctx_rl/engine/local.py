"""The reference engine: plain torch, one process."""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from longctx_rl.config.schema import Config
from longctx_rl.engine import StepOutcome, distributed, export, saved_state
from longctx_rl.engine.optimizer import (
    AVERAGE,
    UpdateCounter,
    adamw,
    learning_rate,
    reset_state,
    set_learning_rate,
    update_averages,
)


class LocalEngine:
    """Float32 weights and AdamW. With model.dtype=bfloat16, forward passes run under autocast. See ``Engine``."""

    synced_gpus = False

    def __init__(self, config: Config, module: nn.Module, total_steps: int | None) -> None:
        self.device = distributed.device(config)
        self._optim = config.optim
        self.dtype = getattr(torch, config.model.dtype)
        self._total_steps = total_steps
        self._module = cast_parameters(module, torch.float32).to(self.device)
        self._optimizer = adamw(self._module, config.optim)
        self._half_life = config.average_half_life
        for parameter in self._module.parameters():
            reset_state(self._optimizer, parameter, updates=0, averaged=self._half_life is not None)
        self._progress = UpdateCounter()

    @property
    def updates(self) -> int:
        return self._progress.updates

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with self._precision():
            return self._module(*args, **kwargs)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        del last  # no reduction over ranks, so the boundary does not matter
        loss.backward()  # type: ignore[no-untyped-call]

    def gradient(self) -> Tensor:
        parameters = self._module.parameters()
        return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])

    def step(self, spent: float = 0.0) -> StepOutcome:
        lr = learning_rate(self._optim, self._progress.step, self._total_steps, spent)
        norm = float(nn.utils.clip_grad_norm_(self._module.parameters(), self._optim.max_grad_norm))
        skipped = not math.isfinite(norm)
        if not skipped:
            set_learning_rate(self._optimizer, lr)
            self._optimizer.step()
            if self._half_life is not None:
                update_averages(self._optimizer, self._half_life)
        self._optimizer.zero_grad()
        self._progress.record(skipped, self._optim.max_skipped)
        return StepOutcome(grad_norm=math.inf if skipped else norm, skipped=skipped, lr=lr)

    def freeze(self, module: nn.Module) -> nn.Module:
        return cast_parameters(module, self.dtype).to(self.device).requires_grad_(False).eval()

    @contextmanager
    def full_weights(self, frozen: nn.Module | None = None) -> Iterator[nn.Module]:
        with self._precision():
            yield self._module if frozen is None else frozen

    def full_parameter(self, parameter: Tensor) -> Tensor:
        return parameter.detach().to(self.dtype, copy=parameter.requires_grad)

    def write_average(self, module: nn.Module) -> None:
        for parameter, frozen in zip(self._module.parameters(), module.parameters(), strict=True):
            frozen.detach().copy_(self._stored(parameter, AVERAGE))

    def save(self, directory: Path) -> None:
        averaged = self._half_life is not None
        saved_state.save(directory, self._module, self._progress, self._stored, averaged=averaged)

    def load(self, directory: Path) -> None:
        def write(parameter: Tensor, key: str, value: Tensor) -> None:
            self._stored(parameter, key).copy_(value)

        averaged = self._half_life is not None
        self._progress = saved_state.load(directory, self._module, write, averaged=averaged)
        for parameter in self._module.parameters():
            self._optimizer.state[parameter]["step"].fill_(self._progress.updates)

    def export(self, directory: Path, tokenizer: PreTrainedTokenizerBase, *, untied: bool = False) -> None:
        weights = ((name, self.full_parameter(p)) for name, p in export.parameters(self._module))
        export.write(directory, self._module, weights, self.dtype, tokenizer, untied=untied)

    def _stored(self, parameter: Tensor, key: str) -> Tensor:
        tensor: Tensor = parameter.detach() if key == saved_state.WEIGHTS else self._optimizer.state[parameter][key]
        return tensor

    def _precision(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16)


def cast_parameters(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Convert parameters in place. Buffers are left alone: rotary frequencies need float32."""
    for parameter in module.parameters():
        parameter.data = parameter.data.to(dtype)
    return module
