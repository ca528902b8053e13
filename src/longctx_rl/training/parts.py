"""What a run is made of, built once before the first step."""

import resource
import sys
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from longctx_rl import engine as engines
from longctx_rl.config.schema import Config
from longctx_rl.data.source import TrainingSource, check_tasks, open_source
from longctx_rl.engine import Engine, distributed
from longctx_rl.engine.zero3 import SMALL_MODEL_NUMEL
from longctx_rl.evals.evaluation import Evaluation
from longctx_rl.evals.grading import runs_code
from longctx_rl.evals.suites import check_suite
from longctx_rl.policy.frozen import FrozenScorer
from longctx_rl.policy.loading import (
    check_pair,
    context_length,
    end_tokens,
    fresh_model,
    load_model,
    load_tokenizer,
    pair_note,
)
from longctx_rl.policy.memory import GIB, MARGIN, Workload, choose, device_memory, workload
from longctx_rl.policy.policy import Policy
from longctx_rl.policy.shape import ModelShape
from longctx_rl.policy.sizes import shapes
from longctx_rl.rewards.composed import EXECUTION, Rewarder, check_reward
from longctx_rl.rewards.execution import CodeGrader
from longctx_rl.rollout import Sampler
from longctx_rl.rollout.hf import HFSampler
from longctx_rl.training.cached_teacher import cached_anchor
from longctx_rl.training.step import FrozenAnchor, divergence_from


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything the loop uses; none of it knows the algorithm's name."""

    tokenizer: PreTrainedTokenizerBase
    engine: Engine
    anchors: dict[str, FrozenAnchor]
    shape: ModelShape
    context: int
    source: TrainingSource
    sampler: Sampler
    rewarder: Rewarder
    evaluation: Evaluation
    code: CodeGrader | None
    """Runs answers that are code; shared by rewarder and evaluation."""
    scheduled: bool
    """Gradients are taken one completion at a time."""
    notes: tuple[str, ...]
    """What a person should know of this run, a line each: how memory is used, how teacher and student differ."""

    def sizes(self) -> dict[str, dict[str, int]]:
        """What FLOPs are counted with: of the student, the teacher (``kd``) and the reference (``ref``)."""
        shapes = {"student": self.shape} | {name: anchor.shape for name, anchor in self.anchors.items()}
        return {name: asdict(shape) for name, shape in shapes.items()}


def build_parts(config: Config) -> Parts:
    """Load models, wrap them in the engine, open the data.

    Raises:
        ValueError: models that cannot be loaded or compared.
    """
    check_tasks(config)
    for name, suite in config.eval.suites.items():
        check_suite(name, suite.labels)
    model = config.model
    tokenizer = load_tokenizer(model.tokenizer or model.student)
    vocabulary = check_pair(model, tokenizer) if config.needs_teacher else None
    source = open_source(config, tokenizer)
    if config.algo.source == "policy":
        check_reward(config.reward, source.tasks)
    load, note = plan_memory(config)
    notes = tuple(filter(None, (note, pair_note(model, tokenizer) if config.needs_teacher else None)))
    # Random weights would depend on the number of ranks if each made its shard.
    shards = nullcontext() if model.architecture is not None else engines.loading(config)
    with shards:
        student = load_student(config, tokenizer)
    shape, context = ModelShape.of(student), context_length(student)
    eos_ids = end_tokens(student, tokenizer)
    policy = Policy(student, chunk=model.scoring_chunk, vocabulary=vocabulary)
    with nullcontext() if load.whole else engines.loading(config):
        frozen = load_frozen(config, tokenizer, vocabulary)
    context = min(context, *(context_length(scorer.model) for scorer in frozen.values()), context)
    make_trainable(student, checkpointing=model.gradient_checkpointing)
    engine = engines.build(config, policy, config.schedule_steps)

    def sampler(temperature: float, max_new_tokens: int) -> HFSampler:
        return HFSampler(
            tokenizer,
            temperature=temperature,
            max_new_tokens=max_new_tokens,
            batch_tokens=config.rollout.batch_tokens,
            eos_ids=eos_ids,
            vocabulary=vocabulary,
            synced_gpus=engine.synced_gpus,
        )

    code = code_grader(config, source)
    anchors = {name: anchor(config, engine, name, scorer) for name, scorer in frozen.items()}
    if config.needs_teacher and model.teacher_cache is not None:
        anchors["kd"], teacher_context = cached_anchor(config, tokenizer, vocabulary)
        context = min(context, teacher_context)
    return Parts(
        tokenizer=tokenizer,
        engine=engine,
        anchors=anchors,
        shape=shape,
        context=context,
        source=source,
        sampler=sampler(config.rollout.temperature, config.rollout.max_new_tokens),
        rewarder=Rewarder(config.reward, config.rollout.max_new_tokens, code),
        evaluation=Evaluation(config.eval, tokenizer, lambda limit: sampler(0.0, limit), Path(config.run_dir), code),
        code=code,
        scheduled=load.scheduled,
        notes=notes if code is None else (*notes, f"generated code is run in sandbox={code.backend}"),
    )


def code_grader(config: Config, source: TrainingSource) -> CodeGrader | None:
    """What runs answers that are code, if any task's are. Raises ValueError if that cannot be done here."""
    graders = config.reward.graders
    trained = config.algo.source == "policy" and any(
        graders.get(task, graders.get("other")) == EXECUTION for task in source.tasks
    )
    asked = config.eval.during or config.eval.at_start or config.eval.at_end
    ranks = config.engine.num_processes
    return CodeGrader(config.sandbox, ranks=ranks) if trained or (asked and runs_code(config.eval.suites)) else None


def make_trainable(student: PreTrainedModel, *, checkpointing: bool) -> None:
    """Training mode, in which alone transformers recomputes activations; without dropout, which samplers lack."""
    student.train()
    for module in student.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    if checkpointing:
        student.activation_checkpointing_enable({"use_reentrant": False})


def plan_memory(config: Config) -> tuple[Workload, str]:
    """What the ranks hold at one time, and why. Called by all ranks, which agree."""
    student, teacher = shapes(config)
    load = workload(config, prompt=config.data.longest, ranks=config.world_size, resident=SMALL_MODEL_NUMEL)
    memory = -distributed.all_reduce_max({"missing": -device_memory(config)})["missing"]
    load, found = choose(config, student, teacher, load, memory)
    note = (
        f"memory: about {found.peak / GIB:.2f} GiB of {memory / GIB:.1f} on each rank, most of it in {found.worst}; "
        f"batch.backward={'scheduled' if load.scheduled else 'packed'}"
    )
    if load.ranks > 1 and (config.needs_teacher or config.needs_reference):
        note += f" engine.frozen_weights={'whole' if load.whole else 'sharded'}"
    if found.peak * MARGIN > memory:
        note += "; that may not fit: python -m longctx_rl.doctor with the run's settings says what to change"
    return load, note


def load_frozen(config: Config, tokenizer: PreTrainedTokenizerBase, vocabulary: int | None) -> dict[str, FrozenScorer]:
    """Teacher (``kd``) and reference (``ref``), as far as they are asked."""
    models: dict[str, PreTrainedModel] = {}
    if config.needs_teacher and config.model.teacher_cache is None:
        assert config.model.teacher is not None
        models["kd"] = load_model(config.model.teacher, config.model.yarn)
    if config.needs_reference:
        models["ref"] = load_student(config, tokenizer)
    chunk = config.model.scoring_chunk
    return {name: FrozenScorer(model, chunk=chunk, vocabulary=vocabulary).freeze() for name, model in models.items()}


def load_student(config: Config, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The student as it is before training: pretrained, or random weights of a configured shape."""
    if config.model.architecture is not None:
        return fresh_model(config.model.architecture, tokenizer, config.seed)
    return load_model(config.model.student, config.model.yarn)


def anchor(config: Config, engine: Engine, name: str, scorer: FrozenScorer) -> FrozenAnchor:
    """A frozen model on the engine, with its whole output weights when the exact divergence needs them."""
    divergence = divergence_from(config.algo.kd if name == "kd" else config.algo.ref)
    shape = ModelShape.of(scorer.model)
    wrapped = engine.freeze(scorer)
    head = None
    if divergence.estimator == "exact":
        head = engine.full_parameter(scorer.model.get_output_embeddings().weight)
    return FrozenAnchor(wrapped, divergence, head, shape)


def peak_gib() -> float:
    """Peak memory of this process in GiB: of the GPU when there is one, else resident memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
