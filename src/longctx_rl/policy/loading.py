"""Loading of models and tokenizers, and the checks that a student and a teacher can be compared token by token."""

from contextlib import suppress
from pathlib import Path

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen3Config,
)
from transformers.utils import logging as transformers_logging

from longctx_rl.config.model import ArchitectureConfig, ModelConfig, YarnConfig
from longctx_rl.policy.architecture import check_finite, check_weights
from longctx_rl.policy.attention import dispatch
from longctx_rl.policy.model_folder import check_model
from longctx_rl.policy.shape import load_config
from longctx_rl.policy.weights import COMPLETE, explained, local_folder, locate

transformers_logging.disable_progress_bar()  # a run has a progress line of its own
PROBES = (
    "The 3 quick foxes, aren't they?  Two  spaces;\ttab\n\nnew 1234567890.5e-3 CamelCaseName snake_case",
    "def f(x):\n    return x ** 2  # \u2264 10\n",
    "Gr\u00fc\u00dfe, \u00e7a va? \u6797\u6d77\u8cb7\u3063\u305f\u3002",
    "\u0627\u0644\u0628\u0633 \ud55c\uad6d \U0001f980 e\u0301",
)
"""Texts that two tokenizers must split alike: a vocabulary does not fix how text is normalised, split and merged."""


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model. Raises ValueError if it cannot be loaded or used, or has no end token."""
    path = locate(name)
    with explained(name, path):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        works = all(len(tokenizer(probe, add_special_tokens=False)["input_ids"]) > 0 for probe in PROBES)
    if not works:
        raise ValueError(f"the tokenizer of {name} returns no tokens for some texts: {COMPLETE}")
    if tokenizer.eos_token_id is None:
        raise ValueError(f"the tokenizer of {name} has no end token, so completions could not end: set its eos_token")
    return tokenizer


def load_model(name: str, yarn: YarnConfig | None = None) -> PreTrainedModel:
    """Load a pretrained causal language model with float32 weights, from safetensors only: nothing is unpickled.

    Code that comes with a model is never run.

    Args:
        yarn: the extension of its context; None: none.

    Raises:
        ValueError: the model cannot be found or read, its weights are not those of its architecture or not finite, or
            its context cannot be extended as configured; see also ``dispatch.install``.
    """
    path, config = locate(name), checked_config(name, yarn)
    with explained(name, path):
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            path, config=config, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
        )
    if not Path(path).is_dir() and (snapshot := local_folder(name)) is not None:  # it has just been downloaded
        check_weights(name, snapshot, config)
    check_finite(name, model)
    dispatch.install(model)
    return model


def load_without_weights(name: str, yarn: YarnConfig | None = None) -> PreTrainedModel:
    """Load what ``load_model`` does except for the weights: parameters have shapes and no values.

    Raises:
        ValueError: see ``checked_config``.
    """
    path, config = locate(name), checked_config(name, yarn)
    with explained(name, path), torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with suppress(OSError):  # no generation_config.json: the configuration's own, as in from_pretrained
            model.generation_config = GenerationConfig.from_pretrained(path)
    return model


def checked_config(name: str, yarn: YarnConfig | None = None) -> PreTrainedConfig:
    """Return the configuration with which a model is loaded, after every check that needs no weights in memory.

    Raises:
        ValueError: see ``load_model``.
    """
    check_model(name)
    config = load_config(name)
    if yarn is not None:
        config = stretched(config, name, yarn)
    # Settings for other programs, which would only break loading, calling or exporting the model.
    config._attn_implementation, config.return_dict = None, True
    config.output_attentions = config.output_hidden_states = False
    if (folder := Path(locate(name))).is_dir():
        check_weights(name, folder, config)
    return config


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
    _check_rows(sizes[1], tokenizer, config.teacher)
    if sizes[0] == sizes[1]:
        return None
    if not config.slice_vocabulary:
        raise ValueError(
            f"{names} have vocabularies padded to {sizes[0]} and {sizes[1]}: "
            "set model.slice_vocabulary=true to score over the tokens they share"
        )
    return len(tokenizer)


def check_tokenizer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Raise ValueError if the tokenizer has tokens for which the model called ``name`` has no embeddings."""
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, nn.Embedding)
    _check_rows(embedding.num_embeddings, tokenizer, name)


def _check_rows(rows: int, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    needed = max(tokenizer.get_vocab().values()) + 1
    if needed > rows:
        raise ValueError(
            f"the tokenizer needs {needed} embeddings, but {name} has {rows}: give the tokenizer that it was trained "
            "with, tokenizer=FOLDER in an evaluation and model.tokenizer=FOLDER in a run"
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
