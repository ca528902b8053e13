"""Whether a model's scores and samples on shared prompts are those of its own forward pass.

An architecture can satisfy ``dispatch.install`` and still be scored wrongly: its layers may use positions of their own,
or share keys and values. So every model is run on a few tokens before it is trained or evaluated: packed or decoding,
as it will be used, and one sequence at a time through transformers' own attention.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from longctx_rl import cli
from longctx_rl.data.packing import pack
from longctx_rl.engine import distributed
from longctx_rl.policy.attention import dispatch
from longctx_rl.policy.loading import context_length, end_tokens
from longctx_rl.policy.policy import Policy
from longctx_rl.policy.scoring import log_softmax
from longctx_rl.rollout import RolloutFailed, SampleRequest
from longctx_rl.rollout.hf import HFSampler
from longctx_rl.types import Completion, Example, RolloutGroup

ROUNDING, ROUNDING_16_BIT = 0.01, 0.5
"""Largest mean difference of a token's log-probability, in nats, that counts as rounding.

In float32 it stays below 1e-3 even in deep models. In 16 bits, a logit of 32 is rounded to a multiple of 0.25, and all
layers add to that. A wrong mask or position changes a trained model's scores by a nat or more.
"""
GROUPS = ((7, (3, 5)), (4, (4, 2)))
"""Tokens of each prompt, and of its completions."""
PREFIX, NEW_TOKENS = 3, 4
FAILURES = (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What a model raises whose layers expect other arguments, masks or caches."""
EXAMPLE = Example(id="", document="", question="", answer="", task="")


@torch.no_grad()
def check_scores(policy: Policy, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ValueError if the completions of a packed row are scored differently from plain sequences, or at random.

    The row is scored in the model's current mode, where training mode must not leave any dropout. The positions of its
    second group end where the context does, because some models choose their rotary frequencies by the largest one.
    """
    model, vocabulary = policy.model, policy.vocabulary
    draw = _ordinary_tokens(model, tokenizer, vocabulary)
    groups = [
        RolloutGroup(EXAMPLE, draw(length), tuple(Completion(draw(n), "", "recorded") for n in lens))
        for length, lens in GROUPS
    ]
    row = pack(groups, model.device)
    far = context_length(model) - len(row.input_ids)
    row = replace(row, position_ids=row.position_ids + far * row.group_ids)
    with _failures_refused(model):
        before = _random_states(model.device)
        logp = log_softmax(policy.head, policy.hidden(row), 1.0, vocabulary)
        fixed = all(torch.equal(*states) for states in zip(before, _random_states(model.device), strict=True))
        expected = [
            _plain_logprobs(model, group.prompt_ids, completion.token_ids, vocabulary, start=far * number)
            for number, group in enumerate(groups)
            for completion in group.completions
        ]
    if not fixed:
        raise ValueError(
            f"{type(model).__name__} draws random numbers in training, so it would not be the policy that is sampled: "
            f"set the dropout and noise in its config.json to 0, or {dispatch.OTHERS}"
        )
    _compare(model, "a packed row", logp.gather(-1, row.target_ids[:, None])[:, 0], torch.cat(expected))


@torch.no_grad()
def check_samples(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, vocabulary: int | None = None) -> None:
    """Raise ValueError if decoding on shared prompts records other log-probabilities than the model assigns."""
    draw = _ordinary_tokens(model, tokenizer, vocabulary)
    prefix = draw(PREFIX)
    requests = [SampleRequest(prefix + draw(length), tuple(range(len(lens))), PREFIX) for length, lens in GROUPS]
    sampler = HFSampler(
        tokenizer,
        temperature=0.0,
        max_new_tokens=NEW_TOKENS,
        batch_tokens=1024,
        eos_ids=end_tokens(model, tokenizer),
        vocabulary=vocabulary,
    )
    with _failures_refused(model):
        pairs = [
            (completion, _plain_logprobs(model, request.prompt_ids, completion.token_ids, vocabulary))
            for request, group in zip(requests, sampler.sample(model, requests), strict=True)
            for completion in group
        ]
    recorded = [logprob for completion, _ in pairs for logprob in completion.sampler_logprobs or ()]
    expected = torch.cat([logprobs for _, logprobs in pairs])
    _compare(model, "decoding on shared prompts", expected.new_tensor(recorded), expected)


def _ordinary_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, vocabulary: int | None
) -> Callable[[int], tuple[int, ...]]:
    """Return a function that draws n tokens, always the same ones and none of them special."""
    rows = min(len(tokenizer), model.config.vocab_size, vocabulary or len(tokenizer))
    ordinary = sorted(set(range(rows)) - set(tokenizer.all_special_ids))
    generator = random.Random(0)
    return lambda count: tuple(generator.choices(ordinary, k=count))


def _plain_logprobs(
    model: PreTrainedModel,
    prompt: tuple[int, ...],
    completion: tuple[int, ...],
    vocabulary: int | None,
    start: int = 0,
) -> Tensor:
    """Return the log-probability of each token of a completion, [C], without anything of this package.

    Args:
        start: position of the prompt's first token.
    """
    ids = torch.tensor([prompt + completion], device=model.device)
    positions = torch.arange(start, start + ids.shape[1], device=model.device)[None]
    training = model.training
    model.eval()
    model.set_attn_implementation("eager")
    try:
        logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits[0, len(prompt) - 1 : -1]
    finally:
        model.set_attn_implementation(dispatch.NAME)
        model.train(training)
    return log_softmax(nn.Identity(), logits, 1.0, vocabulary).gather(-1, ids[0, len(prompt) :, None])[:, 0]


def _random_states(device: torch.device) -> list[Tensor]:
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


@contextmanager
def _failures_refused(model: PreTrainedModel) -> Iterator[None]:
    try:
        yield
    except FAILURES as error:
        if cli.is_out_of_memory(error):
            raise
        cause = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        name = type(model).__name__
        raise ValueError(f"{name} cannot be run on shared prompts ({cause}): {dispatch.OTHERS}") from error


def _compare(model: PreTrainedModel, way: str, logprobs: Tensor, expected: Tensor) -> None:
    """Raise ValueError, on all ranks, if the mean absolute difference is more than rounding."""
    mean = float((logprobs - expected).abs().nan_to_num(torch.inf).mean())
    difference = distributed.all_reduce_max({"mean": mean})["mean"]
    if difference > (ROUNDING_16_BIT if model.dtype.itemsize == 2 else ROUNDING):
        raise ValueError(
            f"{type(model).__name__} gives a token another log-probability in {way} than alone, by {difference:.2g} "
            f"nats on average: {dispatch.OTHERS}"
        )


def check_gap(gap: float, largest: float) -> None:
    """Raise RolloutFailed if tokens were drawn with other probabilities than the policy's, by more than rounding.

    Args:
        gap: mean absolute difference of their log-probabilities, in nats.
    """
    if not gap <= largest:
        raise RolloutFailed(
            f"the server's log-probabilities differ from the policy's by {gap:.2g} nats a token, more than "
            f"{largest:g} (rollout.max_gap): it has other weights, another dtype, or was started without "
            "--logprobs-mode processed_logprobs"
        )
