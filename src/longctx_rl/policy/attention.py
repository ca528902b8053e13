"""Attention over packed groups: a shared prompt is computed once, and siblings never see each other.

Registered with transformers' ``AttentionInterface`` as ``packed_groups``, so every architecture that supports
attention backends can use it, without model code of ours. The layout travels as the keyword ``packed_spans`` of the
model's forward. Without it a decoding step reads the shared prompts that the sampler set out, and anything else
(prefill, a stranger's ``generate``) runs in transformers' own SDPA.

For one group with prompt length P and R completion tokens the cost is a causal P x P and an R x (P + R) block; the mask
exists for the second block only. Groups of one completion are plain causal sequences and run as one padded batch.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from longctx_rl.policy.shared_prompts import attend, prompts_of
from longctx_rl.types import GroupSpan

NAME = "packed_groups"

MAX_PADDING = 1.5
"""Single sequences are batched while padding makes the batch at most this much larger than its tokens."""


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packed_spans: tuple[GroupSpan, ...] | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Attention of one packed row. Shapes: query [1, heads, L, d], key and value [1, kv_heads, L, d].

    Returns:
        [1, L, heads, d], and no attention weights.
    """
    scale = kwargs.get("scaling")
    assert scale is None or isinstance(scale, float)
    if packed_spans is None:
        prompts = prompts_of(module)
        if prompts is not None:
            return attend(query, key, value, prompts, scale), None
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)  # type: ignore[arg-type]
    if all(len(span.completion_lens) <= 1 for span in packed_spans):
        output = _causal_sequences(query, key, value, packed_spans, scale)
    else:
        output = torch.cat([_group(query, key, value, span, scale) for span in packed_spans], 2)
    return output.transpose(1, 2).contiguous(), None


def _attend(query: Tensor, key: Tensor, value: Tensor, scale: float | None, **kwargs: object) -> Tensor:
    grouped = query.shape[1] != key.shape[1]
    return scaled_dot_product_attention(query, key, value, scale=scale, enable_gqa=grouped, **kwargs)  # type: ignore[arg-type]


def _group(query: Tensor, key: Tensor, value: Tensor, span: GroupSpan, scale: float | None) -> Tensor:
    """One group: the prompt attends causally to itself, completions to the prompt and to themselves."""
    start, middle, end = span.start, span.completions_start, span.end
    parts = []
    if span.prompt_len:
        prompt = slice(start, middle)
        parts.append(_attend(query[:, :, prompt], key[:, :, prompt], value[:, :, prompt], scale, is_causal=True))
    if end > middle:
        mask = completion_mask(span, query.device)
        group = slice(start, end)
        parts.append(
            _attend(query[:, :, middle:end], key[:, :, group], value[:, :, group], scale, attn_mask=mask[None, None])
        )
    return torch.cat(parts, 2)


def completion_mask(span: GroupSpan, device: torch.device) -> Tensor:
    """[R, P + R] boolean, True where a completion token may attend: the whole prompt, and its own past."""
    lens = torch.tensor(span.completion_lens, device=device)
    owner = torch.repeat_interleave(torch.arange(len(span.completion_lens), device=device), lens)
    past = torch.ones(len(owner), len(owner), dtype=torch.bool, device=device).tril()
    own = past & (owner[:, None] == owner[None, :])
    prompt = torch.ones(len(owner), span.prompt_len, dtype=torch.bool, device=device)
    return torch.cat([prompt, own], 1)


def _causal_sequences(
    query: Tensor, key: Tensor, value: Tensor, spans: tuple[GroupSpan, ...], scale: float | None
) -> Tensor:
    """Groups of at most one completion, batched with right padding, which causality makes harmless."""
    lens = [span.end - span.start for span in spans]
    if len(spans) * max(lens) > MAX_PADDING * sum(lens):
        pieces = []
        for span in spans:
            own = slice(span.start, span.end)
            pieces.append(_attend(query[:, :, own], key[:, :, own], value[:, :, own], scale, is_causal=True))
        return torch.cat(pieces, 2)

    def batched(x: Tensor) -> Tensor:  # [1, heads, L, d] -> [N, heads, longest, d]
        rows = torch.split(x[0], lens, 1)
        return torch.stack([nn.functional.pad(row, (0, 0, 0, max(lens) - row.shape[1])) for row in rows])

    output = _attend(batched(query), batched(key), batched(value), scale, is_causal=True)
    return torch.cat([row[:, :length] for row, length in zip(output, lens, strict=True)], 1)[None]


def install(model: PreTrainedModel) -> None:
    """Make ``model`` attend through this file.

    Raises:
        ValueError: the architecture does not allow attention to be replaced, or mixes tokens in another way than full
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
            f"{name} has {', '.join(other) or 'recurrent'} layers, through which siblings would see each other: "
            "choose a model with full attention in every layer"
        )
    model.set_attn_implementation(NAME)


def _layer_types(config: PreTrainedConfig) -> set[str]:
    return set(getattr(config, "layer_types", None) or ())


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
