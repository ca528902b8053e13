"""One completion at a time: a prompt's keys and values as leaf tensors that every completion reads.

A packed row holds the activations of all completions until its backward pass. If they do not fit, the gradient is
computed in G + 2 passes, exact up to rounding (schedule-level reuse, arXiv 2606.01143):

1. *record*: the prompt without gradient; each layer's keys and values and the last hidden state become leaves.
2. *read*, once per completion: forward and backward pass over its tokens alone; gradients accumulate on the leaves.
3. *return*: the prompt again, with gradient; each leaf's gradient is added where the leaf was recorded.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

Role = Literal["record", "read", "return"]


@dataclass(slots=True)
class PromptStates:
    """What a prompt passes to its completions: leaves in float32 or wider, because each accumulates G gradients."""

    keys: dict[int, Tensor] = field(default_factory=dict)
    """Layer index to [1, kv_heads, P, d]."""
    values: dict[int, Tensor] = field(default_factory=dict)
    hidden: Tensor | None = None
    """[1, H] final hidden state of the last prompt token, which predicts each completion's first token."""

    def record(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Keep a layer's keys and values as leaves. Raises ValueError for an index that two attentions share."""
        if layer in self.keys:
            raise ValueError(
                "the policy's attentions share layer indices, so completions cannot be scored one at a time: set "
                "batch.backward=packed, or choose another model, such as Qwen3 or Llama"
            )
        self.keys[layer], self.values[layer] = leaf(key), leaf(value)


@dataclass(frozen=True, slots=True)
class PromptPass:
    """One of the passes, given to the model as the keyword ``packed_prompt``."""

    role: Role
    states: PromptStates

    def before(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """In a pass over the prompt, record its keys and values, or attach the gradients that the completions left."""
        if self.role == "record":
            self.states.record(layer, key, value)
            return key, value
        return add_gradient(key, self.states.keys[layer]), add_gradient(value, self.states.values[layer])

    def read(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        """Attention of a completion's tokens to the prompt and to each other. [1, heads, C, d] to the same shape."""
        keys = torch.cat([self.states.keys[layer].to(key.dtype), key], 2)
        values = torch.cat([self.states.values[layer].to(value.dtype), value], 2)
        bias: Any = causal_lower_right(query.shape[2], keys.shape[2])
        grouped = query.shape[1] != key.shape[1]
        return scaled_dot_product_attention(query, keys, values, attn_mask=bias, scale=scale, enable_gqa=grouped)


def leaf(x: Tensor) -> Tensor:
    """Return a detached copy that accumulates gradients, in float32 or wider."""
    return x.detach().to(torch.promote_types(x.dtype, torch.float32), copy=True).requires_grad_()


def add_gradient(x: Tensor, collected: Tensor) -> Tensor:
    """Return ``x``; its gradient will be that of the backward pass plus ``collected.grad``."""
    result: Tensor = _AddGradient.apply(x, collected.grad)  # type: ignore[no-untyped-call]
    return result


class _AddGradient(torch.autograd.Function):
    """The identity; its backward pass adds a given gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, more: Tensor | None) -> Tensor:
        ctx.more = more
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        return grad if ctx.more is None else grad + ctx.more.to(grad.dtype), None
