"""The part of the configuration that names the models: student and teacher. See config/schema.py."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchitectureConfig:
    """The shape of a model that starts from random weights."""

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
    """YaRN (arXiv 2309.00071): longer contexts for models with rotary positions, without training."""

    factor: float
    """Factor by which the context grows."""
    original_context: int
    """Context in tokens that the models were pretrained for, which can be below what their configuration allows."""

    @property
    def context(self) -> int:
        """Context of the stretched models in tokens."""
        return round(self.factor * self.original_context)


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningRates:
    """Learning rates that suit a model of this size, by who writes the tokens that are trained on (``algo.source``)."""

    dataset: float
    policy: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Student and teacher, and how they compute."""

    name: str
    student: str
    """A directory, a Hub id, or a shipped model: mini-student, mini-teacher."""
    teacher: str | None
    """The same for the teacher, which is loaded only by methods that give it a weight. Or the address of a vLLM server
    that has it, http://host:port, for a teacher that does not fit beside the student (docs/algorithms.md)."""
    teacher_cache: str | None
    """Folder of the teacher's signals for recorded answers, written by ``python -m longctx_rl.data teacher-cache``;
    +algo=kd then runs without the teacher. None: the teacher is loaded and queried."""
    tokenizer: str | None
    """None: the student's own."""
    architecture: ArchitectureConfig | None
    """The student starts from random weights of this shape. None: it starts from its own weights."""
    yarn: YarnConfig | None = None
    """YaRN stretches the positions of student and teacher, and the student's export keeps them so. None: no YaRN."""
    lr: LearningRates
    """Learning rates that suit a model of this size, by who writes the tokens that are trained on; optim.lr defaults to
    them."""
    dtype: Literal["float32", "bfloat16"]
    """Compute type. Master weights and optimizer states are float32."""
    gradient_checkpointing: bool
    """Recompute activations in the backward pass, which long prompts need."""
    scoring_chunk: int
    """Loss tokens whose distribution over the vocabulary exists at one time."""
    slice_vocabulary: bool
    """Score over the rows that both models share when their vocabularies are padded to different sizes."""
