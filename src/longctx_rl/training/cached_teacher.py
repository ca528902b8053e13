"""Building a cache of teacher signals for a run, and using it in the teacher's place."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from longctx_rl.config.schema import Config
from longctx_rl.data.preparation import fingerprint
from longctx_rl.data.source import check_lengths, check_tasks, open_source
from longctx_rl.engine import distributed
from longctx_rl.engine.local import cast_parameters
from longctx_rl.policy.frozen import FrozenScorer
from longctx_rl.policy.loading import check_pair, context_length, load_model, load_tokenizer
from longctx_rl.policy.scoring import part_of
from longctx_rl.policy.shape import ModelShape
from longctx_rl.policy.teacher_cache import CachedScorer, Identity, TeacherCache, group_key, weights_fingerprint
from longctx_rl.training.groups import recorded_groups
from longctx_rl.training.step import FrozenAnchor, anchor_signal, divergence_from, packed_in_step

COMMAND = "python -m longctx_rl.data teacher-cache and the run's own settings"


def identity_of(config: Config, tokenizer: PreTrainedTokenizerBase, vocabulary: int | None) -> Identity:
    """What the signals of a configured teacher depend on."""
    assert config.model.teacher is not None
    kd = config.algo.kd
    return Identity(
        teacher=weights_fingerprint(config.model.teacher),
        name=config.model.teacher,
        tokenizer=fingerprint(tokenizer),
        estimator=kd.estimator,
        top_k=min(kd.top_k, vocabulary or len(tokenizer)) if kd.estimator == "topk" else 0,
        temperature=config.rollout.temperature,
        dtype=config.model.dtype,
        vocabulary=vocabulary,
        yarn=str(config.model.yarn) if config.model.yarn is not None else None,
    )


def cached_anchor(
    config: Config, tokenizer: PreTrainedTokenizerBase, vocabulary: int | None
) -> tuple[FrozenAnchor, int]:
    """The teacher of a run, from its cache, and its context. Raises ValueError if there is none of this teacher."""
    assert config.model.teacher_cache is not None
    cache = TeacherCache.open(Path(config.model.teacher_cache), identity_of(config, tokenizer, vocabulary), COMMAND)
    device = distributed.device(config)
    head = cache.head()
    head = None if head is None else head.to(device)
    anchor = FrozenAnchor(CachedScorer(cache, COMMAND), divergence_from(config.algo.kd), head, cache.shape)
    return anchor, cache.context


def build(config: Config) -> Path:
    """Ask the teacher about every row that the run will train on, in the rows' own packing; returns the folder.

    Step by step as the run takes them, so that a run on one process reads what the teacher would have said to it, to
    the bit, as long as no prompt comes twice in another company. What is there already is not asked again.

    Raises:
        ValueError: a method whose tokens are not recorded; a teacher that cannot be loaded or compared.
    """
    if config.algo.source != "dataset" or not config.needs_teacher:
        raise ValueError(
            f"+algo={config.algo.name} does not learn from a teacher on recorded answers, so nothing can be kept for "
            "it: choose +algo=kd"
        )
    name, root, steps = config.model.teacher, config.model.teacher_cache, config.budget.steps
    if steps is None:
        raise ValueError("budget.steps=null: say for how many steps the teacher is asked, such as budget.steps=200")
    assert name is not None and root is not None
    check_tasks(config)
    # One process, whatever the run will have.
    config = replace(config, engine=replace(config.engine, name="local", num_processes=1, num_nodes=1))
    distributed.init(config)
    tokenizer = load_tokenizer(config.model.tokenizer or config.model.student)
    vocabulary = check_pair(config.model, tokenizer)
    source = open_source(config, tokenizer)
    dtype, device = getattr(torch, config.model.dtype), distributed.device(config)
    scorer = FrozenScorer(load_model(name, config.model.yarn), chunk=config.model.scoring_chunk, vocabulary=vocabulary)
    check_lengths(config, context_length(scorer.model))
    cast_parameters(scorer.freeze(), dtype).to(device)
    divergence = divergence_from(config.algo.kd)
    head: Tensor | None = scorer.head.get_parameter("weight").detach() if divergence.estimator == "exact" else None
    live = FrozenAnchor(scorer, divergence, head, ModelShape.of(scorer.model))
    cache = TeacherCache.create(
        Path(root),
        identity_of(config, tokenizer, vocabulary),
        head,
        live.shape,
        context_length(scorer.model),
        scorer.model.config.hidden_size,
    )
    prompts = config.batch.prompts_per_step
    try:
        for step in tqdm(range(steps), desc="asking the teacher", unit=" steps", disable=None):
            groups = recorded_groups(source, tokenizer, range(step * prompts, (step + 1) * prompts))
            rows = packed_in_step(groups, config.batch.micro_batch_tokens, config.model.scoring_chunk, device)
            for packed in rows:
                keys = [group_key(packed, span) for span in packed.spans]
                if all(key in cache for key, _ in keys):
                    continue
                signal = anchor_signal(live, packed, config.rollout.temperature).signal
                for key, tokens in keys:
                    if key not in cache:
                        cache.add(key, part_of(signal, tokens))
    finally:
        cache.close()
    return cache.folder
