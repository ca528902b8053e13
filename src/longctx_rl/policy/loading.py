"""Loading of models and tokenizers, and the checks that a student and a teacher can be compared token by token."""

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen3Config,
)
from transformers.utils import logging as transformers_logging

from longctx_rl.config.model import ArchitectureConfig, ModelConfig, YarnConfig
from longctx_rl.policy.shape import load_config
from longctx_rl.policy.weights import locate, unavailable

transformers_logging.disable_progress_bar()  # a run has a progress line of its own
UNLOADABLE = (OSError, SafetensorError, ValueError, KeyError, RuntimeError)
"""What transformers raises for files that are missing, truncated, or not a model's."""
PROBES = (
    "The 3 quick foxes, aren't they?  Two  spaces;\ttab\n\nnew 1234567890.5e-3 CamelCaseName snake_case",
    "def f(x):\n    return x ** 2  # \u2264 10\n",
    "Gr\u00fc\u00dfe, \u00e7a va? \u6797\u6d77\u8cb7\u3063\u305f\u3002",
    "\u0627\u0644\u0628\u0633 \ud55c\uad6d \U0001f980 e\u0301",
)
"""Texts that two tokenizers must split alike: a vocabulary does not fix how text is normalised, split and merged."""


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model. Raises ValueError if it cannot be loaded or has no end token."""
    path = locate(name)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path)
    except UNLOADABLE as error:
        raise ValueError(unavailable(name, path, error)) from error
    if tokenizer.eos_token_id is None:
        raise ValueError(f"the tokenizer of {name} has no end token, so completions could not end: set its eos_token")
    return tokenizer


def load_model(name: str, yarn: YarnConfig | None = None) -> PreTrainedModel:
    """Load a pretrained causal language model with float32 weights, from safetensors only: nothing is unpickled.

    Args:
        yarn: the extension of its context; None: none.

    Raises:
        ValueError: the model cannot be found or read, or its context cannot be extended as configured.
    """
    path = locate(name)
    config = None if yarn is None else stretched(load_config(name), name, yarn)
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            path, config=config, dtype=torch.float32, use_safetensors=True
        )
    except UNLOADABLE as error:
        raise ValueError(unavailable(name, path, error)) from error
    return model


def stretched(config: PreTrainedConfig, name: str, yarn: YarnConfig) -> PreTrainedConfig:
    """Set YaRN in a model's configuration, as transformers reads it; exactly these settings are left as they are.

    Raises:
        ValueError: the positions are not rotary ones of the default type, or the context is already as long.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    parameters = {
        "rope_type": "yarn",
        "factor": yarn.factor,
        "original_max_position_embeddings": yarn.original_context,
    }
    if all(rope.get(key) == value for key, value in parameters.items()):  # the export of a run with model.yarn
        return config
    if rope.get("rope_type") != "default":
        raise ValueError(
            f"{name} has rope_type={rope.get('rope_type', 'none')}, which model.yarn cannot extend: set "
            "model.yarn=null, or exactly the settings that it was trained with"
        )
    if config.max_position_embeddings >= yarn.context:
        raise ValueError(
            f"{name} has a context of {config.max_position_embeddings} tokens, which model.yarn would set to "
            f"{yarn.context}: set model.yarn=null"
        )
    config.rope_parameters = {**rope, **parameters}
    config.max_position_embeddings = yarn.context
    return config


def fresh_model(shape: ArchitectureConfig, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    """Create a randomly initialised Qwen3 model with tied embeddings and the tokenizer's vocabulary."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=shape.max_length,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        initializer_range=shape.initializer_range,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model


def check_pair(config: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Check that the teacher's tokens are the student's.

    Returns:
        The number of vocabulary entries to score over, or None for all.

    Raises:
        ValueError: different tokens, different end tokens, or vocabularies padded to different sizes.
    """
    assert config.teacher is not None
    teacher = load_tokenizer(config.teacher)
    names = f"student {config.student} and teacher {config.teacher}"
    same = "choose a teacher of the student's family with model.teacher=..."
    if teacher.get_vocab() != tokenizer.get_vocab():
        raise ValueError(f"{names} have different tokenizers, so their token probabilities cannot be compared: {same}")
    for probe in PROBES:
        ids = [tuple(encode(probe, add_special_tokens=False)["input_ids"]) for encode in (tokenizer, teacher)]
        if ids[0] != ids[1]:
            raise ValueError(
                f"{names} have the same vocabulary but split text differently ({probe!r} into {len(ids[0])} and "
                f"{len(ids[1])} tokens): {same}"
            )
    if teacher.eos_token_id != tokenizer.eos_token_id:
        raise ValueError(
            f"{names} end their completions with different tokens ({tokenizer.eos_token} and "
            f"{teacher.eos_token}): choose both base or both chat models"
        )
    sizes = [len(tokenizer) if config.architecture else _vocabulary(config.student), _vocabulary(config.teacher)]
    if sizes[0] == sizes[1]:
        return None
    if not config.slice_vocabulary:
        raise ValueError(
            f"{names} have vocabularies padded to {sizes[0]} and {sizes[1]}: "
            "set model.slice_vocabulary=true to score over the tokens they share"
        )
    return len(tokenizer)


def check_tokenizer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Raise ValueError if the tokenizer has more tokens than the model called ``name`` has embeddings."""
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, nn.Embedding)
    rows = embedding.num_embeddings
    if len(tokenizer) > rows:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens, but {name} has embeddings for {rows}: give the tokenizer that "
            "it was trained with, tokenizer=FOLDER"
        )


def pair_note(config: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return a warning if the teacher's chat template differs from the student's; None if it does not."""
    assert config.teacher is not None
    template = getattr(load_tokenizer(config.teacher), "chat_template", None)
    if template is None or template == getattr(tokenizer, "chat_template", None):
        return None
    return (
        f"teacher {config.teacher} and the student have different chat templates, and the student's formats all "
        "prompts: the teacher's signal may be worse; model.tokenizer=<teacher> uses the teacher's template for both"
    )


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the tokens that end a completion: the tokenizer's own, then those of the model's generation settings.

    Qwen3's chat models end at ``<|im_end|>`` or ``<|endoftext|>``.
    """
    assert isinstance(tokenizer.eos_token_id, int)
    settings = model.generation_config
    others = settings.eos_token_id if settings is not None else None
    listed = others if isinstance(others, list) else [others] if isinstance(others, int) else []
    return tuple(dict.fromkeys([tokenizer.eos_token_id, *listed]))


def context_length(model: PreTrainedModel) -> int:
    """Return the model's context length in tokens."""
    length: int = model.config.max_position_embeddings
    return length


def _vocabulary(name: str) -> int:
    size: int = load_config(name).vocab_size
    return size
