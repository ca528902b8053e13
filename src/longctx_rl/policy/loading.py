"""Loading models and tokenizers, and refusing pairs that cannot be compared token by token."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen3Config,
)
from transformers.utils import logging as transformers_logging

from longctx_rl.config.model import ArchitectureConfig, ModelConfig, YarnConfig

transformers_logging.disable_progress_bar()  # a run has one progress line, its own
UNLOADABLE = (OSError, SafetensorError, ValueError, KeyError, RuntimeError)
"""What transformers raises for files that are missing, cut short, or of something else."""
PROBES = (
    "The 3 quick foxes, aren't they?  Two  spaces;\ttab\n\nnew 1234567890.5e-3 CamelCaseName snake_case",
    "def f(x):\n    return x ** 2  # \u2264 10\n",
    "Gr\u00fc\u00dfe, \u00e7a va? \u6797\u6d77\u8cb7\u3063\u305f\u3002",
    "\u0627\u0644\u0628\u0633 \ud55c\uad6d \U0001f980 e\u0301",
)
"""Texts that two tokenizers must cut alike: a vocabulary does not say how text is normalised, split and merged."""
SHIPPED = Path(__file__).parent.parent / "shipped_models"


def locate(name: str) -> str:
    """A shipped model's folder, an existing directory, or a Hub id as it stands.

    Raises:
        ValueError: something that looks like a path and does not exist or is not a model.
    """
    if (SHIPPED / name / "tokenizer.json").is_file():
        return str(SHIPPED / name)
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file() and not (path / "tokenizer.json").is_file():
            raise ValueError(f"{name} is not a model directory (no config.json): give the export/ folder of a run")
        return str(path)
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise ValueError(
            f"model {name} not found: give a directory, a Hub id (owner/name), mini-student or mini-teacher"
        )
    return name


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model. Raises ValueError when it cannot be found."""
    path = locate(name)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path)
    except UNLOADABLE as error:
        raise ValueError(_unavailable(name, path, error)) from error
    if tokenizer.eos_token_id is None:
        raise ValueError(f"the tokenizer of {name} has no end token, so answers could not end: set eos_token in it")
    return tokenizer


def load_model(name: str, yarn: YarnConfig | None = None) -> PreTrainedModel:
    """A pretrained causal language model with float32 weights, from safetensors: nothing is unpickled.

    Args:
        yarn: how far its context is stretched; None: as it is.

    Raises:
        ValueError: it cannot be found or read, or not be stretched so.
    """
    path = locate(name)
    config = None if yarn is None else stretched(load_config(name), name, yarn)
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            path, config=config, dtype=torch.float32, use_safetensors=True
        )
    except UNLOADABLE as error:
        raise ValueError(_unavailable(name, path, error)) from error
    return model


def stretched(config: PreTrainedConfig, name: str, yarn: YarnConfig) -> PreTrainedConfig:
    """The configuration with YaRN's positions, as transformers reads them; one that has just these stays as it is.

    Raises:
        ValueError: it has other positions than rotary ones of the usual kind, or reads as many tokens already.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    wanted = {
        "rope_type": "yarn",
        "factor": yarn.factor,
        "original_max_position_embeddings": yarn.original_context,
    }
    if all(rope.get(key) == value for key, value in wanted.items()):  # the export of a run that was stretched
        return config
    if rope.get("rope_type") != "default":
        raise ValueError(
            f"{name} has positions of type {rope.get('rope_type', 'none')}, which model.yarn cannot stretch: set "
            "model.yarn=null, or the very settings that it was trained with"
        )
    if config.max_position_embeddings >= yarn.context:
        raise ValueError(
            f"{name} reads {config.max_position_embeddings} tokens without model.yarn, with it {yarn.context}: "
            "set model.yarn=null"
        )
    config.rope_parameters = {**rope, **wanted}
    config.max_position_embeddings = yarn.context
    return config


def fresh_model(shape: ArchitectureConfig, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    """A Qwen3-architecture model with random weights, tied embeddings and the tokenizer's vocabulary."""
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
    """Refuse a teacher whose tokens are not the student's.

    Returns:
        Rows of the vocabulary to score over, or None for all.

    Raises:
        ValueError: other tokens, another end token, or vocabularies padded to different sizes.
    """
    assert config.teacher is not None
    teacher = load_tokenizer(config.teacher)
    names = f"student {config.student} and teacher {config.teacher}"
    same = "choose a teacher of the student's family with model.teacher=..."
    if teacher.get_vocab() != tokenizer.get_vocab():
        raise ValueError(f"{names} have different tokenizers, so their probabilities cannot be compared: {same}")
    for probe in PROBES:
        ids = [tuple(one(probe, add_special_tokens=False)["input_ids"]) for one in (tokenizer, teacher)]
        if ids[0] != ids[1]:
            raise ValueError(
                f"{names} have the same vocabulary but cut text differently ({probe!r} into {len(ids[0])} and "
                f"{len(ids[1])} tokens): {same}"
            )
    if teacher.eos_token_id != tokenizer.eos_token_id:
        raise ValueError(
            f"{names} end their answers with different tokens ({tokenizer.eos_token} and "
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
    """Raise ValueError for a tokenizer that has more tokens than the model called ``name`` knows."""
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, nn.Embedding)
    rows = embedding.num_embeddings
    if len(tokenizer) > rows:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens and {name} knows {rows}: give the tokenizer that it was "
            "trained with, tokenizer=FOLDER"
        )


def pair_note(config: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """What a teacher may have been taught differently, though its tokens are the student's; None if nothing."""
    assert config.teacher is not None
    template = getattr(load_tokenizer(config.teacher), "chat_template", None)
    if template is None or template == getattr(tokenizer, "chat_template", None):
        return None
    return (
        f"the chat template of teacher {config.teacher} is not the student's, in which both read the prompts: its "
        "judgement may suffer; model.tokenizer=<teacher> takes the teacher's template for both"
    )


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Tokens that end a completion: the tokenizer's own, then what the model's generation settings add to it.

    Qwen3's chat models end at ``<|im_end|>`` and at ``<|endoftext|>``.
    """
    assert isinstance(tokenizer.eos_token_id, int)
    settings = model.generation_config
    others = settings.eos_token_id if settings is not None else None
    listed = others if isinstance(others, list) else [others] if isinstance(others, int) else []
    return tuple(dict.fromkeys([tokenizer.eos_token_id, *listed]))


def context_length(model: PreTrainedModel) -> int:
    """Tokens the model was made for."""
    length: int = model.config.max_position_embeddings
    return length


def load_config(name: str) -> PreTrainedConfig:
    """The configuration of a model, without its weights. Raises ValueError when it cannot be found."""
    path = locate(name)
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(path)
    except UNLOADABLE as error:
        raise ValueError(_unavailable(name, path, error)) from error
    return config


def _vocabulary(name: str) -> int:
    size: int = load_config(name).vocab_size
    return size


def _unavailable(name: str, path: str, error: Exception) -> str:
    if Path(path).is_dir():
        cause = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        return (
            f"{name} cannot be loaded ({cause}): give a folder with config.json, tokenizer.json and whole .safetensors "
            "weights, such as the export/ folder of a finished run"
        )
    return (
        f"model {name} is neither a directory nor in the local Hub cache, and the Hub could not be reached: "
        f"download it first (hf download {name}) or give a directory"
    )
