"""Models that packed groups or chunked scoring would get wrong are refused, with the reason and the way out."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertLMHeadModel,
    CohereConfig,
    CohereForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
    Llama4ForCausalLM,
    Llama4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from longctx_rl.data.packing import pack
from longctx_rl.policy.frozen import FrozenScorer
from longctx_rl.policy.policy import Policy
from packed_builders import CPU, SHAPE, group, tiny_model

SMALL: dict[str, Any] = {**SHAPE, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def test_sliding_window_layers() -> None:
    model = tiny_model(use_sliding_window=True, sliding_window=4, max_window_layers=1)
    with pytest.raises(ValueError, match=r"Qwen3ForCausalLM.*sliding-window.*choose a model with full attention"):
        Policy(model, chunk=4)


def test_windows_that_only_the_layer_types_name() -> None:
    model = tiny_model()
    model.config.layer_types = ["full_attention", "sliding_attention"]
    with pytest.raises(ValueError, match=r"sliding-window.*choose a model with full attention"):
        Policy(model, chunk=4)


def test_a_window_on_every_layer() -> None:
    with pytest.raises(ValueError, match=r"MistralForCausalLM.*sliding-window"):
        Policy(MistralForCausalLM(MistralConfig(**SMALL, sliding_window=8)), chunk=4)
    assert Policy(MistralForCausalLM(MistralConfig(**SMALL, sliding_window=None)), chunk=4)


def test_recurrent_layers() -> None:
    model = Lfm2ForCausalLM(Lfm2Config(**SMALL, layer_types=["conv", "full_attention"]))
    with pytest.raises(ValueError, match=r"has conv layers.*choose a model with full attention in every layer"):
        Policy(model, chunk=4)


def test_a_model_without_attention_backend() -> None:
    class Closed(GPT2LMHeadModel):
        _supports_attention_backend = False

    model = Closed(GPT2Config(vocab_size=37, n_embd=16, n_layer=1, n_head=2, n_positions=64))
    with pytest.raises(ValueError, match=r"Closed.*choose a model.*such as Qwen3 or Llama"):
        Policy(model, chunk=4)


@pytest.mark.parametrize(
    ("model", "key"),
    [
        (GraniteForCausalLM(GraniteConfig(**SMALL, logits_scaling=8.0)), "logits_scaling=8.0"),
        (CohereForCausalLM(CohereConfig(**SMALL, logit_scale=0.0625)), "logit_scale=0.0625"),
    ],
    ids=["granite", "cohere"],
)
def test_logits_that_are_changed_after_the_head(model: PreTrainedModel, key: str) -> None:
    with pytest.raises(ValueError, match=rf"{key}.*choose a model"):
        Policy(model, chunk=4)


class Headless(LlamaForCausalLM):
    def get_output_embeddings(self) -> None:
        return None


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (
            lambda: T5ForConditionalGeneration(T5Config(vocab_size=37, d_model=16, num_layers=1)),
            "not a decoder of text",
        ),
        (lambda: Llama4ForCausalLM(Llama4TextConfig(**SMALL, num_local_experts=2)), "not a decoder of text"),
        (lambda: LlamaModel(LlamaConfig(**SMALL)), "not a decoder of text"),
        (lambda: BertLMHeadModel(BertConfig(**SMALL)), "attends in both directions"),
        (lambda: Headless(LlamaConfig(**SMALL)), "has no output head"),
    ],
    ids=["encoder-decoder", "another layout", "body", "encoder", "no head"],
)
def test_models_without_the_parts_of_a_decoder(make: Callable[[], PreTrainedModel], match: str) -> None:
    with pytest.raises(ValueError, match=rf"^\w+ .*{match}.*: choose another model, such as Qwen3 or Llama$"):
        Policy(make(), chunk=4)


def test_a_window_of_zero_is_none() -> None:
    """Qwen2-MoE's way to say that it has no window."""
    model = tiny_model()
    model.config.sliding_window = 0
    assert Policy(model, chunk=4)


def test_exact_divergence_from_a_head_with_bias() -> None:
    model = tiny_model()
    head = nn.Linear(16, 37, bias=True, dtype=torch.float64)
    model.set_output_embeddings(head)
    scorer = FrozenScorer(model, chunk=4).freeze()
    row = pack([group(4, [3, 2], 1)], CPU)
    with pytest.raises(ValueError, match=r"bias.*estimator=exact.*set estimator=topk"):
        scorer(row, estimator="exact", temperature=1.0, top_k=4, head=head.weight)
    top = scorer(row, estimator="topk", temperature=1.0, top_k=37, head=None)
    expected = torch.log_softmax(head(scorer.hidden(row)), -1)
    torch.testing.assert_close(top.logprobs, expected.topk(37).values)
