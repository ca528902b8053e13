"""How much memory a run will need on each rank, from sizes alone, before anything is loaded.

Counted is what is held at the worst moment of each phase: tensors that autograd keeps, buffers of the engine, caches.
Not counted are the runtime itself, kernels' workspaces and what allocators hold without need: on a CPU glibc can keep
half as much again, and gives it back at some cost in time if MALLOC_MMAP_THRESHOLD_=65536 is set. With that, measured
peaks of sampling and of the update lie within a fifth of the estimate at mini scale (tests/policy/test_memory.py). For
dense decoders: experts and other architectures' extras are not known here.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from longctx_rl.config.schema import Config
from longctx_rl.policy.sizes import Sizes

GIB = 2**30
MARGIN = 1.2
"""A run is said to fit if this many times its estimate does: runtime, workspaces and fragmentation are not counted."""
CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")
FLOAT = 4
"""Bytes of a float32 value."""


@dataclass(frozen=True, slots=True)
class Workload:
    """What a rank has to hold at one time."""

    prompt: int
    completion: int
    group: int
    prompts_per_step: int
    """On all ranks."""
    batch_tokens: int
    """Tokens whose keys and values are held together while sampling."""
    row_tokens: int
    """Tokens of a packed row; one group may exceed it."""
    chunk: int
    """Loss tokens whose vocabulary distribution exists at one time."""
    ranks: int
    engine: Literal["zero3", "local"]
    bytes: int
    """Per value of the computation: 4 or 2."""
    checkpointing: bool
    scheduled: bool
    sampled: bool
    reference: bool
    """A frozen copy of the initial policy is held."""
    exact: bool
    """The divergence reads the whole vocabulary, so the teacher's head is held whole."""
    resident: int
    """A policy of up to this many parameters keeps all weights on every rank (ZeRO-3)."""
    whole: bool
    """Frozen models keep all weights on every rank."""
    gather: bool
    """All weights are whole while sampling."""
    offload: bool
    """Optimizer states and master weights are in host memory."""

    @property
    def prompts(self) -> int:
        """Prompts of a step on this rank."""
        return -(-self.prompts_per_step // self.ranks)

    @property
    def group_tokens(self) -> int:
        """Tokens of a group: the prompt once, and every completion at its full length."""
        return self.prompt + self.group * self.completion


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes on each rank: what is always there, and what each phase adds at its worst moment."""

    always: dict[str, float]
    phases: dict[str, dict[str, float]]

    @property
    def peak(self) -> float:
        return sum(self.always.values()) + max(sum(parts.values()) for parts in self.phases.values())

    @property
    def worst(self) -> str:
        """The phase that decides."""
        return max(self.phases, key=lambda name: sum(self.phases[name].values()))


def workload(config: Config, *, prompt: int, ranks: int, resident: int) -> Workload:
    """What each of ``ranks`` has to hold at once when it trains on prompts of this length."""
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
        scheduled=config.batch.backward == "scheduled",
        sampled=sampled,
        reference=config.needs_reference,
        exact=config.needs_teacher and config.algo.kd.estimator == "exact",
        resident=resident,
        whole=ranks == 1 or config.engine.frozen_weights == "whole",
        gather=config.rollout.gather_weights,
        offload=config.engine.offload_optimizer,
    )


def device_memory(config: Config) -> float:
    """Bytes that one rank may use: a whole GPU, or its share of this machine or container."""
    if config.engine.device != "cpu" and torch.cuda.is_available():
        return float(torch.cuda.get_device_properties(0).total_memory)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = CONTAINER_LIMIT.read_text(encoding="ascii").strip() if CONTAINER_LIMIT.is_file() else ""
    return (min(memory, int(limit)) if limit.isdigit() else memory) / config.engine.num_processes


def estimate(student: Sizes, teacher: Sizes | None, load: Workload) -> MemoryEstimate:
    """What a run needs on each rank."""
    return MemoryEstimate(
        always=_always(student, teacher, load),
        phases={
            **({"sampling": sampling(student, load)} if load.sampled else {}),
            **({"teacher": _teacher(teacher, load)} if teacher is not None else {}),
            "update": update(student, teacher, load),
        },
    )


def choose(
    config: Config, student: Sizes, teacher: Sizes | None, load: Workload, memory: float
) -> tuple[Workload, MemoryEstimate]:
    """What to hold with ``memory`` bytes where the configuration says ``auto``, and how much that is.

    The first that fits of: packed row and whole frozen models, the same with frozen models sharded, then both with
    one completion at a time. If none does, the one that needs least.
    """
    backward, frozen = config.batch.backward, config.engine.frozen_weights
    modes = (False, True) if backward == "auto" and load.sampled else (backward == "scheduled",)
    kinds = (True, False) if frozen == "auto" and load.ranks > 1 else (load.whole,)
    loads = [replace(load, scheduled=mode, whole=whole) for mode in modes for whole in kinds]
    found = [(one, estimate(student, teacher, one)) for one in loads]
    fitting = [pair for pair in found if pair[1].peak * MARGIN <= memory]
    return fitting[0] if fitting else min(found, key=lambda pair: pair[1].peak)


def _always(student: Sizes, teacher: Sizes | None, load: Workload) -> dict[str, float]:
    count = student.parameters
    sharded = count / load.ranks
    moments, master = 2 * FLOAT * sharded, FLOAT * sharded
    parts: dict[str, float] = {}
    if load.engine == "zero3":
        parts["policy weights"] = load.bytes * (count if count <= load.resident else sharded)
        parts["gradients"] = FLOAT * sharded
    else:
        parts["gradients"] = FLOAT * count
    frozen_share = 1.0 if load.whole else 1 / load.ranks
    if not load.offload:
        parts |= {"master weights": master, "optimizer": moments}
    if teacher is not None:
        parts["teacher weights"] = load.bytes * teacher.parameters * frozen_share
        if load.exact and not load.whole:
            parts["teacher's whole head"] = load.bytes * teacher.vocabulary * teacher.hidden
    if load.reference:
        parts["reference weights"] = load.bytes * count * frozen_share
    return parts


def sampling(student: Sizes, load: Workload) -> dict[str, float]:
    """What prefill and decoding of one batch of prompts hold."""
    held = 2 * student.layers * student.key_value * load.bytes
    prompts = max(1, min(load.prompts, load.batch_tokens // load.group_tokens))
    rows = prompts * load.group
    # One prompt's own cache beside what it is copied to. Room for the copies is made after the first was computed.
    working, own = load.bytes * load.prompt * _working(student), held * load.prompt
    prefill = max(working, own) if prompts == 1 else working + own
    parts = {
        "prompt keys and values, once": held * prompts * load.prompt,
        "completion keys and values": held * rows * load.completion,
        "prefill": prefill,
        # The model's, their float32 copy, log-softmax, and the cumulative distribution in float64.
        "logits": rows * student.vocabulary * (load.bytes + 2 * FLOAT + 2 * 8),
    }
    if load.engine == "zero3" and load.ranks > 1 and student.parameters > load.resident:
        weights = student.parameters if load.gather else 2 * student.layer_parameters
        parts["gathered weights"] = load.bytes * weights
    return parts


def _teacher(teacher: Sizes, load: Workload) -> dict[str, float]:
    tokens = row_tokens(load)
    parts = {"activations": load.bytes * tokens * _working(teacher)}
    if not load.whole:
        parts["gathered layers"] = 2 * load.bytes * teacher.layer_parameters
    return parts


def row_tokens(load: Workload) -> int:
    """Tokens of the largest packed row."""
    groups = 1 if load.scheduled else max(1, min(load.prompts, load.row_tokens // load.group_tokens))
    return groups * load.group_tokens


def update(student: Sizes, teacher: Sizes | None, load: Workload) -> dict[str, float]:
    """What the forward and backward passes over one row hold, weights and gradients aside."""
    tokens = row_tokens(load)
    answers = tokens // load.group_tokens * load.group * load.completion
    parts: dict[str, float] = {}
    if load.scheduled:
        # Leaves and their gradients, in float32; then either one completion beside its prompt, or the prompt.
        parts["prompt states"] = 2 * 2 * FLOAT * student.layers * student.key_value * load.prompt
        tokens = max(load.prompt, load.completion)
        scored = load.completion
    else:
        scored = answers
    parts["activations"] = load.bytes * tokens * _kept(student, load)
    parts["one layer's backward"] = load.bytes * tokens * _working(student)
    if teacher is not None:
        # Of all rows: the teacher speaks before the first update.
        width = teacher.hidden if load.exact else 2
        parts["teacher signal"] = load.bytes * load.prompts * load.group * load.completion * width
    chunk = min(load.chunk, scored)
    distributions = CHUNK_DISTRIBUTIONS if teacher is not None and load.exact else CHUNK_ALONE
    parts["scoring chunk"] = FLOAT * distributions * chunk * student.vocabulary
    if load.engine == "zero3" and load.ranks > 1 and student.parameters > load.resident:
        parts["gathered layers"] = 2 * load.bytes * student.layer_parameters
    return parts


CHUNK_ALONE = 4.0
"""[chunk, vocabulary] values alive at once without a second distribution: logits, log-softmax, gradients of both."""
CHUNK_DISTRIBUTIONS = 7.0
"""The same with a teacher's distribution beside it."""


def _kept(sizes: Sizes, load: Workload) -> float:
    """Values per token that autograd keeps over all layers."""
    # Two norms keep input, normalised and output; queries and keys: projected, normalised and rotated; values;
    # attention: output and its contiguous copy; MLP: gate, its activation, up, product.
    layer = 6 * sizes.hidden + 5 * sizes.attention + 4 * sizes.key_value + 4 * sizes.intermediate
    if load.checkpointing:
        return sizes.layers * sizes.hidden + layer
    return sizes.layers * layer


def _working(sizes: Sizes) -> float:
    """Values per token that come and go within a layer, at its widest: the MLP."""
    return 2 * sizes.hidden + 2 * sizes.intermediate
