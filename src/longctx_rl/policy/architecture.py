"""Whether the weights on disk are those of the architecture in config.json, told from the headers of their files.

transformers fills what is missing with random numbers, and under ZeRO-3 it does not report what is left over. This
check loads empty tensors of the stored names and shapes through transformers' own conversion of names, on every rank.
"""

from collections.abc import Collection
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import convert_and_load_state_dict_in_model
from transformers.modeling_utils import LoadStateDictConfig
from transformers.models.auto.auto_factory import _get_model_class

from longctx_rl.policy.model_folder import OTHER
from longctx_rl.policy.weights import COMPLETE, explained, read_header, weight_files

FLOATS = ("F64", "F32", "F16", "BF16")
"""Number types of weights that are not quantised."""
NAMED = 3
"""Tensors that a message names."""


def check_weights(name: str, folder: Path, config: PreTrainedConfig) -> None:
    """Check that a model's folder holds exactly the weights of its architecture, and that it is a causal decoder.

    Tensors that transformers ignores are accepted: buffers of old exports, and an output head beside embeddings that it
    is tied to, if it is the same.

    Raises:
        ValueError: tensors are missing, left over, of another shape, or quantised; a tied head differs; tokens attend
            to later ones.
    """
    headers = {path: read_header(path)[1] for path in weight_files(folder)}
    files = {key: path for path, tensors in headers.items() for key in tensors}
    with explained(name, str(folder)):
        model = _empty(config)
        info, _ = convert_and_load_state_dict_in_model(
            model,
            {key: torch.empty(headers[path][key].shape, device="meta") for key, path in files.items()},
            LoadStateDictConfig(
                device_map={"": "meta"},
                dtype=torch.float32,
                weight_mapping=get_model_conversion_mapping(model),  # type: ignore[arg-type]
            ),
        )
        model._adjust_missing_and_unexpected_keys(info)
    kind = type(model).__name__
    if any(getattr(module, "is_causal", True) is False for module in model.modules()):
        raise ValueError(f"{name} is an encoder: tokens of {kind} attend to later ones: {OTHER}")
    missing = set(info.missing_keys)
    for pair in model.all_tied_weights_keys.items():
        missing -= set() if missing.issuperset(pair) else set(pair)
    shapes = [f"{key} {list(found)} instead of {list(wanted)}" for key, found, wanted in info.mismatched_keys]
    found = {"lacks": missing, "has other tensors:": info.unexpected_keys, "has": [*shapes, *info.conversion_errors]}
    if problems := {verb: f"{verb} {_few(keys)}" for verb, keys in found.items() if keys}:
        fix = "remove these tensors" if "lacks" not in problems and "has" not in problems else COMPLETE
        raise ValueError(
            f"{name} {' and '.join(problems.values())}, so these are not the weights of the {kind} in config.json: "
            f"correct config.json, or {fix}"
        )
    expected = model.state_dict()
    for key, path in files.items():
        kept = headers[path][key].dtype
        if kept not in FLOATS and {key, f"{model.base_model_prefix}.{key}"} & expected.keys():
            raise ValueError(f"{name} stores {key} as {kept}, which is quantised: give the model in full precision")
    for key, source in model.all_tied_weights_keys.items():
        if key in files and source in files and not torch.equal(*(_read(files[each], each) for each in (key, source))):
            raise ValueError(
                f"{name} stores {key} and another {source}, but config.json ties them: set tie_word_embeddings=false "
                f"in config.json, or remove {key} from the weights"
            )


def check_finite(name: str, model: PreTrainedModel) -> None:
    """Raise ValueError, on all ranks that hold shards of the model, if weights or rotary frequencies are not finite."""
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    shards = {key: _own_values(tensor) for key, tensor in tensors.items()}
    broken = torch.tensor([_is_broken(values) for values in shards.values()], dtype=torch.int32)
    if sharded := [key for key, tensor in tensors.items() if shards[key] is not tensor]:
        broken = broken.to(shards[sharded[0]].device)
        torch.distributed.all_reduce(broken, torch.distributed.ReduceOp.MAX)
    for key, found in zip(tensors, broken.tolist(), strict=True):
        if found:
            raise ValueError(f"{name} has values in {key} that are not finite: give an intact checkpoint")


def _is_broken(values: Tensor) -> bool:
    """Whether any of the values is not finite, in one pass and without memory for a mask."""
    if not values.numel() or not values.is_floating_point():
        return False
    return not torch.stack(torch.aminmax(values.detach())).isfinite().all()


def _empty(config: PreTrainedConfig) -> PreTrainedModel:
    """Create the model without memory for its weights, and without the sharding of ``from_config``."""
    with torch.device("meta"):
        model = _get_model_class(config, AutoModelForCausalLM._model_mapping)(config)
    assert isinstance(model, PreTrainedModel)
    return model


def _few(keys: Collection[str]) -> str:
    more = f" and {len(keys) - NAMED} more" if len(keys) > NAMED else ""
    return ", ".join(sorted(keys)[:NAMED]) + more


def _read(path: Path, key: str) -> Tensor:
    with safe_open(path, framework="pt") as file:
        tensor: Tensor = file.get_tensor(key)
    return tensor.float()


def _own_values(tensor: Tensor) -> Tensor:
    """Return the values that this rank holds: of a parameter that DeepSpeed has sharded, its shard without padding."""
    shard = getattr(tensor, "ds_tensor", None)
    if shard is None:
        return tensor
    start = torch.distributed.get_rank() * shard.numel()
    values: Tensor = shard[: max(0, tensor.ds_numel - start)]  # type: ignore[attr-defined]
    return values
