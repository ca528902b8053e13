"""The sampler records the log-probabilities of the distribution it draws from, however prompts are batched."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from longctx_rl.data.packing import pack
from longctx_rl.policy.attention import dispatch
from longctx_rl.policy.attention.shared_prompts import SharedPrompts, attend
from longctx_rl.policy.loading import load_tokenizer
from longctx_rl.policy.policy import Policy
from longctx_rl.rollout import SampleRequest, sample_seed
from longctx_rl.rollout.cache import Prefill
from longctx_rl.rollout.hf import HFSampler
from longctx_rl.types import Completion, Example, RolloutGroup
from packed_builders import CPU, tiny_model

VOCABULARY = 64
END = 3
LENGTHS = (1, 9, 30, 9, 17, 2)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer("mini-student")


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    model = tiny_model(dtype=torch.float32, vocab_size=VOCABULARY, hidden_size=32, initializer_range=0.2)
    return Policy(model, chunk=16).model.eval()


def requests(lengths: Sequence[int] = LENGTHS, group: int = 3, prefix_len: int = 0) -> list[SampleRequest]:
    generator = torch.Generator().manual_seed(5)
    return [
        SampleRequest(
            tuple(torch.randint(4, VOCABULARY, (length,), generator=generator).tolist()),
            tuple(sample_seed(0, 0, number, sample) for sample in range(group)),
            prefix_len,
        )
        for number, length in enumerate(lengths)
    ]


def sampler(tokenizer: PreTrainedTokenizerBase, **changes: object) -> HFSampler:
    options = {"temperature": 0.8, "max_new_tokens": 12, "batch_tokens": 10**6, "eos_ids": (END,)}
    return HFSampler(tokenizer, **(options | changes))


def full_logits(model: PreTrainedModel, prompt: Sequence[int], completion: Sequence[int]) -> Tensor:
    """[C, V] logits of each completion token, from one plain forward pass."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0]
    return logits[len(prompt) - 1 : -1]


def same(left: Sequence[tuple[Completion, ...]], right: Sequence[tuple[Completion, ...]]) -> None:
    assert [[one.token_ids for one in group] for group in left] == [[one.token_ids for one in group] for group in right]
    for ours, theirs in zip(left, right, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert one.sampler_logprobs == pytest.approx(other.sampler_logprobs, abs=1e-5)


def test_seeds_are_stable_and_distinct() -> None:
    assert sample_seed(0, 1, 2, 3) == 8479124504904169328
    seeds = {sample_seed(*place) for place in product(range(4), range(9), range(9), range(9))}
    assert len(seeds) == 4 * 9**3 and all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0, 1.7])
def test_recorded_logprobs_are_those_of_a_full_forward_pass(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, temperature: float
) -> None:
    found = sampler(tokenizer, temperature=temperature).sample(model, requests())
    reasons = set()
    for request, group in zip(requests(), found, strict=True):
        assert len(group) == 3
        for one in group:
            logits = full_logits(model, request.prompt_ids, one.token_ids)
            logprobs = torch.log_softmax(logits / (temperature or 1.0), -1)
            expected = logprobs.gather(1, torch.tensor(one.token_ids)[:, None])[:, 0].tolist()
            assert one.sampler_logprobs == pytest.approx(expected, abs=1e-5)
            assert END not in one.token_ids[:-1]
            assert one.finish_reason == ("stop" if one.token_ids[-1] == END else "length")
            assert one.finish_reason == "stop" or len(one.token_ids) == 12
            assert one.text == tokenizer.decode(one.token_ids, skip_special_tokens=True)
            reasons.add(one.finish_reason)
            if temperature == 0:
                assert list(one.token_ids) == logits.argmax(-1).tolist()
    assert temperature != 1.7 or reasons == {"stop", "length"}


def test_greedy_equals_plain_generate_on_each_prompt_alone(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    found = sampler(tokenizer, temperature=0.0).sample(model, requests(group=1))
    plain = GenerationConfig(max_new_tokens=12, do_sample=False, eos_token_id=END, pad_token_id=END)
    for request, (one,) in zip(requests(group=1), found, strict=True):
        ids = torch.tensor([request.prompt_ids])
        output = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=plain)
        assert list(one.token_ids) == output[0, ids.shape[1] :].tolist()


def test_the_policy_scores_its_own_samples_alike(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    example = Example(id="0", document="", question="", answer="", task="multihop")
    found = sampler(tokenizer).sample(model, requests())
    groups = [
        RolloutGroup(example, request.prompt_ids, group) for request, group in zip(requests(), found, strict=True)
    ]
    packed = pack(groups, CPU)
    with torch.no_grad():
        scores = Policy(model, chunk=7)(packed, temperature=0.8)
    assert packed.sampler_logprobs is not None
    assert (scores.logprobs - packed.sampler_logprobs).abs().max() < 1e-5


def test_batching_order_and_shared_prefixes_change_nothing(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    wanted = requests()
    together = sampler(tokenizer).sample(model, wanted)
    for batch_tokens in (1, 100, 150, 400):
        same(sampler(tokenizer, batch_tokens=batch_tokens).sample(model, wanted), together)
    same(sampler(tokenizer).sample(model, wanted[::-1]), together[::-1])
    # All but the first completion of each group, as another rank would sample them.
    half = [replace(request, seeds=request.seeds[1:]) for request in wanted]
    same(sampler(tokenizer).sample(model, half), [group[1:] for group in together])
    # Three questions on each of two documents.
    documents = [request.prompt_ids for request in requests((30, 21))]
    questions = [
        SampleRequest(documents[i % 2] + tail.prompt_ids, tail.seeds, prefix_len=len(documents[i % 2]))
        for i, tail in enumerate(requests((1, 2, 5, 8, 3, 1)))
    ]
    alone = [sampler(tokenizer).sample(model, [replace(question, prefix_len=0)])[0] for question in questions]
    for batch_tokens in (1, 300, 10**6):
        same(sampler(tokenizer, batch_tokens=batch_tokens).sample(model, questions), alone)


@pytest.mark.parametrize("temperature", [0.0, 1.7])
def test_a_request_can_set_a_lower_limit(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, temperature: float
) -> None:
    limits = (3, None, 1, 12, 40, 7)
    wanted = [replace(one, max_new_tokens=limit) for one, limit in zip(requests(), limits, strict=True)]
    whole = sampler(tokenizer, temperature=temperature).sample(model, requests())
    found = sampler(tokenizer, temperature=temperature).sample(model, wanted)
    for limit, short, long in zip(limits, found, whole, strict=True):
        for one, other in zip(short, long, strict=True):
            assert one.token_ids == other.token_ids[: limit or 12]
            assert one.finish_reason == ("stop" if one.token_ids[-1] == END else "length")
            assert one.sampler_logprobs == pytest.approx(other.sampler_logprobs[: limit or 12], abs=1e-5)
    # Decoding stops at the longest limit of the requests.
    few = sampler(tokenizer, eos_ids=(VOCABULARY + 1,)).sample(
        model, [replace(one, max_new_tokens=2) for one in wanted]
    )
    assert {len(one.token_ids) for group in few for one in group} == {2}


def test_a_shared_document_is_computed_once(model: PreTrainedModel) -> None:
    document = tuple(range(4, 24))
    wanted = [SampleRequest((*document, 30 + i, 40), (0,), prefix_len=20) for i in range(3)]
    prefill, sizes = Prefill(model), []
    handle = model.base_model.register_forward_pre_hook(
        lambda module, arguments, options: sizes.append(options["input_ids"].shape[1]), with_kwargs=True
    )
    assert prefill.passes(wanted) == 4
    with torch.no_grad():
        for request in wanted:
            assert {keys.shape[2] for keys, _ in prefill.run(request)} == {21}
    handle.remove()
    assert sizes == [20, 1, 1, 1]


def test_a_prompt_is_stored_once_and_ended_rows_leave(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, rows = [], []

    def watched(query: Tensor, key: Tensor, value: Tensor, prompts: SharedPrompts, scale: float | None) -> Tensor:
        kept.append((tuple(prompts.keys.shape), prompts.rows.counts))
        rows.append(len(key))
        return attend(query, key, value, prompts, scale)

    monkeypatch.setattr(dispatch, "attend", watched)
    ends = tuple(range(10, 20))
    found = sampler(tokenizer, eos_ids=ends, max_new_tokens=40).sample(model, requests((30, 20, 1), group=8))
    heads, width = model.config.num_key_value_heads, model.config.head_dim
    assert kept[0] == ((3, heads, 29, width), (8, 8, 8))
    assert all(shape == (len(counts), heads, 29, width) for shape, counts in kept)
    assert [sum(counts) for _, counts in kept] == rows
    # At each step fewer than half of the rows have ended.
    layers = model.config.num_hidden_layers
    lengths = [len(one.token_ids) for group in found for one in group]
    for step, batch in enumerate(rows[::layers]):
        going = sum(length > step for length in lengths)
        assert going <= batch and (batch < 2 * going or going == batch)
    assert rows[0] == 24 > rows[-1]


def test_first_tokens_follow_the_models_distribution(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    prompt, draws = requests((9,))[0].prompt_ids, 20_000
    request = SampleRequest(prompt, tuple(sample_seed(1, 0, 0, i) for i in range(draws)))
    (group,) = sampler(tokenizer, temperature=1.3, max_new_tokens=1).sample(model, [request])
    probabilities = torch.softmax(full_logits(model, prompt, (0,))[0].double() / 1.3, -1)
    counts = Counter(one.token_ids[0] for one in group)
    observed = [counts[token] for token in range(VOCABULARY)]
    assert chisquare(observed, (probabilities / probabilities.sum() * draws).numpy()).pvalue > 0.01
    # The second token is independent of the first: given the most common first token, it follows its distribution.
    (group,) = sampler(tokenizer, temperature=1.3, max_new_tokens=2).sample(model, [request])
    first = counts.most_common(1)[0][0]
    after = Counter(one.token_ids[1] for one in group if one.token_ids[0] == first)
    probabilities = torch.softmax(full_logits(model, prompt, (first, 0))[1].double() / 1.3, -1)
    expected = probabilities / probabilities.sum() * after.total()
    assert chisquare([after[token] for token in range(VOCABULARY)], expected.numpy()).pvalue > 0.01


def test_a_sliced_vocabulary_is_never_left(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    found = sampler(tokenizer, vocabulary=20, temperature=2.0).sample(model, requests())
    for request, group in zip(requests(), found, strict=True):
        for one in group:
            assert max(one.token_ids) < 20
            logprobs = torch.log_softmax(full_logits(model, request.prompt_ids, one.token_ids)[:, :20] / 2.0, -1)
            expected = logprobs.gather(1, torch.tensor(one.token_ids)[:, None])[:, 0].tolist()
            assert one.sampler_logprobs == pytest.approx(expected, abs=1e-5)


def test_the_models_own_generation_defaults_do_not_leak_in(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    wanted = requests()
    expected = sampler(tokenizer).sample(model, wanted)
    published = GenerationConfig(
        do_sample=True,
        temperature=0.1,
        top_p=0.3,
        top_k=2,
        repetition_penalty=5.0,
        max_length=4,
        eos_token_id=[7, 8],
        suppress_tokens=list(range(10, 30)),
    )
    before, model.generation_config = model.generation_config, published
    try:
        same(sampler(tokenizer).sample(model, wanted), expected)
        assert model.generation_config is published
    finally:
        model.generation_config = before


def test_a_model_in_training_is_sampled_without_dropout_or_checkpointing(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    expected = sampler(tokenizer).sample(model, requests())
    model.activation_checkpointing_enable({"use_reentrant": False})
    model.train()
    try:
        same(sampler(tokenizer).sample(model, requests()), expected)
        assert model.training
        assert all(parameter.requires_grad for parameter in model.parameters())
    finally:
        model.activation_checkpointing_disable()
        model.eval()


def test_prefill_makes_no_square_mask(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    masks = []
    for layer in model.base_model.layers:
        original = layer.self_attn.forward

        def watched(*arguments: object, original: object = original, **options: object) -> object:
            masks.append(options["attention_mask"])
            return original(*arguments, **options)

        monkeypatch.setattr(layer.self_attn, "forward", watched)
    with torch.no_grad():
        Prefill(model).run(SampleRequest(tuple(range(4, 40)), (0,)))
    assert masks == [None, None]


def test_several_end_tokens_and_no_requests(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    ends = tuple(range(10, 40))
    found = sampler(tokenizer, eos_ids=ends).sample(model, requests())
    for one in (one for group in found for one in group):
        assert not set(one.token_ids[:-1]) & set(ends)
        assert one.finish_reason == ("stop" if one.token_ids[-1] in ends else "length")
    assert sampler(tokenizer).sample(model, []) == []
    assert sampler(tokenizer, eos_ids=None).eos_ids == (tokenizer.eos_token_id,)


def test_bfloat16_logprobs_are_those_of_a_full_forward_pass(tokenizer: PreTrainedTokenizerBase) -> None:
    model = Policy(tiny_model(dtype=torch.bfloat16, vocab_size=VOCABULARY, initializer_range=0.1), chunk=16).model
    for request, group in zip(requests(), sampler(tokenizer).sample(model, requests()), strict=True):
        for one in group:
            logits = full_logits(model, request.prompt_ids, one.token_ids).float()
            expected = torch.log_softmax(logits / 0.8, -1).gather(1, torch.tensor(one.token_ids)[:, None])[:, 0]
            assert one.sampler_logprobs == pytest.approx(expected.tolist(), abs=0.05)


def test_unusable_requests_and_models_are_rejected(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ValueError, match="empty"):
        sampler(tokenizer).sample(model, [SampleRequest((), (0,))])
    with pytest.raises(ValueError, match=r"117 .*max_new_tokens=12 .*128"):
        sampler(tokenizer).sample(model, requests((117,)))
    with pytest.raises(ValueError, match="eos_token"):
        sampler(tokenizer, eos_ids=())
    broken = tiny_model(dtype=torch.float32, vocab_size=VOCABULARY)
    torch.nn.init.constant_(broken.get_output_embeddings().weight, torch.nan)
    with pytest.raises(ValueError, match=r"lower optim\.lr"):
        sampler(tokenizer).sample(broken, requests())
    sliding = tiny_model(
        dtype=torch.float32, vocab_size=VOCABULARY, use_sliding_window=True, sliding_window=4, max_window_layers=0
    )
    assert len(DynamicCache(config=sliding.config).layers) == 2
    with pytest.raises(ValueError, match="choose a model with full attention"):
        sampler(tokenizer).sample(sliding, requests())
