"""The sizes of a decoder that memory depends on, from its config.json alone."""

from dataclasses import dataclass

from transformers import PreTrainedConfig

from longctx_rl.config.schema import Config
from longctx_rl.policy.loading import load_config


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of a dense decoder."""

    layers: int
    hidden: int
    intermediate: int
    attention: int
    """Query heads times head size."""
    key_value: int
    """Key-value heads times head size."""
    vocabulary: int
    tied: bool
    """The output head is the embedding."""
    context: int
    """Tokens that it reads, as far as it was not stretched."""

    @classmethod
    def of(cls, config: PreTrainedConfig) -> "Sizes":
        heads = config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // heads
        return cls(
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            intermediate=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
            attention=heads * width,
            key_value=(getattr(config, "num_key_value_heads", None) or heads) * width,
            vocabulary=config.vocab_size,
            tied=bool(config.tie_word_embeddings),
            context=config.max_position_embeddings,
        )

    @property
    def layer_parameters(self) -> int:
        return self.hidden * (2 * self.attention + 2 * self.key_value + 3 * self.intermediate)

    @property
    def parameters(self) -> int:
        """Matrices; norms and biases are too few to matter."""
        return self.layers * self.layer_parameters + (1 if self.tied else 2) * self.vocabulary * self.hidden


def _qwen3(layers: int, hidden: int, intermediate: int, heads: int, *, tied: bool = True) -> Sizes:
    return Sizes(layers, hidden, intermediate, 128 * heads, 128 * 8, 151_936, tied, 40_960)


KNOWN = {
    "Qwen/Qwen3-0.6B": _qwen3(28, 1024, 3072, 16),
    "Qwen/Qwen3-1.7B": _qwen3(28, 2048, 6144, 16),
    "Qwen/Qwen3-4B": _qwen3(36, 2560, 9728, 32),
    "Qwen/Qwen3-32B": _qwen3(64, 5120, 25_600, 64, tied=False),
}
"""The Hub's models that conf/model/ names, from their config.json: sizes are known without a network."""


def sizes_of(name: str) -> Sizes:
    """Sizes of a model by its name. Raises ValueError if it is not found."""
    return KNOWN[name] if name in KNOWN else Sizes.of(load_config(name))


def shapes(config: Config) -> tuple[Sizes, Sizes | None]:
    """Sizes of student and teacher; no teacher if the method asks none. Raises ValueError if a model is not found."""
    model = config.model
    if (shape := model.architecture) is not None:
        student = Sizes(
            layers=shape.num_layers,
            hidden=shape.hidden_size,
            intermediate=shape.intermediate_size,
            attention=shape.num_heads * shape.head_dim,
            key_value=shape.num_kv_heads * shape.head_dim,
            vocabulary=load_config(model.student).vocab_size,
            tied=True,
            context=shape.max_length,
        )
    else:
        student = sizes_of(model.student)
    asked = config.needs_teacher and model.teacher is not None and model.teacher_cache is None
    return student, sizes_of(model.teacher) if asked and model.teacher else None
