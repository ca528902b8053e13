"""Attention over packed groups: a shared prompt is computed once, and its completions never see each other.

Registered with transformers' ``AttentionInterface`` as ``packed_groups``, so every architecture that supports
attention backends can use it, without model code of ours. The layout is passed as the keyword ``packed_spans`` of the
model's forward. Without it, a decoding step reads the shared prompts that the sampler has set, and everything else
(prefill, transformers' own ``generate``) runs in transformers' SDPA.
"""

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from longctx_rl.policy.attention.group import group_attention
from longctx_rl.policy.attention.last_layer import is_last_layer, narrow_last_layer
from longctx_rl.policy.attention.prompt_states import PromptPass
from longctx_rl.policy.attention.shared_prompts import attend, prompts_of
from longctx_rl.types import GroupSpan

NAME = "packed_groups"


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packed_spans: tuple[GroupSpan, ...] | None = None,
    packed_prompt: PromptPass | None = None,
    packed_prefill: bool = False,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Compute attention for one packed row. Shapes: query [1, heads, L, d], key and value [1, kv_heads, L, d].

    Args:
        packed_spans: the layout of the row.
        packed_prompt: the row is one prompt, or one completion of it. See prompt_states.py.
        packed_prefill: only keys and values are needed, so the last layer's attention is skipped.

    In the last layer of a packed row, only the completions and each prompt's last token attend: no other hidden states
    are read after it.

    Returns:
        [1, L, heads, d], and no attention weights.
    """
    # Under autocast, norms and rotary embeddings return float32.
    query, key = query.to(value.dtype), key.to(value.dtype)
    scale = kwargs.get("scaling")
    assert scale is None or isinstance(scale, float)
    if packed_prompt is not None:
        layer = module.layer_idx
        assert isinstance(layer, int)
        if packed_prompt.role == "read":
            return packed_prompt.read(layer, query, key, value, scale).transpose(1, 2).contiguous(), None
        key, value = packed_prompt.before(layer, key, value)
    last = is_last_layer(module)
    if packed_spans is not None:
        output = group_attention(query, key, value, packed_spans, scale, completions_only=last)
        return output.transpose(1, 2).contiguous(), None
    if packed_prefill and last:
        return torch.zeros_like(query).transpose(1, 2), None
    prompts = prompts_of(module)
    if prompts is not None:
        return attend(query, key, value, prompts, scale), None
    # mypy: kwargs are transformers' own, passed through unchanged.
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)  # type: ignore[arg-type]


def install(model: PreTrainedModel) -> None:
    """Make ``model`` use ``packed_attention``.

    Raises:
        ValueError: the architecture does not allow its attention to be replaced, or mixes tokens by anything but full
            causal attention: sliding or chunked windows, linear attention, state-space layers.
    """
    name = type(model).__name__
    if not getattr(model, "_supports_attention_backend", False):
        raise ValueError(
            f"{name} does not let its attention be replaced, so prompts cannot be shared: "
            "choose a model with transformers' attention interface, such as Qwen3 or Llama"
        )
    config = model.config
    if "sliding_attention" in _layer_types(config) or getattr(config, "sliding_window", None) is not None:
        raise ValueError(
            f"{name} uses sliding-window attention, which packed groups do not support: "
            "choose a model with full attention"
        )
    other = sorted(_layer_types(config) - {"full_attention"})
    if other or getattr(model, "_is_stateful", False):
        raise ValueError(
            f"{name} has {', '.join(other) or 'recurrent'} layers, which would mix the completions of a group: "
            "choose a model with full attention in every layer"
        )
    narrow_last_layer(model)
    model.set_attn_implementation(NAME)


def _layer_types(config: PreTrainedConfig) -> set[str]:
    return set(getattr(config, "layer_types", None) or ())


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
