"""Restricts the last layer's queries, output projection and MLP to the tokens whose hidden states are read.

After the last layer tokens no longer interact, and of a packed row only the completions and each prompt's last token
are read: the rest of a prompt needs only the layer's keys and values. Hooks select the inputs of these modules and
scatter their outputs back, with zeros elsewhere, so an architecture's layer code runs unchanged. A hook on the
attention module tells the others which tokens are read, because transformers recomputes a layer without the layer's
own hooks.
"""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from longctx_rl.types import GroupSpan


def is_last_layer(module: nn.Module) -> bool:
    """Return whether this attention module belongs to the last layer."""
    layer, config = module.layer_idx, module.config
    assert isinstance(layer, int) and isinstance(config, PreTrainedConfig)
    count: int = config.num_hidden_layers
    return layer == count - 1


@lru_cache(maxsize=64)
def tokens_read(spans: tuple[GroupSpan, ...]) -> tuple[slice, ...]:
    """Return the slices of a packed row that are read: each group's completions and the last token of their prompt."""
    return tuple(
        slice(max(span.completions_start - 1, span.start), span.end) for span in spans if span.end > span.start
    )


def narrow_last_layer(model: PreTrainedModel) -> None:
    """Install the hooks, once, if ``model``'s last layer has the usual modules; other models are left unchanged."""
    layers = getattr(model.base_model, "layers", None)
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        return
    attention, mlp = getattr(layers[-1], "self_attn", None), getattr(layers[-1], "mlp", None)
    parts = [getattr(attention, "q_proj", None), getattr(attention, "o_proj", None)]
    if isinstance(mlp, nn.Module) and not hasattr(mlp, "experts"):  # a router's statistics count every token
        parts.append(mlp)
    if not isinstance(attention, nn.Module) or _is_narrowed(attention):
        return
    narrowing = _Narrowing()
    attention.register_forward_pre_hook(narrowing.enter, with_kwargs=True)
    for part in parts:
        if isinstance(part, nn.Module):
            part.register_forward_pre_hook(narrowing.before)
            part.register_forward_hook(narrowing.after)


def _is_narrowed(attention: nn.Module) -> bool:
    return any(
        isinstance(getattr(hook, "__self__", None), _Narrowing) for hook in attention._forward_pre_hooks.values()
    )


class _Narrowing:
    """The hooks of the last layer, and the tokens of the current row that are read, which its attention sets first."""

    def __init__(self) -> None:
        self.read: tuple[slice, ...] | None = None
        self.length = 0

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        spans, prompt = kwargs.get("packed_spans"), kwargs.get("packed_prompt")
        if kwargs.get("packed_prefill"):
            self.read = ()
        elif spans is not None and (prompt is None or prompt.role != "read"):
            self.read = tokens_read(spans)
        else:
            self.read = None

    def before(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if self.read is None:
            return None
        (x,) = args
        self.length = x.shape[1]
        return (torch.cat([x[:, part] for part in self.read], 1) if self.read else x[:, :0],)

    def after(self, module: nn.Module, args: object, output: Tensor) -> Tensor | None:
        if self.read is None:
            return None
        whole = output.new_zeros(output.shape[0], self.length, output.shape[2])
        start = 0
        for part in self.read:
            count = part.stop - part.start
            whole[:, part] = output[:, start : start + count]
            start += count
        return whole
