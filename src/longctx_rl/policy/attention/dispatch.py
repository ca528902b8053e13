"""Attention over packed groups: a shared prompt is computed once, and its completions never see each other.

Registered with transformers' ``AttentionInterface`` as ``packed_groups``, so every architecture that supports
attention backends can use it, without model code of ours. The layout is passed as the keyword ``packed_spans`` of the
model's forward, together with ``packed_mask``. Without them, a decoding step reads the shared prompts that the sampler
has set, and everything else (prefill, transformers' own ``generate``) runs in transformers' SDPA.
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
UNSUPPORTED = ("position_bias", "s_aux", "sliding_window", "softcap")
"""Arguments with which a layer changes its attention: an additive bias, sinks, a window, capped scores."""
OTHERS = "choose another model, such as Qwen3 or Llama"


def packed_mask(device: torch.device) -> Tensor:
    """Return the mask of a packed row, [1, 1, 0, 0]: models pass four dimensions through, and none can apply it."""
    return torch.empty(1, 1, 0, 0, device=device)


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
        attention_mask: ``packed_mask`` with a layout; otherwise transformers' own.
        packed_spans: the layout of the row.
        packed_prompt: the row is one prompt, or one completion of it. See prompt_states.py.
        packed_prefill: only keys and values are needed, so the last layer's attention is skipped.

    In the last layer of a packed row, only the completions and each prompt's last token attend: no other hidden states
    are read after it.

    Returns:
        [1, L, heads, d], and no attention weights.

    Raises:
        ValueError: the layout was lost on the way, or the layer attends in a way that would be ignored here.
    """
    prompts = None if packed_spans is not None else prompts_of(module)
    _check_call(module, attention_mask, packed_spans is not None, prompts is not None, kwargs)
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
    if prompts is not None:
        return attend(query, key, value, prompts, scale), None
    # mypy: kwargs are transformers' own, passed through unchanged.
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)  # type: ignore[arg-type]


def _check_call(
    module: nn.Module, mask: Tensor | None, packed: bool, decoding: bool, arguments: dict[str, object]
) -> None:
    """Raise ValueError for a call whose result would not be that of the layer's own attention."""
    problem = None
    if packed != (mask is not None and mask.numel() == 0):
        problem = "changes the attention mask" if packed else "is not given the layout of a packed row"
    elif decoding and mask is not None:
        problem = "changes the attention mask"
    elif given := [name for name in UNSUPPORTED if arguments.get(name) is not None]:
        problem = f"attends with {given[0]}"
    if problem is not None:
        raise ValueError(f"{type(module).__name__} {problem}")


def install(model: PreTrainedModel) -> None:
    """Make ``model`` use ``packed_attention``.

    Raises:
        ValueError: the model is not a decoder with a body and a head, the architecture does not allow its attention to
            be replaced, or it mixes tokens by anything but full causal attention: sliding or chunked windows, linear
            attention, state-space layers.
    """
    name, config = type(model).__name__, model.config
    if config.is_encoder_decoder or config.get_text_config() is not config or model.base_model is model:
        raise ValueError(f"{name} is not a decoder of text with a body and a head, which packed groups need: {OTHERS}")
    if not getattr(model, "_supports_attention_backend", False):
        raise ValueError(
            f"{name} does not let its attention be replaced, so prompts cannot be shared: "
            "choose a model with transformers' attention interface, such as Qwen3 or Llama"
        )
    if any(getattr(module, "is_causal", True) is False for module in model.modules()):
        raise ValueError(f"{name} attends in both directions, so it does not predict the next token: {OTHERS}")
    if "sliding_attention" in _layer_types(config) or getattr(config, "sliding_window", None):
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
