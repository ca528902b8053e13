"""Drift of a checkpoint from its base on short prompts: exact KL(checkpoint || base) per token.

The base answers a fixed set of short prompts greedily, and both models score every token of these answers over the
whole vocabulary. Forgetting shows here before it shows in a score: training on long data shifts the distribution on
short text (LongReD, arXiv 2502.07365).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from longctx_rl.config.eval import KLConfig, SuiteConfig
from longctx_rl.config.model import YarnConfig
from longctx_rl.data.packing import pack, plan_rows
from longctx_rl.data.source import prompt_ids
from longctx_rl.evals.items import Item
from longctx_rl.evals.suites import Plan, items_of
from longctx_rl.evals.summary import aligned
from longctx_rl.files import built, read_object, write_text
from longctx_rl.objective.spec import Divergence
from longctx_rl.policy.frozen import FrozenScorer
from longctx_rl.policy.loading import checked_config, context_length, end_tokens, load_model, load_tokenizer
from longctx_rl.policy.policy import Policy
from longctx_rl.policy.scoring import Anchor
from longctx_rl.rollout import SampleRequest
from longctx_rl.rollout.hf import HFSampler
from longctx_rl.stats import Estimate, bootstrap_mean
from longctx_rl.types import Completion, RolloutGroup

PROMPTS = {"heldout": ("multihop", "grounding", "longform"), "longreason": ("original",), "code": ("short",)}
"""Suite to the labels of its short items."""
ROW_TOKENS = 8192
"""Tokens of a packed row."""


@dataclass(frozen=True, slots=True)
class TokenKL:
    """KL at each token of the base's answer to one item."""

    task: str
    id: str
    nats: tuple[float, ...]
    """[C]"""


def prompts(config: KLConfig, tokenizer: PreTrainedTokenizerBase) -> list[Item]:
    """The fixed set of prompts: the same for all checkpoints with this tokenizer."""
    suites = {
        name: SuiteConfig(labels=labels, lengths=(config.length,), max_new_tokens=config.max_new_tokens)
        for name, labels in PROMPTS.items()
    }
    return [item for name, suite in suites.items() for item in items_of(name, Plan(suite, config.items), tokenizer)]


def check_tokens(base: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ValueError for a base that cannot be loaded, or whose tokens differ from those of ``tokenizer``."""
    checked_config(base)
    if load_tokenizer(base).get_vocab() != tokenizer.get_vocab():
        raise ValueError(
            f"kl.base={base} has a different vocabulary from the checkpoint, so the two cannot be compared: "
            "give the model that the checkpoint was trained from, or kl.base=null"
        )


def base_model(config: KLConfig, tokenizer: PreTrainedTokenizerBase, yarn: YarnConfig | None = None) -> PreTrainedModel:
    """The base model as it is on disk, except for positions stretched by ``yarn``.

    Raises:
        ValueError: it cannot be loaded, has a different vocabulary, or its context is too short.
    """
    assert config.base is not None
    check_tokens(config.base, tokenizer)
    model = load_model(config.base, yarn)
    model.eval()
    if config.length + config.max_new_tokens > context_length(model):
        raise ValueError(
            f"kl.length={config.length} and kl.max_new_tokens={config.max_new_tokens} exceed the context of "
            f"{config.base}, {context_length(model)}: lower them"
        )
    return model


@torch.no_grad()
def token_kl(
    model: PreTrainedModel,
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    items: Sequence[Item],
    config: KLConfig,
    batch_tokens: int,
) -> list[TokenKL]:
    """KL(model || base) at each token of the base's greedy answers, over the whole vocabulary, in nats.

    Raises:
        ValueError: a model that cannot be scored: see ``policy.attention.dispatch.install``.
    """
    heads = [module.get_output_embeddings().weight for module in (model, base)]
    vocabulary = None if len(heads[0]) == len(heads[1]) else len(tokenizer)  # padded to different sizes
    sampler = HFSampler(
        tokenizer,
        temperature=0.0,
        max_new_tokens=config.max_new_tokens,
        batch_tokens=batch_tokens,
        eos_ids=end_tokens(base, tokenizer),
        vocabulary=vocabulary,
    )
    prompt_tokens = [prompt_ids(tokenizer, item.example) for item in items]
    answers = sampler.sample(base, [SampleRequest(prompt_ids=ids, seeds=(0,)) for ids in prompt_tokens])
    groups = [
        RolloutGroup(item.example, ids, (Completion(answer.token_ids, answer.text, "recorded"),))
        for item, ids, (answer,) in zip(items, prompt_tokens, answers, strict=True)
    ]
    policy = Policy(model, chunk=config.chunk, vocabulary=vocabulary)
    scorer = FrozenScorer(base, chunk=config.chunk, vocabulary=vocabulary).freeze()
    measured: list[TokenKL] = []
    for row in plan_rows(groups, ROW_TOKENS):
        packed = pack([groups[index] for index in row], base.device)
        signal = scorer(packed, estimator="exact", temperature=1.0, top_k=1, head=heads[1])
        scores = policy(
            packed, temperature=1.0, anchors={"ref": Anchor(Divergence(direction="reverse", estimator="exact"), signal)}
        )
        per_item = torch.split(scores.divergences["ref"], packed.sequence_lens.tolist())
        # Rounding can leave a tiny negative number.
        measured += [
            TokenKL(items[index].label, items[index].example.id, tuple(values.clamp(min=0.0).tolist()))
            for index, values in zip(row, per_item, strict=True)
        ]
    return measured


def measure(
    path: Path,
    facts: Mapping[str, object],
    model: PreTrainedModel,
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: KLConfig,
    batch_tokens: int,
) -> str:
    """Measure, keep the result in ``path``, and return its table; a kept result with the same facts is used again.

    Args:
        facts: identifies both models and the settings.

    Raises:
        ValueError: see ``token_kl``.
    """
    if path.exists():
        kept = read_object(path, "remove it to measure the KL again", facts=dict[str, Any], items=list[TokenKL])
        if kept["facts"] == dict(facts):
            return table([built(TokenKL, record) for record in kept["items"]])
    measured = token_kl(model, base, tokenizer, prompts(config, tokenizer), config, batch_tokens)
    value, tokens = mean(measured)
    summary = {"nats_per_token": value.value, "interval": [value.low, value.high], "tokens": tokens}
    items = [{"id": item_kl.id, "task": item_kl.task, "nats": item_kl.nats} for item_kl in measured]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps({"facts": dict(facts), **summary, "items": items}) + "\n")
    return table(measured)


def mean(measured: Sequence[TokenKL]) -> tuple[Estimate, int]:
    """Mean nats per token with a 95 % confidence interval, resampled by item, and the number of tokens."""
    values = [value for item_kl in measured for value in item_kl.nats]
    families = [item_kl.id for item_kl in measured for _ in item_kl.nats]
    return bootstrap_mean(values, families, seed=0, limits=(0.0, max(values))), len(values)


def table(measured: Sequence[TokenKL]) -> str:
    """Mean nats per token of each task and of all tasks, with 95 % confidence intervals, as plain text."""
    rows = [("task", "items", "tokens", "nats per token")]
    for task in (*dict.fromkeys(item_kl.task for item_kl in measured), "all"):
        chosen = [item_kl for item_kl in measured if task in (item_kl.task, "all")]
        value, tokens = mean(chosen)
        rows.append((task, str(len(chosen)), str(tokens), f"{value.value:.4f} [{value.low:.4f}, {value.high:.4f}]"))
    return aligned(rows)
