"""One completion at a time: a prompt's keys and values as leaves that every completion reads.

A packed row holds the activations of all completions until its backward pass. Where that does not fit, the gradient is
taken in G + 2 passes, exact up to rounding (schedule-level reuse, arXiv 2606.01143):

1. *record*: the prompt without gradient; each layer's keys and values and the last hidden state become leaves.
2. *read*, once per completion: forward and backward of its tokens alone; gradients gather on the leaves.
3. *return*: the prompt again, with gradient; what gathered on each leaf enters where the leaf was taken.
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
    """What a prompt hands to its completions, as leaves in float32 or wider: G gradients are added up on each."""

    keys: dict[int, Tensor] = field(default_factory=dict)
    """Layer number to [1, kv_heads, P, d]."""
    values: dict[int, Tensor] = field(default_factory=dict)
    hidden: Tensor | None = None
    """[1, H] final hidden state of the last prompt token, which predicts each completion's first."""

    def record(self, layer: int, key: Tensor, value: Tensor) -> None:
        self.keys[layer], self.values[layer] = leaf(key), leaf(value)


@dataclass(frozen=True, slots=True)
class PromptPass:
    """Travels through the model as the keyword ``packed_prompt``."""

    role: Role
    states: PromptStates

    def before(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values that the prompt's own attention goes on with, in the passes over the prompt."""
        if self.role == "record":
            self.states.record(layer, key, value)
            return key, value
        return add_gradient(key, self.states.keys[layer]), add_gradient(value, self.states.values[layer])

    def read(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        """A completion's tokens attend to the prompt and to themselves. [1, heads, C, d] to the same shape."""
        keys = torch.cat([self.states.keys[layer].to(key.dtype), key], 2)
        values = torch.cat([self.states.values[layer].to(value.dtype), value], 2)
        bias: Any = causal_lower_right(query.shape[2], keys.shape[2])
        grouped = query.shape[1] != key.shape[1]
        return scaled_dot_product_attention(query, keys, values, attn_mask=bias, scale=scale, enable_gqa=grouped)


def leaf(x: Tensor) -> Tensor:
    """A copy without history that collects gradients, in float32 or wider."""
    return x.detach().to(torch.promote_types(x.dtype, torch.float32), copy=True).requires_grad_()


def add_gradient(x: Tensor, collected: Tensor) -> Tensor:
    """``x``, whose gradient will be what a backward pass brings and what ``collected`` has."""
    result: Tensor = _AddGradient.apply(x, collected.grad)  # type: ignore[no-untyped-call]
    return result


class _AddGradient(torch.autograd.Function):
    """The identity, whose backward pass adds what others found."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, more: Tensor | None) -> Tensor:
        ctx.more = more
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        return grad if ctx.more is None else grad + ctx.more.to(grad.dtype), None
