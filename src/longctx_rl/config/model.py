"""The parts of the configuration that say which models are trained and which are asked. See config.py."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchitectureConfig:
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_length: int
    rope_theta: float
    initializer_range: float


@dataclass(frozen=True, slots=True, kw_only=True)
class YarnConfig:
    """Longer contexts for models with rotary positions, without training: YaRN (arXiv 2309.00071)."""

    factor: float
    """How many times longer."""
    original_context: int
    """Tokens that the models were pretrained for, which can be fewer than their configuration allows."""

    @property
    def context(self) -> int:
        """Tokens that the stretched models read."""
        return round(self.factor * self.original_context)


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningRates:
    """That suit a model's size, by who writes the tokens that are trained on (``algo.source``)."""

    dataset: float
    policy: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    name: str
    student: str
    """A directory, a Hub id, or the name of a shipped model (mini-student, mini-teacher); so are the next two."""
    teacher: str | None  # loaded only by methods that weigh it
    teacher_cache: str | None
    """Folder of teacher signals that were written before; none: the teacher is loaded and asked."""
    tokenizer: str | None  # none: the student's own
    architecture: ArchitectureConfig | None
    """Set: the student starts from random weights of this shape."""
    yarn: YarnConfig | None = None
    """Set: student and teacher are stretched; the student's export stays so."""
    lr: LearningRates  # optim.lr follows it
    dtype: Literal["float32", "bfloat16"]
    """Of the computation. Master weights and optimizer states are float32."""
    gradient_checkpointing: bool
    scoring_chunk: int
    """Loss tokens whose vocabulary distribution exists at one time."""
    slice_vocabulary: bool
    """Score over the rows both models share when their vocabularies are padded to different sizes."""
