"""Model FLOPs of packed groups: what the arithmetic needs, not what an implementation recomputes.

A multiply-add is two. A matrix with n entries costs 2n per token; attention costs 4 x heads x head size per pair of
query and key and layer (scores and values); the output head runs on loss tokens only. The prompt counts once per
group, because that is how often it is computed. Backward costs twice the forward.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # counting needs neither, so reports can count without them
    from torch import Tensor
    from transformers import PreTrainedModel

TRAINING = 3
"""Forward and backward, in forwards."""


class Group(Protocol):
    """A prompt with its completions, in tokens. ``types.GroupSpan`` is one; lengths may be means."""

    @property
    def prompt_len(self) -> float: ...

    @property
    def completion_lens(self) -> Sequence[float]: ...


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The sizes that FLOPs depend on."""

    body_parameters: int
    """Without embedding and output head."""
    head_parameters: int
    num_layers: int
    attention_width: int
    """Heads times head size."""

    @classmethod
    def of(cls, model: "PreTrainedModel") -> "ModelShape":
        """Works on sharded models too, whose parameters know their whole size."""
        sizes = {name: getattr(p, "ds_numel", p.numel()) for name, p in model.base_model.named_parameters()}
        embedding: Tensor = model.get_input_embeddings().weight  # type: ignore[assignment]
        vocabulary = getattr(embedding, "ds_numel", embedding.numel())
        config = model.config
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return cls(
            body_parameters=sum(sizes.values()) - vocabulary,
            head_parameters=vocabulary,
            num_layers=config.num_hidden_layers,
            attention_width=config.num_attention_heads * head_dim,
        )

    def forward(self, groups: Iterable[Group], loss_tokens: float) -> float:
        """FLOPs of one forward pass over packed groups, with ``loss_tokens`` scored."""
        tokens, pairs = 0.0, 0.0
        for group in groups:
            prompt = group.prompt_len
            tokens += prompt + sum(group.completion_lens)
            pairs += prompt * (prompt + 1) / 2 + sum(c * prompt + c * (c + 1) / 2 for c in group.completion_lens)
        attention = 4.0 * self.num_layers * self.attention_width * pairs
        return 2.0 * self.body_parameters * tokens + attention + 2.0 * self.head_parameters * loss_tokens


def step_flops(
    student: ModelShape,
    frozen: Iterable[ModelShape],
    groups: Sequence[Group],
    loss_tokens: float,
    *,
    updates: int,
    sampled: bool,
) -> float:
    """FLOPs of a step on packed groups: sampling, teacher and reference, and ``updates`` optimizer steps.

    Sampling computes each prompt and each completion once; old log-probs, which several updates need, once more.
    """
    passes = TRAINING * updates + sampled + (updates > 1)
    return student.forward(groups, loss_tokens) * passes + sum(one.forward(groups, loss_tokens) for one in frozen)
