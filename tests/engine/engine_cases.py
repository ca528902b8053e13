"""A small random policy, a configuration and training steps for the engine tests."""

import dataclasses
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import Qwen3Config, Qwen3ForCausalLM

from longctx_rl.config.schema import Config
from longctx_rl.engine import Engine, distributed

VOCABULARY = 64
OPTIM = {
    "lr": 1e-2,
    "schedule": "cosine",
    "warmup_steps": 2,
    "min_lr_ratio": 0.1,
    "betas": (0.9, 0.95),
    "eps": 1e-8,
    "weight_decay": 0.1,
    "max_grad_norm": 1.0,
    "max_skipped": 2,
}


class Policy(nn.Module):
    """A language model whose forward pass returns the sum of the negative log-likelihoods of its tokens."""

    def __init__(self, model: Qwen3ForCausalLM) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        logits = self.model(input_ids=input_ids[:, :-1], use_cache=False).logits.float()
        return nn.functional.cross_entropy(logits.flatten(0, 1), input_ids[:, 1:].flatten(), reduction="sum")


def model_config(width: int = 32, tied: bool = True, layers: int = 2) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=4096,
        tie_word_embeddings=tied,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )


def policy(width: int = 32, tied: bool = True, seed: int = 0) -> Policy:
    torch.manual_seed(seed)
    return Policy(Qwen3ForCausalLM(model_config(width, tied)))


def batch(index: int, rows: int = 1, length: int = 12) -> Tensor:
    generator = torch.Generator().manual_seed(index)
    return torch.randint(3, VOCABULARY, (rows, length), generator=generator)


def config(**groups: dict[str, Any]) -> Config:
    """Return a configuration with neutral values except in the given groups: ``config(engine={"name": "local"})``."""
    chosen: dict[str, dict[str, Any]] = {
        "engine": {"name": "zero3", "num_processes": 1, "num_nodes": 1, "device": "cpu", "offload_optimizer": False},
        "optim": OPTIM,
        "model": {"dtype": "float32"},
        "rollout": {"gather_weights": True},
    }
    for group, values in groups.items():
        chosen[group] = {**chosen.get(group, {}), **values}
    return _neutral(Config, chosen)  # type: ignore[no-any-return]


def _neutral(kind: Any, values: dict[str, Any]) -> Any:
    """Return an instance of a dataclass with neutral values for fields that are not in ``values``."""
    hints = get_type_hints(kind)
    filled = {}
    for field in dataclasses.fields(kind):
        value, hint = values.get(field.name), hints[field.name]
        if dataclasses.is_dataclass(hint):
            filled[field.name] = _neutral(hint, value or {})
        elif field.name in values:
            filled[field.name] = value
        elif get_origin(hint) is Literal:
            filled[field.name] = get_args(hint)[0]
        else:
            filled[field.name] = {int: 1, float: 0.0, str: "", bool: False}.get(hint)
    return kind(**filled)


def train(engine: Engine, steps: range, micro_batches: int = 4, rows: int = 1) -> list[float]:
    """Run optimizer steps on numbered batches that are split over the ranks. Returns gradient norms.

    Each rank takes ``micro_batches`` x ``rows`` rows per step; the loss is divided by the global number of tokens.
    """
    ranks = distributed.world_size()
    norms = []
    for step in steps:
        data = torch.cat([batch(100 * step + row) for row in range(micro_batches * rows * ranks)])
        mine = data.chunk(ranks)[distributed.rank()].split(rows)
        for index, row in enumerate(mine):
            with torch.no_grad():
                engine.forward(row)  # like the pass for old log-probabilities
            loss = engine.forward(row) / (len(data) * 11)
            engine.backward(loss, last=index == len(mine) - 1)
        norms.append(engine.step().grad_norm)
    return norms


def weights(engine: Engine, directory: Path) -> dict[str, Tensor]:
    """Save an engine and return all stored tensors, by file and name."""
    directory.mkdir(parents=True, exist_ok=True)
    engine.save(directory)
    distributed.barrier()
    return stored(directory)


def stored(directory: Path) -> dict[str, Tensor]:
    """Return all tensors in a folder, by file and name."""
    return {
        f"{file.stem}/{name}": tensor
        for file in sorted(directory.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def difference(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    """Return the largest absolute difference between corresponding elements."""
    assert left.keys() == right.keys()
    return max((left[name] - right[name]).abs().max().item() for name in left)
