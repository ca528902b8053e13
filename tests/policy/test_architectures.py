"""Every causal language model of transformers is scored and sampled as transformers would, or refused in a sentence."""

import copy
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from _pytest.mark import ParameterSet
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from longctx_rl.data.packing import pack
from longctx_rl.policy.policy import Policy
from longctx_rl.rollout import SampleRequest, agreement
from longctx_rl.rollout.hf import HFSampler
from longctx_rl.training.assembly import make_trainable
from longctx_rl.training.one_at_a_time import OneAtATime, split
from longctx_rl.types import RolloutGroup
from packed_builders import CPU, group
from policy.causal_models import models, reduced

FAST = (
    *("bert", "bloom", "cohere", "deepseek_v3", "diffllama", "doge", "falcon", "gemma2", "gpt2", "gpt_neox", "gpt_oss"),
    *(
        "granite",
        "llama4_text",
        "mamba",
        "nemotron",
        "olmo2",
        "opt",
        "phi3",
        "phimoe",
        "qwen2",
        "qwen3_moe",
        "stablelm",
    ),
)
SAMPLED = (
    *("apertus", "arcee", "aria_text", "bitnet", "ctrl", "dbrx", "dots1", "emu3", "ernie4_5", "ernie4_5_moe"),
    *("exaone4", "flex_olmo", "gemma", "glm", "glm4", "glm4_moe", "gpt-sw3", "gpt2", "gpt_bigcode", "gpt_neox"),
    *("granite", "granitemoe", "granitemoeshared", "helium", "hunyuan_v1_dense", "hunyuan_v1_moe", "hy_v3"),
    *("hyperclovax", "internlm3", "iquestcoder", "jais2", "lfm2", "lfm2_moe", "lfm3", "llama", "mellum", "minimax_m2"),
    *("minimax_m3_vl_text", "ministral3", "mistral", "mixtral", "olmo", "olmo2", "olmoe", "opt", "persimmon", "phi"),
    *("phi3", "phi4_multimodal", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "seed_oss", "smollm3", "solar_open"),
    "starcoder2",
)
"""Types that are scored and sampled, with full attention in every layer."""
SCORED = ("axk1", "deepseek_v2", "deepseek_v3", "glm4_moe_lite", "jetmoe", "longcat_flash", "minimax", "youtu")
"""Types that are scored, but whose keys and values are not cached in the usual form."""
UNBUILT = {
    "cohere_compass_text": "its default configuration lacks rotary settings",
    "dots3_note": "its audio part states the width of the text part",
    "gemma3n": "its vision part needs another package",
    "gemma4_assistant": "it drafts for a larger model",
    "gemma4_unified_assistant": "it drafts for a larger model",
    "musicgen": "audio",
    "musicgen_melody": "audio",
}
"""Types of which no small model is built, and why."""
GROUPS = (group(7, [3, 5], 1), group(4, [4, 2, 1], 2))
EOS = 2


class Tokens:
    """A tokenizer of as many tokens as ``group`` draws from."""

    eos_token_id = EOS
    all_special_ids = (0, 1, EOS)

    def __len__(self) -> int:
        return 37

    def decode(self, ids: list[int], **settings: object) -> str:
        return ""


class Unwrapped:
    """An engine without anything."""

    def __init__(self, policy: Policy) -> None:
        self.forward = policy


def plain_logprobs(model: PreTrainedModel, groups: tuple[RolloutGroup, ...]) -> Tensor:
    """Log-probabilities of all completions, each with its prompt in a forward pass of its own."""
    results = []
    for one in groups:
        for completion in one.completions:
            ids = torch.tensor([one.prompt_ids + completion.token_ids])
            logits = model(input_ids=ids, use_cache=False).logits[0, len(one.prompt_ids) - 1 : -1]
            results.append(logits.log_softmax(-1).gather(-1, ids[0, len(one.prompt_ids) :, None])[:, 0])
    return torch.cat(results)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Gradients by name, cleared on the model; zeros where there is none, as of experts that no token chose."""
    found = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    return found


def assert_same(scores: Tensor, of_model: dict[str, Tensor], expected: Tensor, of_plain: dict[str, Tensor]) -> None:
    torch.testing.assert_close(scores, expected, atol=1e-3, rtol=0)
    largest = max(float(gradient.abs().max()) for gradient in of_plain.values())
    for name, gradient in of_plain.items():
        torch.testing.assert_close(of_model[name], gradient, atol=1e-3 * largest, rtol=0)


def verified(model: PreTrainedModel) -> str:
    """What a model can be used for: ``refused``, ``scored`` or ``sampled``, after checking that it is done right."""
    plain = copy.deepcopy(model)
    plain.set_attn_implementation("eager")
    try:
        make_trainable(model, checkpointing=model.supports_gradient_checkpointing)
        policy = Policy(model, chunk=4)
        agreement.check_scores(policy, Tokens())  # type: ignore[arg-type]
    except ValueError as refusal:
        assert re.fullmatch(r".+: (choose|set) .+", str(refusal))
        return "refused"
    weights = torch.linspace(0.5, 2.0, sum(one.num_tokens - len(one.prompt_ids) for one in GROUPS))
    expected = plain_logprobs(plain, GROUPS)
    (weights * expected).sum().backward()
    of_plain = gradients(plain)
    scores = policy(pack(GROUPS, CPU), temperature=1.0).logprobs
    (weights * scores).sum().backward()
    assert_same(scores, gradients(model), expected, of_plain)
    try:
        alone = one_at_a_time(policy, weights)
    except ValueError as refusal:
        assert "share layer indices" in str(refusal)
        return "refused"
    assert_same(alone, gradients(model), expected, of_plain)
    try:
        agreement.check_samples(model, Tokens())  # type: ignore[arg-type]
    except ValueError as refusal:
        assert re.fullmatch(r".+: choose .+", str(refusal))
        return "scored"
    assert_samples(model, plain)
    return "sampled"


def one_at_a_time(policy: Policy, weights: Tensor) -> Tensor:
    """Scores of ``GROUPS``, one completion after the other; their gradient is left on the policy."""
    results: list[Tensor] = []
    for one in GROUPS:
        packed = pack([one], CPU)
        passes = OneAtATime(Unwrapped(policy), packed, 1.0)  # type: ignore[arg-type]
        for piece in split(packed, {}, len(one.completions), 1):
            scores = passes.score(piece).logprobs
            start = sum(len(part) for part in results)
            (weights[start : start + len(scores)] * scores).sum().backward()
            results.append(scores.detach())
        passes.prompt_loss().backward()
    return torch.cat(results)


def assert_samples(model: PreTrainedModel, plain: PreTrainedModel) -> None:
    """Sample at temperature 1, with a shared prefix and prompts of several lengths, and score the samples alone."""
    first, second = (one.prompt_ids for one in GROUPS)
    requests = [
        SampleRequest(first, (0, 1), 3),
        SampleRequest(first[:3] + second, (2,), 3),
        SampleRequest(second, (3,)),
    ]
    sampler = HFSampler(Tokens(), temperature=1.0, max_new_tokens=6, batch_tokens=1000)  # type: ignore[arg-type]
    for request, completions in zip(requests, sampler.sample(model, requests), strict=True):
        recorded = [logprob for completion in completions for logprob in completion.sampler_logprobs or ()]
        group_of_samples = replace(GROUPS[0], prompt_ids=request.prompt_ids, completions=completions)
        with torch.no_grad():
            expected = plain_logprobs(plain, (group_of_samples,))
        torch.testing.assert_close(torch.tensor(recorded), expected, atol=1e-3, rtol=0)


def marked() -> list[ParameterSet]:
    """All types; those that are not in ``FAST`` only guard a release."""
    return [
        pytest.param(kind, marks=() if kind in FAST else pytest.mark.slow)
        for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        if kind not in UNBUILT
    ]


@pytest.mark.parametrize("model_type", marked())
def test_an_architecture_is_right_or_refused(model_type: str) -> None:
    uses = {verified(model) for model in models(model_type)}
    assert uses
    best = next(use for use in ("sampled", "scored", "refused") if use in uses)
    assert best == ("sampled" if model_type in SAMPLED else "scored" if model_type in SCORED else "refused")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_type", "settings"),
    [
        ("bert-generation", {"is_decoder": True}),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True, "scale_attn_weights": False}),
        ("gpt2", {"reorder_and_upcast_attn": True, "attn_pdrop": 0.5}),
        ("gpt_bigcode", {"multi_query": False}),
        ("gpt_neox", {"use_parallel_residual": False}),
        ("granite", {"attention_multiplier": 0.3, "residual_multiplier": 0.3, "embedding_multiplier": 3.0}),
        ("llama", {"attention_dropout": 0.3, "attention_bias": True, "use_cache": False, "output_attentions": True}),
        ("llama", {"head_dim": 256, "num_key_value_heads": 1}),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10_000.0}}),
        ("mixtral", {"output_router_logits": True}),
        ("olmo", {"clip_qkv": 0.5}),
        ("opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 16, "layerdrop": 0.5}),
        ("phi", {"qk_layernorm": True}),
    ],
)
def test_settings_that_a_model_may_have(model_type: str, settings: dict[str, object]) -> None:
    config = reduced(CONFIG_MAPPING[model_type], full=True)
    for key, value in settings.items():
        setattr(config, key, value)
    torch.manual_seed(0)
    assert verified(AutoModelForCausalLM.from_config(config).eval()) == "sampled"


@pytest.mark.slow
def test_types_without_a_small_model() -> None:
    assert [kind for kind in UNBUILT if any(models(kind))] == []


def test_the_documented_types() -> None:
    text = (Path(__file__).parents[2] / "docs" / "performance.md").read_text(encoding="utf-8")
    section = text.partition("## Which architectures\n")[2].partition("\n## ")[0]
    assert tuple(re.findall(r"`(\w[\w-]*)`", section)) == (*SAMPLED, *SCORED)
