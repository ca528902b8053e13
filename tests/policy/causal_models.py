"""Tiny random models of transformers' causal language models, from configurations reduced to two layers."""

from collections.abc import Iterator
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

VOCABULARY = 64
LAYERS, WIDTH, HEADS, CONTEXT = 2, 32, 4, 128
SIZES: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), VOCABULARY),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth"), LAYERS),
    **dict.fromkeys(("decoder_layers", "encoder_layers", "num_encoder_layers", "num_decoder_layers"), LAYERS),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim_model", "embed_dim", "projection_dim"), WIDTH),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), HEADS),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads"), HEADS),
    **dict.fromkeys(("num_decoder_attention_heads", "num_encoder_attention_heads"), HEADS),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), CONTEXT),
    **dict.fromkeys(("intermediate_size", "decoder_ffn_dim", "encoder_ffn_dim", "ffn_dim", "dff", "dim_ff"), 48),
    **dict.fromkeys(("head_dim", "v_head_dim", "qk_head_dim", "index_head_dim", "dim_head"), 8),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "rotary_dim", "rope_head_dim"), 4),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "linear_num_value_heads"), 4),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim", "patch_size"), 16),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "mamba_d_state", "ssm_state_size"), 8),
    **dict.fromkeys(("pronunciation_embed_dim", "shape_embed_dim", "hidden_size_per_layer_input"), 8),
    **dict.fromkeys(("n_group", "index_n_heads", "linear_num_key_heads", "num_experts_per_tok"), 2),
    **dict.fromkeys(("topk_group", "num_dense_layers", "n_shared_experts", "index_topk_blocks"), 1),
    **dict.fromkeys(("index_topk", "index_block_size", "keep_window_size", "laurel_rank"), 4),
    **dict.fromkeys(("initializer_range", "init_std"), 0.2),  # far from uniform, so that a wrong mask shows
    "num_key_value_heads": 2,
    "image_size": 32,
    "chunk_size": 8,
    "num_kv_shared_layers": 0,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""Values of the keys that a configuration has."""
UNBUILDABLE = (AttributeError, ImportError, LookupError, RuntimeError, StrictDataclassError, TypeError, ValueError)
LAYER_LISTS = ("layer_types", "mlp_layer_types")
OWN: dict[str, dict[str, Any]] = {
    "blt": {"encoder_hash_byte_group_vocab": 64},
    "cwm": {"layer_types": ["full_attention"] * LAYERS},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "dots3_note_text": {"num_attention_heads": None},
    "falcon_h1": {"mamba_d_ssm": 64},
    "gemma3n_text": {"layer_types": ["sliding_attention", "full_attention"], "activation_sparsity_pattern": [0.0, 0.0]},
    "gemma4_text": {"head_dim": None, "num_key_value_heads": None},
    "gemma4_unified_text": {"head_dim": None, "num_key_value_heads": None},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 4},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "llama4_text": {"layer_types": ["full_attention"] * LAYERS, "no_rope_layers": [1, 0]},
    "mamba2": {"head_dim": 16},
    "olmo_hybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "prophetnet": {"num_hidden_layers": None},
    "reformer": {
        "is_decoder": True,
        "axial_pos_embds_dim": [16, 16],
        "axial_pos_shape": [8, 16],
        "attn_layers": ["local", "lsh"],
        "attention_head_size": 8,
    },
    "xlnet": {"max_position_embeddings": None},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"layer_types": ["mamba", "hybrid"]},
    "zamba2": {"layer_types": ["mamba", "hybrid"]},
    "zaya": {"num_experts_per_tok": 1},
}
"""Keys of single types, or None for those that must keep their default."""


def has(config: PreTrainedConfig, key: str) -> bool:
    """Whether a configuration has a key that can be set."""
    key = config.attribute_map.get(key, key)
    kind = getattr(type(config), key, None)
    if isinstance(kind, property) and kind.fset is None:  # such as layer_types, computed from other keys
        return False
    try:
        return hasattr(config, key)
    except UNBUILDABLE:  # a value per layer
        return False


def reduced(kind: type[PreTrainedConfig], full: bool) -> PreTrainedConfig:
    """A small configuration of a class.

    Args:
        full: with full attention in every layer, where the class has a list of them; otherwise its first two layers.
    """
    default = kind()
    values = {key: value for key, value in SIZES.items() if has(default, key)}
    if has(default, "qk_rope_head_dim"):  # latent attention has no groups of heads
        values |= {key: 4 for key in ("num_key_value_heads", "head_dim") if key in values}
    for key in LAYER_LISTS:
        if has(default, key) and isinstance(layers := getattr(default, key), list | tuple):
            values[key] = list(layers)[:LAYERS]
    for key, value in OWN.get(default.model_type, {}).items():
        values[key] = value
    values = {key: value for key, value in values.items() if value is not None}
    if full and has(default, "layer_types"):
        values |= {"layer_types": ["full_attention"] * LAYERS}
    if full and has(default, "sliding_window"):
        values |= {"sliding_window": None}
    for key in default.sub_configs:
        if isinstance(part := getattr(default, key, None), PreTrainedConfig) and key not in values:
            values[key] = reduced(type(part), full).to_dict()
    return kind(**values)


def models(model_type: str) -> Iterator[PreTrainedModel]:
    """Models of a type in evaluation mode: with full attention in every layer, and with its own first two layers."""
    for full in (True, False):
        torch.manual_seed(0)
        try:
            model: PreTrainedModel = AutoModelForCausalLM.from_config(reduced(CONFIG_MAPPING[model_type], full))
        except UNBUILDABLE:
            continue  # test_architectures names the types of which neither can be built
        yield model.eval()
