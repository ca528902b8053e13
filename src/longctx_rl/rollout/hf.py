"""Sampling with transformers' ``generate``, on prompts that are computed and stored once.

Each sequence has its own stream of uniform random numbers, generated from its seed before decoding starts. Tokens come
from inverse transform sampling, so a draw depends only on weights, prompt and seed, and the recorded log-probability is
that of the distribution the token was drawn from.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from longctx_rl.policy.attention import dispatch
from longctx_rl.policy.attention.shared_prompts import reading
from longctx_rl.rollout import SampleRequest
from longctx_rl.rollout.cache import DecodeCache, Prefill
from longctx_rl.types import Completion


class TokenDraw(LogitsProcessor):
    """Draws each sequence's next token, records its log-probability, and masks all other tokens for ``generate``.

    Args:
        uniforms: [B, max_new_tokens] in [0, 1); None: greedy decoding.
        temperature: divides the logits; 0 counts as 1.
        vocabulary: number of leading rows of the head that can be drawn; None: all.
    """

    def __init__(self, uniforms: Tensor | None, temperature: float, vocabulary: int | None) -> None:
        self.uniforms = uniforms
        self.temperature = temperature or 1.0
        self.vocabulary = vocabulary
        self.logprobs: list[Tensor] = []  # [B] per step

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Map [B, V] logits to [B, V] scores that are zero at the drawn token and -inf elsewhere."""
        logprobs = torch.log_softmax(scores[:, : self.vocabulary].float() / self.temperature, -1)
        if self.uniforms is None:
            token = logprobs.argmax(-1, keepdim=True)
        else:
            step = len(self.logprobs)
            cumulative = logprobs.double().exp().cumsum(-1)
            # A uniform number is at most 1 - 2^-53, so the product stays below the total; only nan needs the clamp.
            point = self.uniforms[:, step : step + 1] * cumulative[:, -1:]
            token = torch.searchsorted(cumulative, point, right=True).clamp_(max=logprobs.shape[1] - 1)
        self.logprobs.append(logprobs.gather(1, token)[:, 0])
        return torch.full_like(logprobs, -torch.inf).scatter_(1, token, 0.0)


class HalfEnded(StoppingCriteria):
    """Stops ``generate`` once half of its sequences have ended, so that they can leave the batch.

    Args:
        eos_ids: end tokens.
        limits: [B] length limit of each sequence.
    """

    def __init__(self, eos_ids: Sequence[int], limits: Tensor) -> None:
        self.eos_ids, self.limits = eos_ids, limits
        self.steps = 0
        self.ended: Tensor | None = None  # [B]

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:
        """Return [B] booleans, all equal."""
        self.steps += 1
        ends = torch.isin(input_ids[:, -1], torch.tensor(self.eos_ids, device=input_ids.device))
        ends |= self.limits <= self.steps
        self.ended = ends if self.ended is None else self.ended | ends
        return (2 * self.ended.sum() >= len(self.ended)).expand(len(self.ended))


class HFSampler:
    """Samples completions with transformers' ``generate``.

    Args:
        tokenizer: decodes completions.
        temperature: divides the logits. 0: greedy decoding, whose log-probabilities are those at temperature 1.
        max_new_tokens: length limit of a completion; a request can set a lower one.
        batch_tokens: number of tokens whose keys and values are in memory at a time: each prompt once, with padding,
            and the completions at full length. A single prompt may exceed it.
        eos_ids: tokens that end a completion; None: the tokenizer's end token.
        vocabulary: number of leading rows of the head that can be drawn; None: all.
        synced_gpus: the weights are sharded, so that all ranks must run equally many forward passes.

    Raises:
        ValueError: there is no end token.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        temperature: float,
        max_new_tokens: int,
        batch_tokens: int,
        eos_ids: Sequence[int] | None = None,
        vocabulary: int | None = None,
        synced_gpus: bool = False,
    ) -> None:
        if eos_ids is None and tokenizer.eos_token_id is not None:
            eos_ids = (tokenizer.eos_token_id,)
        if not eos_ids:
            raise ValueError("the tokenizer has no end token: set eos_token in its tokenizer_config.json")
        self.tokenizer = tokenizer
        self.temperature = temperature
        self.max_new_tokens = max_new_tokens
        self.batch_tokens = batch_tokens
        self.eos_ids = tuple(eos_ids)
        self.vocabulary = vocabulary
        self.synced_gpus = synced_gpus
        # A rank without requests runs this one to make as many passes as the others.
        self.idle_request = SampleRequest(prompt_ids=self.eos_ids[:1], seeds=(0,))

    @torch.no_grad()
    def sample(self, model: PreTrainedModel, requests: Sequence[SampleRequest]) -> list[tuple[Completion, ...]]:
        """Return the completions of each request, in the order of the requests and of their seeds. See ``Sampler``.

        Raises:
            ValueError: a prompt is empty or leaves no room in the model's context, the model's attention cannot be
                replaced, or its logits are not finite.
        """
        self._check_lengths(model, requests)
        requests = _without_lone_prefixes(requests)
        results: list[tuple[Completion, ...]] = [()] * len(requests)
        plan = self._plan(requests)
        batches = [[requests[index] for index in indices] for indices in plan]
        with _ready_to_generate(model):
            prefill = Prefill(model)
            for number, passes in enumerate(self._agree_on_passes(batches, prefill)):
                if number < len(batches):
                    completions = self._decode(prefill, batches[number], passes, self.max_new_tokens)
                    for index, group in zip(plan[number], completions, strict=True):
                        results[index] = group
                else:
                    self._decode(prefill, [self.idle_request], passes, limit=1)
        return results

    def _check_lengths(self, model: PreTrainedModel, requests: Sequence[SampleRequest]) -> None:
        context = getattr(model.config, "max_position_embeddings", None)
        for request in requests:
            tokens = len(request.prompt_ids)
            if not tokens:
                raise ValueError("cannot sample from an empty prompt: give at least one token")
            if context is not None and tokens + self.max_new_tokens > context:
                raise ValueError(
                    f"a prompt of {tokens} tokens and max_new_tokens={self.max_new_tokens} exceed the model's context "
                    f"of {context}: use shorter prompts, fewer new tokens, or a model with a longer context"
                )

    def _plan(self, requests: Sequence[SampleRequest]) -> list[list[int]]:
        """Return the indices of each decode batch's requests: similar lengths together, longest first."""

        def order(index: int) -> tuple[int, tuple[int, ...], int]:
            request = requests[index]
            prefix = request.prompt_ids[: request.prefix_len]
            return -(len(prefix) or len(request.prompt_ids)), prefix, -len(request.prompt_ids)

        batches: list[list[int]] = []
        rows = longest = 0
        for index in sorted(range(len(requests)), key=order):
            group, length = len(requests[index].seeds), len(requests[index].prompt_ids)
            prompts = (len(batches[-1]) + 1) * max(longest, length) if batches else 0
            if not batches or prompts + (rows + group) * self.max_new_tokens > self.batch_tokens:
                batches.append([])
                rows = longest = 0
            batches[-1].append(index)
            rows, longest = rows + group, max(longest, length)
        return batches

    def _agree_on_passes(self, batches: Sequence[Sequence[SampleRequest]], prefill: Prefill) -> list[int]:
        """Return the number of prefill passes before each decode batch.

        That is the maximum over ranks, for as many batches as the rank with the most batches has.
        """
        passes = [prefill.passes(batch) for batch in batches]
        if not (self.synced_gpus and dist.is_initialized()):
            return passes
        device = prefill.model.device
        count = torch.tensor(len(passes), device=device)
        dist.all_reduce(count, op=dist.ReduceOp.MAX)
        agreed = torch.zeros(int(count), dtype=torch.int64, device=device)
        agreed[: len(passes)] = torch.tensor(passes, dtype=torch.int64, device=device)
        dist.all_reduce(agreed, op=dist.ReduceOp.MAX)
        result: list[int] = agreed.tolist()
        return result

    def _decode(
        self, prefill: Prefill, requests: Sequence[SampleRequest], passes: int, limit: int
    ) -> list[tuple[Completion, ...]]:
        """Complete the requests of one batch together, after exactly ``passes`` prefill passes."""
        model, device = prefill.model, prefill.model.device
        groups = [len(request.seeds) for request in requests]
        lengths = torch.tensor([len(request.prompt_ids) for request in requests])
        # A rank that has finished still feeds its last token while others decode, so it needs the full capacity.
        cache = DecodeCache(model, self.max_new_tokens, (lengths - 1).tolist(), groups)
        for _ in range(passes - prefill.passes(requests)):
            prefill.idle(self.eos_ids[0])
        for number, request in enumerate(requests):
            cache.place(number, prefill.run(request))
        repeats = torch.tensor(groups)
        positions = (lengths - 1).repeat_interleave(repeats).to(device)
        last = torch.tensor([request.prompt_ids[-1] for request in requests]).repeat_interleave(repeats).to(device)
        uniforms = self._uniforms(requests, device)
        own = torch.tensor([min(limit, request.max_new_tokens or limit) for request in requests])
        limits = own.repeat_interleave(repeats).to(device)
        if not self.synced_gpus:
            limit = int(own.max())
        tokens = last.new_full((len(last), limit), self.eos_ids[0])
        logprobs = torch.zeros(tokens.shape, device=device)
        live = torch.arange(len(last), device=device)
        done = 0
        while True:
            draw = TokenDraw(uniforms[live, done:] if uniforms is not None else None, self.temperature, self.vocabulary)
            half = HalfEnded(self.eos_ids, limits[live] - done)
            with reading(cache.prompts):
                output = model.generate(  # type: ignore[operator]
                    input_ids=last[:, None],
                    attention_mask=last.new_ones(len(last), done + 1),
                    position_ids=positions[live, None] + done,
                    past_key_values=cache.own,
                    generation_config=self._generation_config(limit - done),
                    logits_processor=LogitsProcessorList([draw]),
                    stopping_criteria=StoppingCriteriaList([] if self.synced_gpus else [half]),
                    synced_gpus=self.synced_gpus,
                )
            drawn = output[:, 1:]
            upto = done + drawn.shape[1]
            tokens[live, done:upto] = drawn
            logprobs[live, done:upto] = torch.stack(draw.logprobs, 1)
            done = upto
            going = ~torch.isin(drawn, torch.tensor(self.eos_ids, device=device)).any(1) & (limits[live] > done)
            # With sharded weights every rank makes exactly one call of generate.
            if self.synced_gpus or done == limit or not going.any():
                break
            live, last = live[going], drawn[going, -1]
            cache.select(going)
        completions = iter(self._completions(tokens, logprobs, limits))
        return [tuple(next(completions) for _ in range(group)) for group in groups]

    def _uniforms(self, requests: Sequence[SampleRequest], device: torch.device) -> Tensor | None:
        """Return [B, max_new_tokens] float64 in [0, 1), each row a stream from its seed; None for greedy decoding."""
        if self.temperature == 0:
            return None
        # Philox uses the whole seed as its key; torch's CPU generator reads the lower 32 bits only.
        streams = [np.random.Generator(np.random.Philox(key=seed)) for request in requests for seed in request.seeds]
        return torch.from_numpy(np.stack([stream.random(self.max_new_tokens) for stream in streams])).to(device)

    def _generation_config(self, limit: int) -> GenerationConfig:
        return GenerationConfig(
            max_new_tokens=limit,
            do_sample=False,
            eos_token_id=list(self.eos_ids),
            pad_token_id=self.eos_ids[0],
            use_cache=True,
            disable_compile=True,
        )

    def _completions(self, tokens: Tensor, logprobs: Tensor, limits: Tensor) -> list[Completion]:
        """Truncate each row of [B, n] tokens after its first end token, or at its limit, [B]."""
        ended = torch.isin(tokens, torch.tensor(self.eos_ids, device=tokens.device))
        ended &= torch.arange(tokens.shape[1], device=tokens.device) < limits[:, None]
        stopped = ended.any(1)
        lengths = torch.where(stopped, ended.int().argmax(1) + 1, limits)
        past_end = torch.arange(tokens.shape[1], device=tokens.device) >= lengths[:, None]
        if not (logprobs.isfinite() | past_end).all():
            raise ValueError(
                "the policy's logits are not finite, so its weights are broken: start from an earlier checkpoint with "
                "a lower optim.lr"
            )
        results = []
        columns = (tokens.tolist(), logprobs.tolist(), lengths.tolist(), stopped.tolist())
        for ids, scores, length, stop in zip(*columns, strict=True):
            text = self.tokenizer.decode(ids[:length], skip_special_tokens=True)
            assert isinstance(text, str)
            kept = slice(length)
            results.append(Completion(tuple(ids[kept]), text, "stop" if stop else "length", tuple(scores[kept])))
        return results


class ModelSampler:
    """Samples with an ``HFSampler`` from the model that ``weights`` yields. See ``Sampler``.

    Args:
        weights: opened for each call, by all ranks together.
    """

    def __init__(self, sampler: HFSampler, weights: Callable[[], AbstractContextManager[PreTrainedModel]]) -> None:
        self._sampler, self._weights = sampler, weights

    def sample(self, requests: Sequence[SampleRequest]) -> list[tuple[Completion, ...]]:
        """Return the completions of each request. See ``HFSampler.sample``."""
        with self._weights() as model:
            return self._sampler.sample(model, requests)


def _without_lone_prefixes(requests: Sequence[SampleRequest]) -> list[SampleRequest]:
    """Return the requests, with a prefix only where another request shares it."""
    prefixes = [request.prompt_ids[: request.prefix_len] for request in requests]
    uses = Counter(prefixes)
    return [
        request if uses[prefix] > 1 else replace(request, prefix_len=0)
        for request, prefix in zip(requests, prefixes, strict=True)
    ]


@contextmanager
def _ready_to_generate(model: PreTrainedModel) -> Iterator[None]:
    """Set evaluation mode and shared prompts, and remove the model's generation defaults; restore all of it afterwards.

    ``generate`` fills the unset fields of a GenerationConfig from the model's own, so a top-p or repetition penalty
    that a model was published with would change the distribution behind the recorded log-probabilities.
    """
    training, defaults, attends = model.training, model.generation_config, model.config._attn_implementation
    dispatch.install(model)
    model.eval()
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.train(training)
        model.generation_config = defaults
        model.set_attn_implementation(attends)
