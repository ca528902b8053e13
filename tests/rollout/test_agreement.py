"""The check that every loaded model passes: rounding is accepted, scores and samples of another model are not."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    DiffLlamaConfig,
    DiffLlamaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    NemotronConfig,
    NemotronForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PhimoeConfig,
    PhimoeForCausalLM,
    PreTrainedModel,
)

from longctx_rl.data.packing import pack
from longctx_rl.policy.attention.prompt_states import PromptPass, PromptStates
from longctx_rl.policy.frozen import FrozenScorer
from longctx_rl.policy.loading import load_model, load_tokenizer
from longctx_rl.policy.policy import Policy
from longctx_rl.rollout import agreement
from longctx_rl.training.assembly import make_trainable
from packed_builders import CPU, SHAPE, group, tiny_model

TOKENIZER = load_tokenizer("mini-student")
SMALL: dict[str, Any] = {
    **SHAPE,
    "vocab_size": len(TOKENIZER),
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": TOKENIZER.eos_token_id,
}
LONG_FACTORS = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [1.0, 2.0, 3.0, 4.0],
    "original_max_position_embeddings": 32,
    "factor": 4.0,
}


def tiny(**overrides: Any) -> PreTrainedModel:
    return tiny_model(dtype=torch.float32, **{"vocab_size": len(TOKENIZER)} | overrides).eval()


def check(model: PreTrainedModel) -> None:
    agreement.check_scores(Policy(model, chunk=4), TOKENIZER)
    agreement.check_samples(model, TOKENIZER)


def with_bias() -> PreTrainedModel:
    model = tiny()
    torch.manual_seed(1)
    model.set_output_embeddings(nn.Linear(16, len(TOKENIZER), bias=True))
    return model.eval()


def cast(model: PreTrainedModel) -> PreTrainedModel:
    nn.Module.to(model, dtype=torch.bfloat16)
    return model


@pytest.mark.parametrize(
    "make",
    [
        lambda: load_model("mini-student"),
        lambda: tiny(tie_word_embeddings=True),
        with_bias,
        lambda: tiny(vocab_size=len(TOKENIZER) + 50),
        lambda: cast(load_model("mini-student")),
    ],
    ids=["student", "tied", "bias", "padded vocabulary", "bfloat16"],
)
@pytest.mark.parametrize("training", [False, True])
def test_an_honest_model_passes_and_nothing_changes(make: Callable[[], PreTrainedModel], training: bool) -> None:
    model = make()
    if training:
        make_trainable(model, checkpointing=True)
    torch.manual_seed(3)
    defaults, modes = model.generation_config, [module.training for module in model.modules()]
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    check(model)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]
    assert model.generation_config is defaults and [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def ignore_positions(model: PreTrainedModel) -> PreTrainedModel:
    """Make a model count positions itself, from the start of the row."""

    def counted(module: nn.Module, args: object, kwargs: dict[str, Any]) -> tuple[object, dict[str, Any]]:
        return args, kwargs | {"position_ids": None}

    model.base_model.register_forward_pre_hook(counted, with_kwargs=True)
    return model


def mask_more(model: PreTrainedModel) -> PreTrainedModel:
    """Make a layer replace its mask, as sparse attention does."""

    def masked(module: nn.Module, args: object, kwargs: dict[str, Any]) -> tuple[object, dict[str, Any]]:
        length = kwargs["hidden_states"].shape[1]
        return args, kwargs | {"attention_mask": torch.zeros(1, 1, length, length)}

    model.base_model.layers[0].self_attn.register_forward_pre_hook(masked, with_kwargs=True)
    return model


def sum_in_head(model: PreTrainedModel) -> PreTrainedModel:
    """Make the model change its logits after the head."""
    model.register_forward_hook(lambda module, args, output: output.__class__(logits=output.logits.sin()))
    return model


def broken(model: PreTrainedModel) -> PreTrainedModel:
    model.get_parameter("model.norm.weight").data[0] = torch.nan
    return model


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: NemotronForCausalLM(NemotronConfig(**SMALL)), "NemotronAttention is not given the layout"),
        (lambda: mask_more(tiny()), "Qwen3Attention changes the attention mask"),
        (lambda: ignore_positions(tiny()), "another log-probability in a packed row"),
        (lambda: LlamaForCausalLM(LlamaConfig(**SMALL, rope_parameters=LONG_FACTORS)), "in a packed row"),
        (lambda: sum_in_head(tiny()), "another log-probability in a packed row"),
        (lambda: broken(tiny()), "by inf nats"),
        (lambda: DiffLlamaForCausalLM(DiffLlamaConfig(**SMALL)), "in decoding on shared prompts"),
    ],
    ids=["arguments", "mask", "positions", "frequencies", "logits", "not a number", "layer indices"],
)
def test_another_model_is_refused(make: Callable[[], PreTrainedModel], match: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(ValueError, match=rf"^\w+ .*{match}.*: choose another model, such as Qwen3 or Llama$"):
        check(make().eval())


def test_dropout_is_off_in_training_and_other_noise_is_refused() -> None:
    torch.manual_seed(0)
    model = OPTForCausalLM(OPTConfig(**SMALL | {"num_attention_heads": 2}, ffn_dim=32, word_embed_proj_dim=16))
    make_trainable(model, checkpointing=True)
    check(model)
    noisy = PhimoeForCausalLM(PhimoeConfig(**SMALL, num_local_experts=2, router_jitter_noise=0.01))
    make_trainable(noisy, checkpointing=False)
    with pytest.raises(ValueError, match=r"draws random numbers in training.*set the dropout and noise"):
        check(noisy)
    check(noisy.eval())


def test_one_completion_at_a_time_needs_an_index_for_each_attention() -> None:
    torch.manual_seed(0)
    policy = Policy(DiffLlamaForCausalLM(DiffLlamaConfig(**SMALL)), chunk=4)
    row = pack([group(4, [], 1)], CPU)
    with pytest.raises(ValueError, match=r"share layer indices.*set batch\.backward=packed"):
        policy(row, temperature=1.0, prompt=PromptPass("record", PromptStates()))


def test_scores_of_a_frozen_model_are_checked_too() -> None:
    model = ignore_positions(tiny())
    with pytest.raises(ValueError, match="in a packed row"):
        agreement.check_scores(FrozenScorer(model, chunk=4).freeze(), TOKENIZER)


def test_a_vocabulary_that_is_cut() -> None:
    """All log-probabilities are those over the first entries."""
    model = tiny()
    agreement.check_scores(Policy(model, chunk=4, vocabulary=300), TOKENIZER)
    agreement.check_samples(model, TOKENIZER, 300)
