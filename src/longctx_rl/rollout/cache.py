"""Key-value caches of the sampler: each prompt computed once, then laid side by side for decoding."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from longctx_rl.rollout import SampleRequest


class ReservedLayer(DynamicLayer):
    """A cache layer with room for ``capacity`` tokens, so that a decoding step writes one token and copies nothing."""

    def __init__(self, capacity: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.capacity = capacity
        self.length = 0

    def reserve(self, like: Tensor, rows: int) -> None:
        """Make room for ``rows`` sequences with the heads, width, type and device of ``like``, [*, heads, *, d]."""
        shape = (rows, like.shape[1], self.capacity, like.shape[3])
        # Zeros and not empty: what is masked still enters a product, where a stray nan would survive.
        self.room = like.new_zeros(shape), like.new_zeros(shape)
        self.dtype, self.device = like.dtype, like.device
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.reserve(key_states, key_states.shape[0])

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append [B, heads, n, d] keys and values; returns all of them so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.length
        keys, values = self._up_to(start + key_states.shape[-2])
        keys[:, :, start:] = key_states
        values[:, :, start:] = value_states
        return keys, values

    def place(self, rows: slice, end: int, prompt: tuple[Tensor, Tensor]) -> None:
        """Repeat one prompt's keys and values, [1, heads, n, d], over ``rows``, up to position ``end``."""
        for room, states in zip(self._up_to(end), prompt, strict=True):
            room[rows, :, end - states.shape[-2] :] = states

    def _up_to(self, length: int) -> tuple[Tensor, Tensor]:
        """Views of the first ``length`` positions, which are the cache from now on."""
        assert length <= self.capacity
        self.length = length
        keys, values = (room[:, :, :length] for room in self.room)
        self.keys, self.values = keys, values
        return keys, values


class Prefill:
    """Runs prompts through a model, one at a time and all but their last token.

    A prompt alone needs no mask, so none of P x P is made. A prefix that the prompt before has just used is kept.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.prefix: tuple[int, ...] = ()
        self.cache = DynamicCache(config=model.config)

    def passes(self, requests: Sequence[SampleRequest]) -> int:
        """Forward passes that these requests take, following each other and whatever came last."""
        count, known = 0, self.prefix
        for request in requests:
            prefix, rest = _split(request)
            count += bool(prefix and prefix != known) + bool(rest)
            known = prefix
        return count

    def run(self, request: SampleRequest) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of a prompt without its last token, [1, heads, P - 1, d] per layer; empty for one token."""
        prefix, rest = _split(request)
        if prefix and prefix == self.prefix:
            self.cache.crop(len(prefix) - self.cache.get_seq_length())
        else:
            self.cache = DynamicCache(config=self.model.config)
            self._extend(prefix)
        self.prefix = prefix
        self._extend(rest)
        layers = full_attention_layers(self.cache)
        return [(layer.keys, layer.values) for layer in layers if layer.keys is not None and layer.values is not None]

    def idle(self, token: int) -> None:
        """A pass whose result is not used: ranks that hold each other's weights must make equally many."""
        self.model.base_model(input_ids=torch.tensor([[token]], device=self.model.device), use_cache=False)

    def _extend(self, tokens: tuple[int, ...]) -> None:
        if tokens:
            ids = torch.tensor([tokens], device=self.model.device)
            self.model.base_model(input_ids=ids, past_key_values=self.cache, use_cache=True)


def _split(request: SampleRequest) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The prefix and the rest of a prompt without its last token."""
    body = request.prompt_ids[:-1]
    return body[: request.prefix_len], body[request.prefix_len :]


def full_attention_layers(cache: Cache) -> list[DynamicLayer]:
    """The layers of a cache that keep every token.

    Raises:
        ValueError: the model has layers of another kind, such as sliding windows or linear attention.
    """
    layers = [layer for layer in cache.layers if type(layer) is DynamicLayer]
    if len(layers) != len(cache.layers):
        raise ValueError(
            "the sampler needs full attention in every layer: choose a model without sliding windows "
            "or linear attention, such as Qwen3 or Llama"
        )
    return layers


def decode_cache(model: PreTrainedModel, capacity: int) -> tuple[Cache, list[ReservedLayer]]:
    """An empty cache for ``capacity`` tokens, and its layers."""
    layers = [ReservedLayer(capacity) for _ in full_attention_layers(DynamicCache(config=model.config))]
    return Cache(layers=list(layers)), layers
