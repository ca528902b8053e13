"""Packed groups against the same sequences run one by one, without any code of ours."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from longctx_rl.data.packing import empty_row, pack
from longctx_rl.policy.attention import dispatch
from longctx_rl.policy.frozen import FrozenScorer
from longctx_rl.policy.policy import Policy
from longctx_rl.types import HiddenSignal, RolloutGroup, SampledSignal, TopKSignal
from packed_builders import (
    CPU,
    VOCABULARY,
    gradients,
    group,
    head_weight,
    relative_difference,
    separate_logits,
    tiny_model,
)

TEMPERATURE = 0.8

LAYOUTS = {
    "one group": [group(9, [4, 7, 2], 1)],
    "several groups": [group(9, [4, 7, 2], 1), group(3, [5], 2), group(12, [1, 6], 3)],
    "single completions, padded batch": [group(8, [4], 1), group(9, [5], 2), group(7, [6], 3)],
    "single completions, one by one": [group(2, [3], 1), group(40, [5], 2), group(3, [1], 3)],
    "prompt of one token": [group(1, [4, 2], 1), group(1, [3], 2)],
    "loss masks": [group(6, [5, 8], 1, masked=True), group(4, [9], 2, masked=True)],
    "single completions with loss masks": [group(6, [8], 1, masked=True), group(4, [9], 2, masked=True)],
    "a completion of one token": [group(5, [1, 1, 1, 3], 1)],
    "no prompt, first token not trained on": [
        replace(
            one,
            completions=tuple(
                replace(completion, loss_mask=(False, *[True] * (len(completion.token_ids) - 1)))
                for completion in one.completions
            ),
        )
        for one in (group(0, [6], 1), group(0, [9], 2))
    ],
}
layouts = pytest.mark.parametrize("groups", LAYOUTS.values(), ids=LAYOUTS.keys())


def separate_logprobs(model: PreTrainedModel, groups: list[RolloutGroup]) -> Tensor:
    logits, targets = separate_logits(model, groups)
    return torch.log_softmax(logits / TEMPERATURE, -1).gather(-1, targets[:, None])[:, 0]


def coefficients(count: int, dtype: torch.dtype) -> Tensor:
    """A weight of its own for every token, so that no two tokens can be mixed up."""
    return torch.linspace(-1.0, 2.0, count, dtype=dtype).cos()


@layouts
@pytest.mark.parametrize("family", ["qwen3", "llama"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=str)
def test_logprobs_and_gradients_equal_separate_sequences(
    groups: list[RolloutGroup], family: str, dtype: torch.dtype, tolerance: float
) -> None:
    model = tiny_model(family=family, dtype=dtype)
    plain = separate_logprobs(model, groups)
    torch.autograd.backward((coefficients(len(plain), dtype) * plain).sum())
    expected = gradients(model)

    policy = Policy(model, chunk=5)
    scores = policy(pack(groups, CPU), temperature=TEMPERATURE)
    torch.testing.assert_close(scores.logprobs, plain, rtol=tolerance, atol=tolerance)
    torch.autograd.backward((coefficients(len(plain), dtype) * scores.logprobs).sum())
    assert relative_difference(gradients(model), expected) < tolerance


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("tied", [True, False])
def test_any_number_of_key_value_heads(kv_heads: int, tied: bool) -> None:
    groups = LAYOUTS["several groups"]
    model = tiny_model(num_key_value_heads=kv_heads, tie_word_embeddings=tied)
    plain = separate_logprobs(model, groups)
    torch.autograd.backward(plain.sum())
    expected = gradients(model)
    scores = Policy(model, chunk=4)(pack(groups, CPU), temperature=TEMPERATURE)
    torch.autograd.backward(scores.logprobs.sum())
    assert relative_difference(gradients(model), expected) < 1e-10


def test_gradient_checkpointing_changes_nothing() -> None:
    groups = LAYOUTS["several groups"]
    found = []
    for checkpointing in (False, True):
        model = tiny_model().train()
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
            calls = count_layer_calls(model)
        scores = Policy(model, chunk=4)(pack(groups, CPU), temperature=TEMPERATURE)
        torch.autograd.backward(scores.logprobs.sum())
        found.append(gradients(model))
    assert calls[0] == 2 * len(model.model.layers)  # forward, and once more in backward
    assert relative_difference(found[1], found[0]) < 1e-12


def count_layer_calls(model: PreTrainedModel) -> list[int]:
    calls = [0]

    def count(*_: object) -> None:
        calls[0] += 1

    for layer in model.model.layers:
        layer.self_attn.register_forward_hook(count)
    return calls


def test_reordering_groups_reorders_scores() -> None:
    groups = LAYOUTS["several groups"]
    policy = Policy(tiny_model(), chunk=100)
    alone = [policy(pack([one], CPU), temperature=1.0).logprobs for one in groups]
    together = policy(pack(groups[::-1], CPU), temperature=1.0).logprobs
    torch.testing.assert_close(together, torch.cat(alone[::-1]), rtol=1e-12, atol=1e-12)


def changed(one: RolloutGroup, completion: int, position: int) -> RolloutGroup:
    """The same group with another token in one completion."""
    completions = list(one.completions)
    tokens = list(completions[completion].token_ids)
    tokens[position] = (tokens[position] + 1) % VOCABULARY
    completions[completion] = replace(completions[completion], token_ids=tuple(tokens))
    return replace(one, completions=tuple(completions))


@pytest.mark.parametrize("completion", [0, 1, 2])
def test_a_sibling_never_influences_another(completion: int) -> None:
    one, other = group(9, [5, 6, 4], 1), group(7, [3, 3], 2)
    policy = Policy(tiny_model(), chunk=100)
    before = policy(pack([one, other], CPU), temperature=1.0).logprobs
    row = pack([changed(one, completion, 1), other], CPU)
    after = policy(row, temperature=1.0).logprobs
    same = row.sequence_ids != completion
    assert torch.equal(before[same], after[same])
    assert (before[~same] - after[~same]).abs()[1:].min() > 1e-6


def test_a_group_never_influences_another() -> None:
    groups = [group(6, [4], 1), group(6, [5], 2), group(6, [4], 3)]
    policy = Policy(tiny_model(), chunk=100)
    before = policy(pack(groups, CPU), temperature=1.0).logprobs
    prompt = (*groups[1].prompt_ids[:-1], (groups[1].prompt_ids[-1] + 1) % VOCABULARY)
    row = pack([groups[0], replace(groups[1], prompt_ids=prompt), groups[2]], CPU)
    after = policy(row, temperature=1.0).logprobs
    same = row.sequence_ids != 1
    assert torch.equal(before[same], after[same])
    assert (before[~same] - after[~same]).abs().min() > 1e-6


@pytest.mark.parametrize("completion", [0, 1])
def test_gradients_do_not_flow_between_siblings(completion: int) -> None:
    model = tiny_model()
    row = pack([group(6, [4, 5], 1)], CPU)
    policy = Policy(model, chunk=100)
    embedded: list[Tensor] = []

    def keep(module: object, inputs: object, output: Tensor) -> None:
        output.retain_grad()
        embedded.append(output)

    model.get_input_embeddings().register_forward_hook(keep)
    scores = policy(row, temperature=1.0)
    torch.autograd.backward(scores.logprobs[row.sequence_ids == completion].sum())
    assert embedded[0].grad is not None
    reached = embedded[0].grad[0].abs().amax(-1) > 0.0
    assert reached[row.segment_ids == 0].all()
    assert not reached[row.segment_ids == 2 - completion].any()
    own = reached[row.segment_ids == completion + 1]
    assert own[:-1].all() and not own[-1]  # nothing is predicted from the last token


def test_loss_tokens_are_listed_in_order_with_what_belongs_to_them() -> None:
    groups = [
        group(4, [3, 5], 1, masked=True, advantages=True, sampler=True),
        group(2, [4, 1, 2], 2, advantages=True, sampler=True),
    ]
    expected, sequence = [], 0
    for one in groups:
        for completion, advantage in zip(one.completions, one.advantages, strict=True):
            assert completion.sampler_logprobs is not None
            counts = completion.loss_mask or (True,) * len(completion.token_ids)
            for token, drawn, counted in zip(completion.token_ids, completion.sampler_logprobs, counts, strict=True):
                if counted:
                    expected.append((token, sequence, advantage, drawn))
            sequence += 1
    row = pack(groups, CPU)
    assert row.sampler_logprobs is not None
    columns = (row.target_ids, row.sequence_ids, row.advantages, row.sampler_logprobs)
    listed = list(zip(*(column.tolist() for column in columns), strict=True))
    assert listed == expected


def test_an_empty_row_reaches_every_parameter_with_a_zero_gradient() -> None:
    policy = Policy(tiny_model(), chunk=4)
    scores = policy(empty_row(CPU), temperature=1.0)
    assert scores.logprobs.shape == (0,)
    torch.autograd.backward(0.0 * scores.logprobs.sum())
    assert all(not gradient.any() for gradient in gradients(policy).values())


@layouts
def test_frozen_scorer_equals_separate_sequences(groups: list[RolloutGroup]) -> None:
    model = tiny_model(3)
    with torch.no_grad():
        logits, targets = separate_logits(model, groups)
    expected = torch.log_softmax(logits / TEMPERATURE, -1)
    scorer = FrozenScorer(model, chunk=3).freeze()
    head = head_weight(model)
    row = pack(groups, CPU)

    exact = scorer(row, estimator="exact", temperature=TEMPERATURE, top_k=5, head=head)
    assert isinstance(exact, HiddenSignal)
    torch.testing.assert_close(
        torch.log_softmax(exact.hidden @ exact.head.T / TEMPERATURE, -1), expected, rtol=1e-10, atol=1e-10
    )
    top = scorer(row, estimator="topk", temperature=TEMPERATURE, top_k=5, head=None)
    assert isinstance(top, TopKSignal)
    torch.testing.assert_close(top.logprobs, expected.topk(5).values, rtol=1e-10, atol=1e-10)
    assert torch.equal(top.ids, expected.topk(5).indices)
    for estimator in ("k1", "k2", "k3"):
        drawn = scorer(row, estimator=estimator, temperature=TEMPERATURE, top_k=5, head=None)
        assert isinstance(drawn, SampledSignal)
        torch.testing.assert_close(drawn.logprobs, expected.gather(-1, targets[:, None])[:, 0], rtol=1e-10, atol=1e-10)
    assert not any(tensor.requires_grad for tensor in (exact.hidden, top.logprobs, drawn.logprobs))


def test_frozen_scorer_never_builds_a_graph() -> None:
    """Not even before it was frozen."""
    scorer = FrozenScorer(tiny_model(), chunk=3)
    row = pack(LAYOUTS["several groups"], CPU)
    signal = scorer(row, estimator="exact", temperature=1.0, top_k=1, head=head_weight(scorer.model))
    assert not signal.hidden.requires_grad


def test_frozen_scorer_is_frozen() -> None:
    scorer = FrozenScorer(tiny_model().train(), chunk=3).freeze()
    assert not scorer.training
    assert not any(parameter.requires_grad for parameter in scorer.parameters())


def test_frozen_scorer_keeps_to_the_shared_vocabulary() -> None:
    row = pack(LAYOUTS["several groups"], CPU)
    row = replace(row, target_ids=row.target_ids % 20)
    model = tiny_model(3)
    top = FrozenScorer(model, chunk=3, vocabulary=20).freeze()(
        row, estimator="topk", temperature=1.0, top_k=64, head=None
    )
    assert top.ids.shape == (row.num_loss_tokens, 20)
    torch.testing.assert_close(top.logprobs.exp().sum(-1), torch.ones(row.num_loss_tokens).double())
    scores = Policy(model, chunk=3, vocabulary=20)(row, temperature=1.0)
    listed = torch.where(top.ids == row.target_ids[:, None], top.logprobs, 0.0).sum(-1)
    torch.testing.assert_close(scores.logprobs, listed)


def test_generation_is_transformers_own() -> None:
    """Without a packed layout the registered attention is SDPA: with a cache, and with left padding."""
    plain = tiny_model(dtype=torch.float32)
    packed = copy.deepcopy(plain)
    Policy(packed, chunk=4)
    ids = torch.randint(3, VOCABULARY, (3, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    options: dict[str, Any] = {
        "attention_mask": mask,
        "max_new_tokens": 6,
        "do_sample": False,
        "pad_token_id": 0,
        "eos_token_id": None,
    }
    options |= {"output_logits": True, "return_dict_in_generate": True}
    generators: list[Any] = [plain, packed]
    expected, ours = (model.generate(ids, **options) for model in generators)
    assert torch.equal(ours.sequences, expected.sequences)
    torch.testing.assert_close(torch.stack(ours.logits), torch.stack(expected.logits), rtol=0, atol=0)
    assert packed.config._attn_implementation == dispatch.NAME
