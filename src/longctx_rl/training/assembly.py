"""Assembly of a run's parts: models are loaded and wrapped in the engine, data is opened, memory is planned."""

import resource
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Protocol

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from longctx_rl.config.schema import SMALL_MODEL_NUMEL, Config
from longctx_rl.data.source import TrainingSource, check_evidence, open_source
from longctx_rl.data.views import Views
from longctx_rl.engine import Engine, distributed, startup
from longctx_rl.evals.evaluation import Evaluation
from longctx_rl.policy.loading import (
    check_pair,
    check_tokenizer,
    context_length,
    end_tokens,
    load_tokenizer,
    pair_note,
)
from longctx_rl.policy.memory import GIB, MARGIN, Workload, choose, device_memory, workload
from longctx_rl.policy.policy import Policy
from longctx_rl.policy.shape import ModelShape, model_sizes
from longctx_rl.rewards.composed import Rewarder, check_reward
from longctx_rl.rewards.execution import CodeGrader
from longctx_rl.rollout import Sampler, agreement
from longctx_rl.rollout.hf import HFSampler, ModelSampler
from longctx_rl.rollout.server import Servers
from longctx_rl.rollout.vllm import VllmSampler
from longctx_rl.sandbox import probe
from longctx_rl.training.ahead import Ahead
from longctx_rl.training.anchors import FrozenAnchor, build_anchors, load_frozen, load_student
from longctx_rl.training.cached_teacher import cached_anchor
from longctx_rl.training.parts import Parts
from longctx_rl.training.preflight import executes_code, preflight
from longctx_rl.training.served_teacher import ServedScorer


def build_parts(config: Config) -> Parts:
    """Load the models, wrap them in the engine and open the data.

    Raises:
        ValueError: a model cannot be loaded, or teacher and student cannot be compared.
    """
    preflight(config)
    model = config.model
    tokenizer = load_tokenizer(model.tokenizer or model.student)
    named = config.external_teacher is not None and config.teacher_server is None
    vocabulary = check_pair(model, tokenizer) if named else None
    source = open_source(config, tokenizer)
    if config.algo.source == "policy":
        check_reward(config.reward, source.tasks)  # the tasks of a data set are known only now
    check_evidence(config, source)
    load, note = plan_memory(config)
    notes = tuple(filter(None, (note, pair_note(model, tokenizer) if named else None)))
    # Random weights would depend on the number of ranks if each rank initialised its own shard.
    shards = nullcontext() if model.architecture is not None else startup.loading(config)
    with shards:
        student = load_student(config, tokenizer)
    shape, context = ModelShape.of(student), context_length(student)
    check_tokenizer(student, tokenizer, model.student)
    policy = Policy(student, chunk=model.scoring_chunk, vocabulary=vocabulary)
    with nullcontext() if load.replicated else startup.loading(config):
        frozen = load_frozen(config, tokenizer, vocabulary)
    context = min(context, *(context_length(scorer.model) for scorer in frozen.values()), context)
    make_trainable(student, checkpointing=model.gradient_checkpointing)
    models = [policy, *frozen.values()]
    sharded = [module for module in models if any(hasattr(p, "ds_id") for p in module.parameters())]
    check_agreement(config, tokenizer, policy, [module for module in models if module not in sharded])
    engine = startup.build(config, policy, config.schedule_steps)

    servers = None
    if config.served:
        servers = Servers(config.rollout, engine, tokenizer, Path(config.run_dir), context)
    sampler = sampler_factory(config, engine, tokenizer, policy, servers)
    drawing = sampler(config.rollout.temperature, config.rollout.max_new_tokens)
    code = code_grader(config, source)
    anchors = build_anchors(config, engine, policy, frozen)
    check_agreement(config, tokenizer, policy, sharded)  # only on its engine can a sharded model run
    if config.needs_teacher and model.teacher_cache is not None:
        anchors["kd"], teacher_context = cached_anchor(config, tokenizer, vocabulary)
        context = min(context, teacher_context)
    if config.teacher_server is not None:
        served = ServedScorer(config, tokenizer, student.config.vocab_size)
        anchors["kd"] = FrozenAnchor(served, config.algo.kd, head=None, shape=None)
        context, notes = min(context, served.context), (*notes, *served.notes)
    return Parts(
        config=config,
        tokenizer=tokenizer,
        engine=engine,
        anchors=anchors,
        shape=shape,
        context=context,
        source=source,
        views=Views(config, source, tokenizer, context) if config.viewed else None,
        sampler=drawing,
        ahead=Ahead(drawing, engine, config) if isinstance(drawing, VllmSampler) and config.rollout.ahead else None,
        greedy=lambda frozen: sampler(0.0, config.rollout.max_new_tokens, frozen),
        rewarder=Rewarder(config.reward, config.rollout.max_new_tokens, code),
        evaluation=Evaluation(config.eval, tokenizer, lambda limit: sampler(0.0, limit), Path(config.run_dir), code),
        code=code,
        servers=servers,
        one_at_a_time=load.one_at_a_time,
        notes=notes if code is None else (*notes, f"generated code is run in sandbox={code.backend}"),
    )


class SamplerFactory(Protocol):
    """Makes samplers that differ in temperature and length limit."""

    def __call__(self, temperature: float, max_new_tokens: int, frozen: nn.Module | None = None) -> Sampler:
        """Return a sampler of the policy, or of a frozen scorer on the engine, which samples by itself."""


def sampler_factory(
    config: Config, engine: Engine, tokenizer: PreTrainedTokenizerBase, policy: Policy, servers: Servers | None
) -> SamplerFactory:
    """Return a factory of samplers: on the servers, or with the models themselves."""
    student, vocabulary = policy.model, policy.vocabulary
    eos_ids = end_tokens(student, tokenizer)

    def sampler(temperature: float, max_new_tokens: int, frozen: nn.Module | None = None) -> Sampler:
        if servers is not None and frozen is None:
            return VllmSampler(
                servers,
                tokenizer,
                temperature=temperature,
                max_new_tokens=max_new_tokens,
                eos_ids=eos_ids,
                rows=student.config.vocab_size,
                vocabulary=vocabulary,
            )
        drawn = HFSampler(
            tokenizer,
            temperature=temperature,
            max_new_tokens=max_new_tokens,
            batch_tokens=config.rollout.batch_tokens,
            eos_ids=eos_ids,
            vocabulary=vocabulary,
            synced_gpus=engine.synced_gpus or (frozen is not None and distributed.world_size() > 1),
        )
        return ModelSampler(drawn, lambda: language_model(engine, frozen))

    return sampler


@contextmanager
def language_model(engine: Engine, frozen: nn.Module | None = None) -> Iterator[PreTrainedModel]:
    """Yield the language model of the policy, or of a frozen scorer, with the weights that sampling needs."""
    with engine.full_weights(frozen) as module:
        model = module.model
        assert isinstance(model, PreTrainedModel)
        yield model


def code_grader(config: Config, source: TrainingSource) -> CodeGrader | None:
    """Return the grader that executes generated code, if a task needs it. Raises ValueError without a sandbox."""
    if executes_code(config, source.tasks):
        return CodeGrader(probe.choose(config.sandbox), ranks=config.engine.num_processes)
    return None


def check_agreement(
    config: Config, tokenizer: PreTrainedTokenizerBase, policy: Policy, models: Sequence[Policy]
) -> None:
    """Check the scores of ``models``, and the samples of ``policy`` if it is one of them. Raises ValueError."""
    for module in models:
        agreement.check_scores(module, tokenizer)
        if module is policy and config.samples and not config.served:
            agreement.check_samples(module.model, tokenizer, module.vocabulary)


def make_trainable(student: PreTrainedModel, *, checkpointing: bool) -> None:
    """Set training mode, which transformers needs to recompute activations, without dropout, which samplers lack.

    Raises:
        ValueError: the architecture cannot recompute activations.
    """
    student.train()
    for module in student.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in [name for name, value in vars(module).items() if "drop" in name and isinstance(value, float)]:
            setattr(module, name, 0.0)
    if checkpointing and not student.supports_gradient_checkpointing:
        raise ValueError(
            f"{type(student).__name__} cannot recompute activations: set model.gradient_checkpointing=false, or "
            "choose another student"
        )
    if checkpointing:
        student.activation_checkpointing_enable({"use_reentrant": False})


def plan_memory(config: Config) -> tuple[Workload, str]:
    """Choose what each rank holds at a time, and say why. All ranks call this and make the same choice."""
    student, teacher = model_sizes(config)
    load = workload(config, prompt=config.data.longest, ranks=config.world_size, resident=SMALL_MODEL_NUMEL)
    memory = -distributed.all_reduce_max({"missing": -device_memory(config)})["missing"]
    load, estimate = choose(config, student, teacher, load, memory)
    note = (
        f"memory: about {estimate.peak / GIB:.2f} GiB of {memory / GIB:.1f} on each rank, peaking in {estimate.worst}; "
        f"batch.backward={'one_at_a_time' if load.one_at_a_time else 'packed'}"
    )
    if load.ranks > 1 and (config.needs_teacher or config.needs_reference):
        note += f" engine.frozen_weights={'replicated' if load.replicated else 'sharded'}"
    if estimate.peak * MARGIN > memory:
        note += "; that may not fit: python -m longctx_rl.doctor with the run's settings suggests what to change"
    return load, note


def peak_gib() -> float:
    """Return the peak memory of this process in GiB: GPU memory if there is a GPU, else resident memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
