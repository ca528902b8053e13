"""The sizes of a decoder: what its FLOPs depend on, and what its memory depends on.

``ModelShape`` is counted on a loaded model, to the last parameter and for any architecture; it is what a run records.
``DecoderSizes`` comes from a config.json alone, for dense decoders and without norms and biases, before any weights
exist. Neither contains the other, so they stay two classes.

Imports neither torch nor transformers, so that reports can count FLOPs without them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Protocol

from longctx_rl.config.model import YarnConfig
from longctx_rl.config.schema import Config
from longctx_rl.policy.model_folder import OTHER, stated_config
from longctx_rl.policy.weights import explained, locate

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedModel

TRAINING = 3
"""FLOPs of forward and backward pass, in forward passes."""


class Group(Protocol):
    """A prompt with its completions, in tokens, such as ``types.GroupSpan``; lengths may be means."""

    @property
    def prompt_len(self) -> float: ...

    @property
    def completion_lens(self) -> Sequence[float]: ...


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The sizes that model FLOPs depend on: those of the arithmetic, without recomputation.

    A multiply-add is two FLOPs. A matrix with n entries costs 2n per token; attention costs 4 x heads x head size per
    layer and pair of query and key (scores and values); the output head runs on loss tokens only. The prompt counts
    once per group, because it is computed once per group. The backward pass costs twice the forward pass.
    """

    body_parameters: int
    """Without embedding and output head."""
    head_parameters: int
    num_layers: int
    attention_width: int
    """Heads times head size."""

    @classmethod
    def of(cls, model: "PreTrainedModel") -> "ModelShape":
        """Return the shape of a model, which may be sharded: DeepSpeed's parameters record their full size.

        Raises:
            ValueError: a mixture of experts, not all of which compute each token.
        """
        _refuse_experts(model.config)
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
    frozen: Iterable[tuple[ModelShape, Sequence[Group]]],
    groups: Sequence[Group],
    loss_tokens: float,
    *,
    updates: int,
    sampled: bool,
) -> float:
    """FLOPs of a step on packed groups: sampling, teacher and reference, and ``updates`` optimizer steps.

    ``frozen``: the shape of each frozen model, with the groups as it reads them.

    Sampling computes each prompt and each completion once. Several updates need the old log-probabilities, which are
    one forward pass more.
    """
    passes = TRAINING * updates + sampled + (updates > 1)
    return student.forward(groups, loss_tokens) * passes + sum(
        model.forward(read, loss_tokens) for model, read in frozen
    )


@dataclass(frozen=True, slots=True)
class DecoderSizes:
    """The sizes of a dense decoder that memory depends on."""

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
    """Context length in tokens, without YaRN from the run's configuration."""

    @classmethod
    def of(cls, config: "PreTrainedConfig | SimpleNamespace") -> "DecoderSizes":
        """Return the sizes that a model's config.json states."""
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
        """Parameters of one layer's matrices."""
        return self.hidden * (2 * self.attention + 2 * self.key_value + 3 * self.intermediate)

    @property
    def parameters(self) -> int:
        """Parameters of all matrices; norms and biases are too few to matter."""
        return self.layers * self.layer_parameters + (1 if self.tied else 2) * self.vocabulary * self.hidden


STATED = {
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "tie_word_embeddings",
    "max_position_embeddings",
}
"""Keys of config.json that ``DecoderSizes.of`` reads."""
DECODERS = ("llama", "mistral", "qwen2", "qwen3")
"""Types of models that are known to be dense decoders without transformers, where config.json has all of ``STATED``."""


def _qwen3(layers: int, hidden: int, intermediate: int, heads: int, *, tied: bool = True) -> DecoderSizes:
    return DecoderSizes(layers, hidden, intermediate, 128 * heads, 128 * 8, 151_936, tied, 40_960)


KNOWN = {
    "Qwen/Qwen3-0.6B": _qwen3(28, 1024, 3072, 16),
    "Qwen/Qwen3-1.7B": _qwen3(28, 2048, 6144, 16),
    "Qwen/Qwen3-4B": _qwen3(36, 2560, 9728, 32),
    "Qwen/Qwen3-32B": _qwen3(64, 5120, 25_600, 64, tied=False),
}
"""The Hub models that conf/model/ names, from their config.json, so that their sizes are known without a network."""


def load_config(name: str) -> "PreTrainedConfig":
    """Load the configuration of a causal language model, without its weights. Its own code is never run.

    Raises:
        ValueError: it cannot be loaded, or is not that of a causal language model. See also ``stated_config``.
    """
    from transformers import CONFIG_MAPPING, AutoConfig, __version__  # reports count without transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    path, values = locate(name), stated_config(name)
    if values is not None and (stated := values["model_type"]) not in CONFIG_MAPPING:
        code = " without the code in its folder, which is never run" if "auto_map" in values else ""
        raise ValueError(f"{name} has model_type={stated}, unknown to transformers {__version__}{code}: {OTHER}")
    with explained(name, path):
        config: PreTrainedConfig = AutoConfig.from_pretrained(path, trust_remote_code=False)
        composite = config.get_text_config() is not config
    kind = config.model_type
    if config.is_encoder_decoder or composite or kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ValueError(f"{name} is not a causal language model of text (model_type={kind} in config.json): {OTHER}")
    return config


def _refuse_experts(config: "PreTrainedConfig") -> None:
    for key, value in config.to_dict().items():
        if "experts" in key and isinstance(value, int) and value > 1:
            raise ValueError(
                f"{config.name_or_path} is a mixture of experts ({key}={value} in config.json), whose FLOPs and memory "
                f"would be counted wrongly: {OTHER}"
            )


def sizes_of(name: str) -> DecoderSizes:
    """Return the sizes of a model by its name. Raises ValueError if it cannot be loaded or is not a dense decoder."""
    if name in KNOWN:
        return KNOWN[name]
    stated = stated_config(name)
    if stated is not None and stated.keys() >= STATED and stated["model_type"] in DECODERS:
        return DecoderSizes.of(SimpleNamespace(**stated))
    config = load_config(name)
    _refuse_experts(config)
    try:
        return DecoderSizes.of(config)
    except (AttributeError, RuntimeError, TypeError) as error:  # RuntimeError: a size that differs between layers
        raise ValueError(
            f"{name} does not state the sizes of a decoder in its config.json ({error}): {OTHER}"
        ) from error


def stated_context(name: str, yarn: YarnConfig | None = None) -> int | None:
    """Return a model's context in tokens, stretched or from its config.json; None if that has to be loaded to know."""
    context = (stated_config(name) or {}).get("max_position_embeddings")
    return context if yarn is None else yarn.context


def model_sizes(config: Config) -> tuple[DecoderSizes, DecoderSizes | None]:
    """Return the sizes of student and teacher; None for the teacher if the run loads none.

    Raises:
        ValueError: a model's config.json cannot be loaded.
    """
    model = config.model
    student = sizes_of(model.student)
    if (shape := model.architecture) is not None:
        student = DecoderSizes(
            layers=shape.num_layers,
            hidden=shape.hidden_size,
            intermediate=shape.intermediate_size,
            attention=shape.num_heads * shape.head_dim,
            key_value=shape.num_kv_heads * shape.head_dim,
            vocabulary=student.vocabulary,
            tied=True,
            context=shape.max_length,
        )
    if config.needs_teacher and config.algo.kd.itself:
        return student, student
    teacher = config.loaded_teacher
    return student, None if teacher is None else sizes_of(teacher)
