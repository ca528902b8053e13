"""Caching a teacher's signals for a run, and training from the cache instead of the teacher."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from longctx_rl.config.schema import Config
from longctx_rl.data.source import check_lengths, open_source
from longctx_rl.engine import distributed, startup
from longctx_rl.engine.local import cast_parameters
from longctx_rl.policy.frozen import FrozenScorer
from longctx_rl.policy.loading import check_pair, context_length, load_model, load_tokenizer
from longctx_rl.policy.scoring import part_of
from longctx_rl.policy.shape import ModelShape
from longctx_rl.policy.teacher_cache import CachedScorer, Identity, TeacherCache, group_key
from longctx_rl.policy.weights import config_hash, weights_hash
from longctx_rl.rollout import agreement
from longctx_rl.training.anchors import FrozenAnchor, anchor_signal
from longctx_rl.training.groups import packed_in_step, recorded_groups
from longctx_rl.training.preflight import check_cache

COMMAND = "python -m longctx_rl.data teacher-cache and the run's own settings"
"""The command that builds a cache, for messages."""


def identity_of(config: Config, tokenizer: PreTrainedTokenizerBase, vocabulary: int | None) -> Identity:
    """Return everything that the signals of the configured teacher depend on."""
    from longctx_rl.data.preparation import fingerprint  # pyarrow

    name, kd = config.model.teacher, config.algo.kd
    assert name is not None
    # Only the main rank hashes the weights, which can be many gigabytes; all ranks look for one and the same cache.
    hashes = (weights_hash(name), config_hash(name)) if distributed.is_main() else (None, None)
    teacher, teacher_config = distributed.broadcast(hashes)
    return Identity(
        teacher=teacher,
        config=teacher_config,
        name=name,
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
    """Return the teacher of a run from its cache, and its context. Raises ValueError if its cache does not exist."""
    assert config.model.teacher_cache is not None
    cache = TeacherCache.open(Path(config.model.teacher_cache), identity_of(config, tokenizer, vocabulary), COMMAND)
    device = distributed.device(config)
    head = cache.head()
    head = None if head is None else head.to(device)
    anchor = FrozenAnchor(CachedScorer(cache, COMMAND), config.algo.kd, head, cache.shape)
    return anchor, cache.context


def build(config: Config) -> Path:
    """Query the teacher for every row that the run will train on, and return the cache's folder.

    Rows are packed step by step as in the run, so a run in one process reads exactly the bits that its teacher would
    have computed, unless a prompt is repeated next to other prompts. Signals already in the cache are not recomputed.

    Raises:
        ValueError: the method does not train on recorded tokens, or the teacher cannot be loaded or compared.
    """
    check_cache(config)
    name, root, steps = config.model.teacher, config.model.teacher_cache, config.budget.steps
    assert name is not None and root is not None and steps is not None
    # The cache is built in one process, however many the run will have.
    config = replace(config, engine=replace(config.engine, name="local", num_processes=1, num_nodes=1))
    startup.init(config)
    tokenizer = load_tokenizer(config.model.tokenizer or config.model.student)
    vocabulary = check_pair(config.model, tokenizer)
    source = open_source(config, tokenizer)
    dtype, device = getattr(torch, config.model.dtype), distributed.device(config)
    scorer = FrozenScorer(load_model(name, config.model.yarn), chunk=config.model.scoring_chunk, vocabulary=vocabulary)
    check_lengths(config, context_length(scorer.model))
    agreement.check_scores(scorer.freeze(), tokenizer)
    cast_parameters(scorer, dtype).to(device)
    divergence = config.algo.kd
    head: Tensor | None = scorer.head.get_parameter("weight").detach() if divergence.estimator == "exact" else None
    shape = ModelShape.of(scorer.model)
    live = FrozenAnchor(scorer, divergence, head, shape)
    cache = TeacherCache.create(
        Path(root),
        identity_of(config, tokenizer, vocabulary),
        head,
        shape,
        context_length(scorer.model),
        scorer.model.config.hidden_size,
    )
    prompts = config.batch.prompts_per_step
    try:
        for step in tqdm(range(steps), desc="querying the teacher", unit=" steps", disable=None):
            groups = recorded_groups(source, tokenizer, range(step * prompts, (step + 1) * prompts))
            rows = packed_in_step(groups, config.batch.micro_batch_tokens, config.model.scoring_chunk, device)
            for packed, _ in rows:
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
