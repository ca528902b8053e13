"""An estimate of the memory that a run needs on each rank, from sizes alone, before anything is loaded.

The estimate covers what is allocated at the peak of each phase: tensors that autograd keeps, the engine's buffers,
caches. It leaves out the runtime itself, kernels' workspaces and memory that allocators keep after it was freed: on a
CPU glibc can keep half as much again, and returns it, at some cost in time, if MALLOC_MMAP_THRESHOLD_=65536 is set.
With that, measured peaks of sampling and of the update lie within a fifth of the estimate at mini scale
(tests/policy/test_memory.py). The estimate is for dense decoders: it knows nothing of experts and other architectures'
extras.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from longctx_rl.config.distillation import TeacherKind
from longctx_rl.config.schema import Config
from longctx_rl.policy.shape import DecoderSizes

GIB = 2**30
MARGIN = 1.2
"""A run fits if this multiple of its estimate does: runtime, workspaces and fragmentation are not in the estimate."""
CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")
FLOAT = 4
"""Bytes per float32 value."""


@dataclass(frozen=True, slots=True)
class Workload:
    """The settings that decide how much memory a rank needs."""

    prompt: int
    completion: int
    group: int
    prompts_per_step: int
    """Over all ranks."""
    batch_tokens: int
    """Tokens whose keys and values are held at once while sampling."""
    row_tokens: int
    """Tokens of a packed row; a single group may exceed it."""
    chunk: int
    """Loss tokens whose distribution over the vocabulary exists at one time."""
    ranks: int
    engine: Literal["zero3", "local"]
    bytes: int
    """Bytes per value in the computation: 4 or 2."""
    checkpointing: bool
    one_at_a_time: bool
    """Gradients are computed one completion at a time."""
    sampled: bool
    """The policy samples the completions."""
    served: bool
    """Servers do so in its place; their memory is not part of the estimate."""
    reference: bool
    """A frozen copy of the initial policy is held, which a teacher with the initial weights shares."""
    exact: bool
    """The divergence sums over the whole vocabulary, so each rank holds the teacher's full head."""
    resident: int
    """ZeRO-3 replicates the weights of a policy of up to this many parameters on every rank."""
    replicated: bool
    """Frozen models are replicated on every rank, not sharded."""
    gather: bool
    """All weights are gathered while sampling."""
    offload: bool
    """Optimizer states and master weights are kept in host memory."""
    teacher: TeacherKind = "external"
    """Who the teacher is, if there is one; ``policy`` holds no weights of its own."""
    view: int | None = None
    """Tokens of the longest prompt that the teacher reads, estimated from the kind of view. None: the student's."""

    @property
    def prompts(self) -> int:
        """Prompts per step on each rank."""
        return -(-self.prompts_per_step // self.ranks)

    @property
    def group_tokens(self) -> int:
        """Tokens of a group: the prompt once, and every completion at its full length."""
        return self.prompt + self.group * self.completion


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes on each rank: what is always allocated, and what each phase adds at its peak."""

    always: dict[str, float]
    phases: dict[str, dict[str, float]]

    @property
    def peak(self) -> float:
        """Bytes at the peak of the phase that needs most."""
        return sum(self.always.values()) + max(sum(parts.values()) for parts in self.phases.values())

    @property
    def worst(self) -> str:
        """The phase with the highest peak."""
        return max(self.phases, key=lambda name: sum(self.phases[name].values()))


def workload(config: Config, *, prompt: int, ranks: int, resident: int) -> Workload:
    """Return the workload of each of ``ranks`` when the run trains on prompts of ``prompt`` tokens."""
    sampled = config.algo.source == "policy"
    return Workload(
        prompt=prompt,
        completion=config.rollout.max_new_tokens,
        group=config.algo.group_size if sampled else 1,
        prompts_per_step=config.batch.prompts_per_step,
        batch_tokens=config.rollout.batch_tokens,
        row_tokens=config.batch.micro_batch_tokens,
        chunk=config.model.scoring_chunk,
        ranks=ranks,
        engine=config.engine.name,
        bytes=2 if config.model.dtype == "bfloat16" else 4,
        checkpointing=config.model.gradient_checkpointing,
        one_at_a_time=config.batch.backward == "one_at_a_time",
        sampled=sampled,
        served=config.served,
        teacher=config.algo.kd.teacher,
        view=view_length(config, prompt),
        reference=config.needs_reference,
        exact=config.needs_teacher and config.algo.kd.estimator == "exact",
        resident=resident,
        replicated=ranks == 1 or config.engine.frozen_weights == "replicated",
        gather=config.rollout.gather_weights,
        offload=config.engine.offload_optimizer,
    )


def view_length(config: Config, prompt: int) -> int | None:
    """Return about how many tokens the teacher's view has where the student's prompt has ``prompt``; None: no view.

    Evidence has no bound; it is estimated with ``view_tokens``.
    """
    kd = config.algo.kd
    if not config.viewed:
        return None
    if kd.view == "answer":
        return prompt + len(kd.answer_prompt)
    return min(prompt, kd.view_tokens)


def has_gpu() -> bool:
    """Whether torch sees a GPU."""
    import torch  # commands answer before they import it

    return torch.cuda.is_available()


def device_memory(config: Config) -> float:
    """Bytes that one rank may use: all of a GPU, or its share of this machine's or container's memory."""
    if config.engine.device != "cpu" and has_gpu():
        import torch

        return float(torch.cuda.get_device_properties(0).total_memory)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = CONTAINER_LIMIT.read_text(encoding="ascii").strip() if CONTAINER_LIMIT.is_file() else ""
    return (min(memory, int(limit)) if limit.isdigit() else memory) / config.engine.num_processes


def estimate(student: DecoderSizes, teacher: DecoderSizes | None, load: Workload) -> MemoryEstimate:
    """Estimate what a run needs on each rank."""
    return MemoryEstimate(
        always=_always(student, teacher, load),
        phases={
            **({"sampling": sampling(student, load)} if load.sampled and not load.served else {}),
            **({"teacher": _teacher(teacher, load)} if teacher is not None else {}),
            "update": update(student, teacher, load),
        },
    )


def choose(
    config: Config, student: DecoderSizes, teacher: DecoderSizes | None, load: Workload, memory: float
) -> tuple[Workload, MemoryEstimate]:
    """Resolve the settings that are ``auto`` for ``memory`` bytes; return the workload and its estimate.

    The first that fits is chosen: packed rows with replicated frozen models, packed rows with sharded ones, then both
    with one completion at a time. If none fits, the one that needs least.
    """
    backward, frozen = config.batch.backward, config.engine.frozen_weights
    modes = (False, True) if backward == "auto" and load.sampled else (backward == "one_at_a_time",)
    kinds = (True, False) if frozen == "auto" and load.ranks > 1 else (load.replicated,)
    loads = [replace(load, one_at_a_time=mode, replicated=kind) for mode in modes for kind in kinds]
    estimates = [(candidate, estimate(student, teacher, candidate)) for candidate in loads]
    fitting = [pair for pair in estimates if pair[1].peak * MARGIN <= memory]
    return fitting[0] if fitting else min(estimates, key=lambda pair: pair[1].peak)


def _always(student: DecoderSizes, teacher: DecoderSizes | None, load: Workload) -> dict[str, float]:
    count = student.parameters
    sharded = count / load.ranks
    moments, master = 2 * FLOAT * sharded, FLOAT * sharded
    parts: dict[str, float] = {}
    if load.engine == "zero3":
        parts["policy weights"] = load.bytes * (count if count <= load.resident else sharded)
        parts["gradients"] = FLOAT * sharded
    else:
        parts["gradients"] = FLOAT * count
    frozen_share = 1.0 if load.replicated else 1 / load.ranks
    if not load.offload:
        parts |= {"master weights": master, "optimizer": moments}
    if teacher is not None:
        if load.teacher != "policy":
            parts["teacher weights"] = load.bytes * teacher.parameters * frozen_share
        if load.teacher == "ema" and not load.offload:
            parts["averaged weights"] = FLOAT * sharded
        if load.exact and (not load.replicated or load.teacher == "policy"):
            parts["gathered teacher head"] = load.bytes * teacher.vocabulary * teacher.hidden
    if load.reference and not (teacher is not None and load.teacher == "initial"):
        parts["reference weights"] = load.bytes * count * frozen_share
    return parts


def sampling(student: DecoderSizes, load: Workload) -> dict[str, float]:
    """Memory of prefill and decoding for one batch of prompts."""
    held = 2 * student.layers * student.key_value * load.bytes
    prompts = max(1, min(load.prompts, load.batch_tokens // load.group_tokens))
    rows = prompts * load.group
    # One prompt's own cache beside the batch's, which is allocated after the first prompt was computed.
    working, own = load.bytes * load.prompt * _working(student), held * load.prompt
    prefill = max(working, own) if prompts == 1 else working + own
    parts = {
        "prompt keys and values, once": held * prompts * load.prompt,
        "completion keys and values": held * rows * load.completion,
        "prefill": prefill,
        # The model's logits, their float32 copy, the log-softmax, and the cumulative distribution in float64.
        "logits": rows * student.vocabulary * (load.bytes + 2 * FLOAT + 2 * 8),
    }
    if load.engine == "zero3" and load.ranks > 1 and student.parameters > load.resident:
        weights = student.parameters if load.gather else 2 * student.layer_parameters
        parts["gathered weights"] = load.bytes * weights
    return parts


def _teacher(teacher: DecoderSizes, load: Workload) -> dict[str, float]:
    tokens = row_tokens(load)
    if load.view is not None:
        tokens = tokens // load.group_tokens * (load.view + load.group * load.completion)
    parts = {"activations": load.bytes * tokens * _working(teacher)}
    if not load.replicated or (load.teacher == "policy" and load.ranks > 1):
        parts["gathered layers"] = 2 * load.bytes * teacher.layer_parameters
    return parts


def row_tokens(load: Workload) -> int:
    """Tokens of the largest packed row."""
    groups = 1 if load.one_at_a_time else max(1, min(load.prompts, load.row_tokens // load.group_tokens))
    return groups * load.group_tokens


def update(student: DecoderSizes, teacher: DecoderSizes | None, load: Workload) -> dict[str, float]:
    """Memory of the forward and backward pass over one row, without weights and gradients."""
    tokens = row_tokens(load)
    answers = tokens // load.group_tokens * load.group * load.completion
    parts: dict[str, float] = {}
    if load.one_at_a_time:
        # Leaves and their gradients, in float32; beside them the pass over one completion, or over the prompt.
        parts["prompt states"] = 2 * 2 * FLOAT * student.layers * student.key_value * load.prompt
        tokens = max(load.prompt, load.completion)
        scored = load.completion
    else:
        scored = answers
    parts["activations"] = load.bytes * tokens * _kept(student, load)
    parts["one layer's backward"] = load.bytes * tokens * _working(student)
    if teacher is not None:
        # The signal of all rows: the teacher scores them before the first update.
        width = teacher.hidden if load.exact else 2
        parts["teacher signal"] = load.bytes * load.prompts * load.group * load.completion * width
    chunk = min(load.chunk, scored)
    distributions = CHUNK_DISTRIBUTIONS if teacher is not None and load.exact else CHUNK_ALONE
    parts["scoring chunk"] = FLOAT * distributions * chunk * student.vocabulary
    if load.engine == "zero3" and load.ranks > 1 and student.parameters > load.resident:
        parts["gathered layers"] = 2 * load.bytes * student.layer_parameters
    return parts


CHUNK_ALONE = 4.0
"""[chunk, vocabulary] tensors alive at once without a teacher's distribution: logits, log-softmax, their gradients."""
CHUNK_DISTRIBUTIONS = 7.0
"""The same with a teacher's distribution."""


def _kept(sizes: DecoderSizes, load: Workload) -> float:
    """Values per token that autograd keeps over all layers."""
    # Two norms keep their input, normalised input and output; queries and keys are kept projected, normalised and
    # rotated; values; attention keeps its output and a contiguous copy; the MLP keeps gate, activation, up and product.
    layer = 6 * sizes.hidden + 5 * sizes.attention + 4 * sizes.key_value + 4 * sizes.intermediate
    if load.checkpointing:
        return sizes.layers * sizes.hidden + layer
    return sizes.layers * layer


def _working(sizes: DecoderSizes) -> float:
    """Values per token that are temporary within a layer, where it is widest: in the MLP."""
    return 2 * sizes.hidden + 2 * sizes.intermediate
