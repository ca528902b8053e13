"""Small models and groups for tests of packing, scoring and the objective."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from longctx_rl.types import Completion, Example, PackedGroups, RolloutGroup

CPU = torch.device("cpu")
VOCABULARY = 37

SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    # Far from uniform, so that a wrong mask or a wrong factor shows.
    "initializer_range": 0.4,
}


def tiny_model(
    seed: int = 0, *, family: str = "qwen3", dtype: torch.dtype = torch.float64, **overrides: Any
) -> PreTrainedModel:
    """A random model with grouped-query attention. In float64 its norms are computed in float64 too."""
    torch.manual_seed(seed)
    options = SHAPE | {"tie_word_embeddings": False} | overrides
    model: PreTrainedModel
    model = LlamaForCausalLM(LlamaConfig(**options)) if family == "llama" else Qwen3ForCausalLM(Qwen3Config(**options))
    nn.Module.to(model, dtype)
    if dtype == torch.float64:
        for module in model.modules():
            if hasattr(module, "variance_epsilon"):
                module.forward = exact_norm(module)
    return model


def exact_norm(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """RMS normalisation in the input's own type; transformers' rounds to float32 inside."""

    def forward(hidden: Tensor) -> Tensor:
        variance = hidden.pow(2).mean(-1, keepdim=True)
        weight, epsilon = module.weight, module.variance_epsilon
        assert isinstance(weight, Tensor) and isinstance(epsilon, float)
        return weight * hidden * torch.rsqrt(variance + epsilon)

    return forward


def head_weight(model: PreTrainedModel) -> Tensor:
    """[V, H] output weights, detached."""
    weight: Tensor = model.get_output_embeddings().weight
    return weight.detach()


def group(
    prompt_len: int,
    completion_lens: Sequence[int],
    seed: int = 0,
    *,
    masked: bool = False,
    advantages: bool = False,
    sampler: bool = False,
) -> RolloutGroup:
    """A group of random tokens; ``masked`` leaves about a third of them out of the loss."""
    generator = torch.Generator().manual_seed(seed)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(VOCABULARY, (count,), generator=generator).tolist())

    def completion(count: int) -> Completion:
        mask = torch.rand(count, generator=generator) > 0.35
        logprobs = -4.0 * torch.rand(count, generator=generator)
        return Completion(
            tokens(count),
            "",
            "stop",
            sampler_logprobs=tuple(logprobs.tolist()) if sampler else None,
            loss_mask=tuple(mask.tolist()) if masked else None,
        )

    example = Example(id=f"example-{seed}", document="", question="", answer="", task="test")
    result = RolloutGroup(example, tokens(prompt_len), tuple(completion(count) for count in completion_lens))
    if advantages:
        values = torch.randn(len(completion_lens), generator=generator).tolist()
        result = replace(result, advantages=tuple(values))
    return result


def token_row(
    sequence_lens: Sequence[int],
    *,
    advantages: Tensor | None = None,
    sampler_logprobs: Tensor | None = None,
    old_logprobs: Tensor | None = None,
) -> PackedGroups:
    """What the objective reads of a row; it has no text."""
    lens = torch.tensor(sequence_lens, dtype=torch.int64)
    total = int(lens.sum())
    nothing = torch.zeros(total, dtype=torch.int64)
    return PackedGroups(
        input_ids=nothing,
        position_ids=nothing,
        group_ids=nothing,
        segment_ids=nothing,
        spans=(),
        source_index=nothing,
        target_ids=nothing,
        sequence_ids=torch.repeat_interleave(torch.arange(len(lens)), lens),
        sequence_lens=lens,
        advantages=torch.zeros(total) if advantages is None else advantages,
        sampler_logprobs=sampler_logprobs,
        old_logprobs=old_logprobs,
    )


def gradients(module: nn.Module) -> dict[str, Tensor]:
    """Gradients by parameter name, cleared on the module. Every parameter must have one."""
    result = {}
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, f"{name} got no gradient"
        result[name] = parameter.grad
        parameter.grad = None
    return result


def relative_difference(ours: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Largest difference of any entry, relative to the largest entry expected of all."""
    assert ours.keys() == expected.keys()
    largest = max(value.abs().max().item() for value in expected.values())
    assert largest > 0.0
    return max((ours[name] - expected[name]).abs().max().item() for name in expected) / largest


def separate_logits(model: PreTrainedModel, groups: list[RolloutGroup]) -> tuple[Tensor, Tensor]:
    """Logits [T, V] that predict each loss token, and those tokens [T]: one plain forward for each completion."""
    logits, targets = [], []
    for one in groups:
        for completion in one.completions:
            ids = torch.tensor([[*one.prompt_ids, *completion.token_ids]])
            output = model(ids).logits[0]
            mask = completion.loss_mask or (True,) * len(completion.token_ids)
            for offset, (token, counts) in enumerate(zip(completion.token_ids, mask, strict=True)):
                if counts:
                    logits.append(output[len(one.prompt_ids) + offset - 1])
                    targets.append(token)
    return torch.stack(logits), torch.tensor(targets)
