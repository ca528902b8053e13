"""The sizes of a decoder that memory depends on, from its config.json alone."""

from dataclasses import dataclass

from transformers import PreTrainedConfig

from longctx_rl.config import Config
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
        )

    @property
    def layer_parameters(self) -> int:
        return self.hidden * (2 * self.attention + 2 * self.key_value + 3 * self.intermediate)

    @property
    def parameters(self) -> int:
        """Matrices; norms and biases are too few to matter."""
        return self.layers * self.layer_parameters + (1 if self.tied else 2) * self.vocabulary * self.hidden


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
        )
    else:
        student = Sizes.of(load_config(model.student))
    asked = config.needs_teacher and model.teacher is not None and model.teacher_cache is None
    return student, Sizes.of(load_config(model.teacher)) if asked and model.teacher else None
