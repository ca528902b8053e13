"""DeepSpeed ZeRO-3 on CPU (gloo) and GPU (NCCL): weights, gradients and optimizer state sharded over the ranks.

The only module that imports deepspeed. Beyond its documented interface, the engine relies on
``fp32_partitioned_groups_flat``, the float32 shards that AdamW updates, and on ``overflow``, which is set if the
gradient norm was not finite and the update was skipped.
"""

import importlib.util
import logging
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from longctx_rl.config.schema import SMALL_MODEL_NUMEL, Config
from longctx_rl.engine import StepOutcome, distributed, export, saved_state
from longctx_rl.engine.local import cast_parameters
from longctx_rl.engine.optimizer import (
    AVERAGE,
    UpdateCounter,
    adamw,
    full_shape,
    learning_rate,
    reset_state,
    set_learning_rate,
    update_averages,
)

RESIDENT_NUMEL = 100_000
"""In larger models, parameters up to this size (mostly norms) are replicated."""
LINEAR = nn.functional.linear
"""torch's version. DeepSpeed's saves memory in training but inspects a signature in every call: slow for decoding."""
BUCKET_NUMEL = 50_000_000
"""Gradient elements reduced together, and weight elements prefetched."""


def check_requirements() -> None:
    """Raise ValueError if a package that ZeRO-3 needs is missing."""
    for package in ("deepspeed", "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise ValueError(f"engine=zero3 needs {package}: pip install {package}, or set engine=local")


def start(device: torch.device) -> None:
    """Make DeepSpeed use the existing process group.

    DeepSpeed would compile a shared-memory collective here. That needs a C++ compiler and up to two minutes, and only
    tensor-parallel inference uses it, so no compiled operators are offered to DeepSpeed. Its log shows warnings only.
    """
    os.environ["DS_ACCELERATOR"] = device.type
    import deepspeed

    deepspeed.ops.__compatible_ops__ = {}
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed\.c10d_logger")
    deepspeed.init_distributed(verbose=False)


def deepspeed_config(config: Config, numel: int) -> dict[str, Any]:
    """Return DeepSpeed's settings for a policy of ``numel`` parameters.

    One micro-batch per accumulation boundary, so that DeepSpeed does not rescale losses; the engine sets the boundary.
    Gradients are reduced and accumulated in float32, so that the result does not depend on the number of ranks.
    """
    zero: dict[str, Any] = {
        "stage": 3,
        "reduce_bucket_size": min(numel, BUCKET_NUMEL),
        "stage3_prefetch_bucket_size": BUCKET_NUMEL,
        "stage3_param_persistence_threshold": RESIDENT_NUMEL,
    }
    if numel <= SMALL_MODEL_NUMEL:
        zero["stage3_param_persistence_threshold"] = numel
        zero["memory_efficient_linear"] = False  # replaces torch's linear in the whole process; only useful for shards
    if config.engine.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.optim.max_grad_norm,
        "bf16": {"enabled": config.model.dtype == "bfloat16"},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "zero_force_ds_cpu_optimizer": False,  # torch's fused AdamW also steps offloaded shards
        "zero_optimization": zero,
    }


@contextmanager
def loading(config: Config) -> Iterator[None]:
    """In this context, transformers shards models over the ranks as it loads them. One rank has nothing to shard."""
    if distributed.world_size() == 1:
        yield
        return
    from transformers.integrations import deepspeed as integration

    alive = integration.HfDeepSpeedConfig(deepspeed_config(config, BUCKET_NUMEL))
    try:
        yield
    finally:
        del alive
        integration.unset_hf_deepspeed_config()


class Zero3Engine:
    """A policy under ZeRO-3. See ``Engine``."""

    def __init__(self, config: Config, module: nn.Module, total_steps: int | None) -> None:
        self.device = distributed.device(config)
        self.synced_gpus = distributed.world_size() > 1 and not config.rollout.gather_weights
        self._config = config
        self._optim = config.optim
        self._total_steps = total_steps
        self.dtype = getattr(torch, config.model.dtype)
        self._module = _cast_unless_sharded(module, self.dtype)
        settings = deepspeed_config(config, _numel(module))
        self._engine = _initialize(self._module, settings, adamw(module, config.optim))
        self._adam = self._engine.optimizer.optimizer
        self._half_life = config.average_half_life
        for shard in self._engine.optimizer.fp32_partitioned_groups_flat:
            reset_state(self._adam, shard, updates=0, averaged=self._half_life is not None)
        self._progress = UpdateCounter()

    @property
    def updates(self) -> int:
        return self._progress.updates

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._engine(*args, **kwargs)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        self._engine.set_gradient_accumulation_boundary(last)
        # DeepSpeed averages over ranks; the contract of an engine is the sum.
        self._engine.backward(loss * distributed.world_size(), scale_wrt_gas=False)

    def gradient(self) -> Tensor:
        from deepspeed.utils import safe_get_local_grad

        assert self._engine.is_gradient_accumulation_boundary(), "the backward before this needs last=True"
        parts = [safe_get_local_grad(parameter).flatten() for parameter in self._module.parameters()]
        # This is DeepSpeed's average over ranks of losses that ``backward`` multiplied by their number.
        return torch.cat(parts).float()

    def step(self, spent: float = 0.0) -> StepOutcome:
        assert self._engine.is_gradient_accumulation_boundary(), "the last backward of a step needs last=True"
        lr = learning_rate(self._optim, self._progress.step, self._total_steps, spent)
        set_learning_rate(self._adam, lr)
        self._engine.step()
        skipped = bool(self._engine.optimizer.overflow)
        norm = math.inf if skipped else float(self._engine.get_global_grad_norm())
        if self._half_life is not None and not skipped:
            update_averages(self._adam, self._half_life)
        self._progress.record(skipped, self._optim.max_skipped)
        return StepOutcome(grad_norm=norm, skipped=skipped, lr=lr)

    def freeze(self, module: nn.Module) -> nn.Module:
        module = module.requires_grad_(False).eval()
        if not _sharded(module):
            return cast_parameters(module, self.dtype).to(self.device)
        settings = deepspeed_config(self._config, _numel(module))
        settings["zero_optimization"].pop("offload_optimizer", None)
        engine: nn.Module = _initialize(module, settings, None)
        engine.eval()
        return engine

    @contextmanager
    def full_weights(self, frozen: nn.Module | None = None) -> Iterator[nn.Module]:
        from deepspeed.runtime.zero import unwrap_model_for_generation

        engine: Any = self._engine if frozen is None else frozen
        sharded = hasattr(engine, "module")  # a replicated frozen module is not wrapped
        replaced = nn.functional.linear
        nn.functional.linear = LINEAR
        try:
            gathers = frozen is None and self._config.rollout.gather_weights
            with unwrap_model_for_generation(engine) if gathers else nullcontext():
                yield engine.module if sharded else engine
        finally:
            nn.functional.linear = replaced

    def full_parameter(self, parameter: Tensor) -> Tensor:
        with _gathered(parameter):
            return parameter.detach().to(self.dtype, copy=hasattr(parameter, "ds_id"))

    def write_average(self, module: nn.Module) -> None:
        from deepspeed.utils import safe_get_full_optimizer_state

        for parameter, frozen in zip(self._module.parameters(), module.parameters(), strict=True):
            average = safe_get_full_optimizer_state(parameter, AVERAGE)
            with _gathered(frozen, modifier_rank=0) if hasattr(frozen, "ds_id") else nullcontext():
                frozen.detach().copy_(average)

    def save(self, directory: Path) -> None:
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        def read(parameter: Tensor, key: str) -> Tensor:
            whole: Tensor = (
                safe_get_full_fp32_param(parameter)
                if key == saved_state.WEIGHTS
                else safe_get_full_optimizer_state(parameter, key)
            )
            return whole

        saved_state.save(directory, self._module, self._progress, read, averaged=self._half_life is not None)

    def load(self, directory: Path) -> None:
        from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

        def write(parameter: Tensor, key: str, value: Tensor) -> None:
            shard = _own_shard(parameter, value)
            if key != saved_state.WEIGHTS:
                safe_set_local_optimizer_state(parameter, shard, key)
                return
            safe_set_local_fp32_param(parameter, shard)
            with _gathered(parameter, modifier_rank=0):  # the weights that forward passes use
                parameter.detach().copy_(value)

        averaged = self._half_life is not None
        self._progress = saved_state.load(directory, self._module, write, averaged=averaged)
        for shard in self._engine.optimizer.fp32_partitioned_groups_flat:
            self._adam.state[shard]["step"].fill_(self._progress.updates)

    def export(self, directory: Path, tokenizer: PreTrainedTokenizerBase, *, untied: bool = False) -> None:
        weights = ((name, self.full_parameter(p)) for name, p in export.parameters(self._module))
        export.write(directory, self._module, weights, self.dtype, tokenizer, untied=untied)


def _initialize(module: nn.Module, settings: dict[str, Any], optimizer: torch.optim.Optimizer | None) -> Any:
    import deepspeed
    from deepspeed.utils import set_z3_leaf_modules

    # Gather each decoder layer as one unit: hooks on its submodules double the step time of small models.
    layers = sorted(getattr(module.model, "_no_split_modules", None) or ())
    set_z3_leaf_modules(module, layers, raise_if_not_found=False)
    return deepspeed.initialize(model=module, config=settings, optimizer=optimizer)[0]


def _numel(module: nn.Module) -> int:
    return sum(full_shape(parameter).numel() for parameter in module.parameters())


def _cast_unless_sharded(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Cast to the compute dtype, from which DeepSpeed makes float32 masters. Sharded parameters already have it."""
    return module if _sharded(module) else cast_parameters(module, dtype)


def _sharded(module: nn.Module) -> bool:
    return any(hasattr(parameter, "ds_id") for parameter in module.parameters())


def _gathered(parameter: Tensor, modifier_rank: int | None = None) -> AbstractContextManager[None]:
    from deepspeed.runtime.zero import GatheredParameters

    context: AbstractContextManager[None] = GatheredParameters([parameter], modifier_rank=modifier_rank)
    return context


def _own_shard(parameter: Tensor, value: Tensor) -> Tensor:
    """Return this rank's slice of a full value: equal slices of the flat value, zero-padded at the end."""
    size: int = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
    padded = value.new_zeros(size * distributed.world_size())
    padded[: value.numel()] = value.flatten()
    return padded[distributed.rank() * size :][:size]
