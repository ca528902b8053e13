"""Export of the policy's language model as a folder that transformers can load."""

import copy
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from longctx_rl.engine.distributed import is_main, on_main
from longctx_rl.engine.tensors import rust_errno, write_tensors


def parameters(policy: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the named parameters of the language model inside ``policy``; a tied weight appears once."""
    return cast(nn.Module, policy.model).named_parameters()


def write(
    directory: Path,
    policy: nn.Module,
    weights: Iterable[tuple[str, Tensor]],
    dtype: torch.dtype,
    tokenizer: PreTrainedTokenizerBase,
    *,
    untied: bool = False,
) -> None:
    """Write weights, configuration and tokenizer through a temporary folder. All ranks iterate, the main rank writes.

    With ``untied``, a head that is tied to the embedding becomes a weight of its own.

    Raises ValueError on every rank if the main rank cannot write; an earlier export then stays.
    """
    temporary, model = directory.parent / f".tmp-{directory.name}", cast(PreTrainedModel, policy.model)
    config = copy.deepcopy(model.config)
    config.dtype = dtype
    config.architectures = [type(model).__name__]
    if untied and config.tie_word_embeddings:
        config.tie_word_embeddings = False
        weights = _with_head(model, weights)
    try:
        on_main(lambda: _empty(temporary))
        write_tensors(temporary, "model", ((name, tensor.to(dtype)) for name, tensor in weights))
        on_main(lambda: _finish(temporary, directory, model, config, tokenizer))
    except OSError as error:
        if is_main():
            shutil.rmtree(temporary, ignore_errors=True)
        raise ValueError(
            f"the model could not be exported to {directory} ({error.strerror or error}): free space or fix the "
            "permissions, then continue with resume=true"
        ) from error


def _with_head(model: PreTrainedModel, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    names = {module: f"{name}.weight" for name, module in model.named_modules()}
    head, embedding = names[model.get_output_embeddings()], names[model.get_input_embeddings()]
    for name, tensor in weights:
        yield name, tensor
        if name == embedding:
            yield head, tensor


def _empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    try:
        tokenizer.save_pretrained(folder)
    except OSError:
        raise
    except Exception as error:  # tokenizers raises a bare Exception
        if not rust_errno(error):
            raise
        raise OSError(rust_errno(error), str(error)) from error


def _finish(
    temporary: Path,
    directory: Path,
    model: PreTrainedModel,
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    config.save_pretrained(temporary)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(temporary)
    _save_tokenizer(tokenizer, temporary)
    if directory.exists():
        shutil.rmtree(directory)
    temporary.rename(directory)
