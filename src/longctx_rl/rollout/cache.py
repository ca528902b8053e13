"""Key-value caches of the sampler: each prompt is computed and stored once, however many rows continue it."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from longctx_rl.policy.attention.shared_prompts import RowsOfPrompts, SharedPrompts
from longctx_rl.rollout import SampleRequest


class ReservedLayer(DynamicLayer):
    """A cache layer preallocated for ``capacity`` tokens, so that a decode step writes one token and copies nothing."""

    def __init__(self, capacity: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.capacity = capacity
        self.length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        rows, heads, _, width = key_states.shape
        like = value_states  # under autocast keys arrive in float32, and attention casts them to the values' dtype
        self.room = tuple(like.new_empty(rows, heads, self.capacity, width) for _ in range(2))
        self.dtype, self.device = like.dtype, like.device
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append keys and values, [B, heads, n, d], and return all keys and values so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, self.length = self.length, self.length + key_states.shape[-2]
        assert self.length <= self.capacity
        for room, states in zip(self.room, (key_states, value_states), strict=True):
            room[:, :, start : self.length] = states
        return self._show()

    def select(self, rows: Tensor) -> None:
        """Keep the rows of an index or a mask."""
        self.room = tuple(room[rows] for room in self.room)
        self._show()

    def _show(self) -> tuple[Tensor, Tensor]:
        keys, values = (room[:, :, : self.length] for room in self.room)
        self.keys, self.values = keys, values
        return keys, values


class DecodeCache:
    """The cache of a batch of rows in decode: each prompt once, and each row's own tokens.

    Args:
        capacity: number of tokens that a row may add.
        prompt_lens: number of tokens of each prompt.
        groups: number of rows of each prompt.
    """

    def __init__(
        self, model: PreTrainedModel, capacity: int, prompt_lens: Sequence[int], groups: Sequence[int]
    ) -> None:
        layers = [ReservedLayer(capacity) for _ in full_attention_layers(DynamicCache(config=model.config))]
        self.layers = layers
        self.own = Cache(layers=list(layers))
        """The rows' own tokens, as ``generate`` expects them."""
        self.prompts: list[SharedPrompts] = []
        """The prompts, per layer; empty if no prompt has a token."""
        # Under autocast the prefill's cache is in float32, the dtype of its first entries.
        autocast = torch.is_autocast_enabled(model.device.type)
        self.dtype = torch.get_autocast_dtype(model.device.type) if autocast else model.dtype
        self.lens = torch.tensor(prompt_lens, device=model.device)
        self.rows = RowsOfPrompts.of(groups, model.device)

    def place(self, number: int, prompt: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Store the keys and values of a prompt, [1, kv_heads, n, d] per layer; an empty prompt has no layers."""
        if not self.prompts and prompt:
            self.prompts = [self._empty(keys, values) for keys, values in prompt]
        for shared, (keys, values) in zip(self.prompts, prompt, strict=False):
            shared.keys[number, :, : keys.shape[2]] = keys[0]
            shared.values[number, :, : values.shape[2]] = values[0]

    def select(self, keep: Tensor) -> None:
        """Keep the rows of the mask, [B], and the prompts that still have a row."""
        for layer in self.layers:
            layer.select(keep)
        counts = [int(part.sum()) for part in torch.split(keep.cpu(), list(self.rows.counts))]
        self.rows = RowsOfPrompts.of([count for count in counts if count], keep.device)
        kept = torch.tensor([number for number, count in enumerate(counts) if count], device=keep.device)
        whole = len(kept) == len(counts)
        for index, shared in enumerate(self.prompts):
            keys, values, bias = (
                part if whole or part is None else part[kept] for part in (shared.keys, shared.values, shared.bias)
            )
            assert keys is not None and values is not None
            self.prompts[index] = SharedPrompts(keys, values, bias, self.rows)

    def _empty(self, keys: Tensor, values: Tensor) -> SharedPrompts:
        longest = int(self.lens.max())
        shape = (len(self.lens), keys.shape[1], longest)
        bias = None
        if int(self.lens.min()) < longest:
            behind = torch.arange(longest, device=keys.device) >= self.lens[:, None]
            # Half the lowest finite number, not -inf: a prompt without tokens gets weight zero instead of nan.
            bias = torch.zeros(behind.shape, dtype=self.dtype, device=keys.device)
            bias = bias.masked_fill_(behind, torch.finfo(self.dtype).min / 2)[:, None, None]
        # Zeros, not uninitialised memory: masked entries still enter a product, where a nan would persist.
        rooms = (like.new_zeros(*shape, like.shape[3], dtype=self.dtype) for like in (keys, values))
        return SharedPrompts(next(rooms), next(rooms), bias, self.rows)


class Prefill:
    """Prefill: runs prompts through a model one at a time, without their last token.

    A single prompt needs no attention mask, so no P x P mask is allocated. The prefix of the previous prompt is reused.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.prefix: tuple[int, ...] = ()
        self.cache = DynamicCache(config=model.config)

    def passes(self, requests: Sequence[SampleRequest]) -> int:
        """Return the number of forward passes for these requests, in order and after the last prompt that ran."""
        count, known = 0, self.prefix
        for request in requests:
            prefix, rest = _split(request)
            count += bool(prefix and prefix != known) + bool(rest)
            known = prefix
        return count

    def run(self, request: SampleRequest) -> list[tuple[Tensor, Tensor]]:
        """Return keys and values of a prompt without its last token, [1, heads, P - 1, d] per layer; [] if P is 1."""
        prefix, rest = _split(request)
        if prefix and prefix == self.prefix:
            self.cache.crop(len(prefix) - self.cache.get_seq_length())
        else:
            self.cache = DynamicCache(config=self.model.config)
            self._extend(prefix)
        self.prefix = prefix
        self._extend(rest)
        layers = full_attention_layers(self.cache)
        if not prefix:  # the next request cannot use it, and it is as large as what the caller keeps
            self.cache = DynamicCache(config=self.model.config)
        return [(layer.keys, layer.values) for layer in layers if layer.keys is not None and layer.values is not None]

    def idle(self, token: int) -> None:
        """Run a pass whose result is not used: ranks that shard weights must make equally many passes."""
        self.model.base_model(input_ids=torch.tensor([[token]], device=self.model.device), use_cache=False)

    def _extend(self, tokens: tuple[int, ...]) -> None:
        if tokens:
            ids = torch.tensor([tokens], device=self.model.device)
            self.model.base_model(input_ids=ids, past_key_values=self.cache, use_cache=True, packed_prefill=True)


def _split(request: SampleRequest) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Split a prompt without its last token into its prefix and the rest."""
    body = request.prompt_ids[:-1]
    return body[: request.prefix_len], body[request.prefix_len :]


def full_attention_layers(cache: Cache) -> list[DynamicLayer]:
    """Return a cache's layers. Each keeps every token: ``dispatch.install`` rejects models with other layers."""
    layers = [layer for layer in cache.layers if type(layer) is DynamicLayer]
    assert len(layers) == len(cache.layers)
    return layers
