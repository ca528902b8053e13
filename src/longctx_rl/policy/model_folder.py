"""What a model's file names and its config.json tell before anything is loaded: whether it is a model for this package.

Imports neither torch nor transformers, so that commands can refuse a folder at once. ``loading.py`` checks the rest.
"""

from pathlib import Path
from typing import Any

from longctx_rl.files import BYTE_ORDER_MARK, mismatch, read_object
from longctx_rl.policy.weights import COMPLETE, INDEX, SINGLE, local_folder, locate, no_config, weight_files

OTHER = "choose a dense decoder, such as Qwen3 or Llama"
FOREIGN = {
    "pytorch_model*.bin": "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW) once, and give NEW",
    "*.gguf": "AutoModelForCausalLM.from_pretrained(FOLDER, gguf_file=FILE).save_pretrained(NEW) once, and give NEW",
    "consolidated*": "download it in the Hugging Face format, or convert it with transformers' script for its family",
    "zero_to_fp32.py": "python zero_to_fp32.py . NEW --safe_serialization, copy the other files, and give NEW",
    "*.safetensors": f"name the file {SINGLE}, or add the index of its shards, {INDEX}",
    "*.p*t*": "export it in the Hugging Face format with the library that wrote it",
}
"""Signs of weights that are never read, most of which would have to be unpickled, and what to do."""
COUNTS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
)
"""Keys of config.json that are positive integers where they are given."""


def check_model(name: str) -> None:
    """Check that a model's files are those of a causal language model with safetensors weights.

    Raises:
        ValueError: they are not; or they are on this disk only in part, in another format, or of a quantised model.
    """
    stated_config(name)
    if (cached := local_folder(name)) is not None and (settings := cached / "generation_config.json").is_file():
        _read(settings, eos_token_id=int | list[int] | None)  # transformers would ignore a broken one
    folder = Path(locate(name))
    if not folder.is_dir():  # what is missing from the cache of the Hub can still be downloaded
        return
    if (folder / SINGLE).is_file():
        return
    if (folder / INDEX).is_file():
        missing = [path.name for path in weight_files(folder) if not path.is_file()]
        if missing:
            raise ValueError(
                f"{name} lacks {missing[0]}, one of {len(missing)} missing files that {INDEX} names: {COMPLETE}"
            )
        return
    for pattern, fix in FOREIGN.items():
        for file in sorted(folder.glob(pattern)):
            raise ValueError(f"{name} has no {SINGLE}, and {file.name} is not read: {fix}")
    raise ValueError(f"{name} has no weights ({SINGLE}): {COMPLETE}")


def stated_config(name: str) -> dict[str, Any] | None:
    """Return the values of a model's config.json; None if it is not on this disk.

    Raises:
        ValueError: there is none, it is not that of a causal language model with weights of floating point numbers, or
            its values contradict each other. See also ``locate``.
    """
    folder = local_folder(name)
    if folder is None:
        return None
    path = folder / "config.json"
    if (folder / "adapter_config.json").is_file() or not path.is_file():
        raise ValueError(no_config(name, folder))
    values = _read(path, model_type=str, architectures=list[str] | None)
    if values.get("quantization_config") is not None:
        raise ValueError(
            f"{name} is quantised (quantization_config in config.json), and only full weights are trained and "
            "evaluated: give the model that it was quantised from"
        )
    if (other := values.get("transformers_weights")) is not None:
        raise ValueError(f"{name} sets transformers_weights={other} in config.json: remove it, name the file {SINGLE}")
    named = values.get("architectures") or []
    if values.get("is_encoder_decoder") or (named and all(_is_other(each) for each in named)):
        raise ValueError(
            f"{name} is not a causal language model (architectures={', '.join(named)} in config.json): {OTHER}"
        )
    _check_sizes(path, values)
    return values


def _read(path: Path, **fields: Any) -> dict[str, Any]:
    """Return the values of a JSON file as transformers would read them. Raises ValueError; see ``read_object``."""
    values = read_object(path, COMPLETE, **fields)
    if path.read_bytes().startswith(BYTE_ORDER_MARK):
        raise ValueError(f"{path} begins with a byte order mark: save it as UTF-8 without one")
    return values


def _is_other(architecture: str) -> bool:
    """Whether a class is a model of another kind, such as BertForMaskedLM or Qwen2ForSequenceClassification."""
    return "For" in architecture and "ForCausalLM" not in architecture


def _check_sizes(path: Path, values: dict[str, Any]) -> None:
    """Raise ValueError for sizes that are not positive integers, heads that do not divide, rotations that shrink."""
    for key in COUNTS:
        value = values.get(key)
        if value is not None and (mismatch(value, int) or value < 1):
            raise ValueError(f"{path} sets {key}={value!r}, which is not a positive integer: {COMPLETE}")
    heads, shared = values.get("num_attention_heads"), values.get("num_key_value_heads")
    divisions = [("num_attention_heads", heads, "num_key_value_heads", shared)]
    if values.get("head_dim") is None:
        divisions.append(("hidden_size", values.get("hidden_size"), "num_attention_heads", heads))
    for whole, total, key, count in divisions:
        if total and count and total % count:
            raise ValueError(f"{path} sets {key}={count}, which does not divide {whole}={total}: {COMPLETE}")
    rope = values.get("rope_parameters") or values.get("rope_scaling")
    if not isinstance(rope, dict):
        return
    factor = rope.get("factor")
    if factor is not None and (mismatch(factor, float) or factor < 1):
        raise ValueError(f"{path} stretches its context by factor={factor!r}, which must be at least 1: {COMPLETE}")
    if rope.get("rope_type", rope.get("type")) in ("longrope", "su"):
        raise ValueError(
            f"{path} sets rope_type=longrope, with which scores depend on the lengths of other texts in a row: {OTHER}"
        )
