"""The evaluation of a checkpoint: load and check the model, answer the suites, and measure the KL to a base model."""

import dataclasses
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from longctx_rl.config.eval import EvaluateConfig
from longctx_rl.evals import folder, kl, summary
from longctx_rl.evals.answering import answer_suites, device_of
from longctx_rl.evals.preconditions import check_lengths
from longctx_rl.evals.processes import answer_in_processes, merge
from longctx_rl.evals.served import served
from longctx_rl.evals.suites import ProgressCallback, Share, plan_of
from longctx_rl.policy.loading import (
    check_tokenizer,
    context_length,
    load_model,
    load_tokenizer,
    load_without_weights,
)
from longctx_rl.policy.policy import Policy
from longctx_rl.policy.weights import weights_hash
from longctx_rl.rollout import agreement


def evaluate_checkpoint(config: EvaluateConfig, backend: str | None) -> list[str]:
    """Answer the missing items of all suites, and return one table per suite, then that of the KL if it is configured.

    The caller holds the output folder (see ``folder.locked``).

    Args:
        backend: sandbox of generated code; None: no suite runs code.

    Raises:
        ValueError: a checkpoint, suite or folder that cannot be used, or code that cannot be run.
    """
    out = Path(config.out)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    tokenizer = load_tokenizer(config.tokenizer or config.checkpoint)
    remote = config.rollout.name == "vllm"
    model = (load_without_weights if remote else load_model)(config.checkpoint, config.yarn).eval()
    check_fit(config, model, tokenizer)
    if not remote:
        agreement.check_samples(model, tokenizer)
    if config.kl.base is not None:
        kl.check_tokens(config.kl.base, tokenizer)
        if not remote:
            agreement.check_scores(Policy(model, chunk=config.kl.chunk), tokenizer)
    if backend is not None:
        print(f"generated code is run in sandbox={backend}", file=sys.stderr)
    weights = weights_hash(config.checkpoint)
    if remote and weights is None:
        check_served_alone(config)
    folder.claim(out, config, weights=weights, positions=positions(model), backend=backend)
    merge(out)
    cpu = device_of(config, Share()).type == "cpu"
    with progress_bar(config) as progress, served(config, model, weights, cpu) as servers:
        if config.processes == 1:
            answered = answer_suites(config, model, tokenizer, Share(), progress, servers)
            del model
        else:
            del model  # each process loads its own
            for name in config.eval.suites:
                folder.note_sampler(out, name, config.rollout.name)
            answered = answer_in_processes(config, progress)
    folder.record_counts(out, answered)
    tables = [
        f"{name}\n{summary.table(records, means=config.eval.suites[name].shared_items)}"
        for name, records in answered.items()
    ]
    if config.kl.base is not None:
        tables.append(kl_to_base(config, tokenizer))
    return tables


def kl_to_base(config: EvaluateConfig, tokenizer: PreTrainedTokenizerBase) -> str:
    """The table of KL(checkpoint || base), from ``evals/kl.json`` if it was measured before."""
    assert config.kl.base is not None
    base, model = kl.base_model(config.kl, tokenizer, config.yarn), load_model(config.checkpoint, config.yarn).eval()
    for scored in (base, model):
        agreement.check_scores(Policy(scored, chunk=config.kl.chunk), tokenizer)
    agreement.check_samples(base, tokenizer)
    facts = dataclasses.asdict(config.kl) | {
        "checkpoint": config.checkpoint,
        "base_weights": weights_hash(config.kl.base),
        "positions": [positions(module) for module in (model, base)],
    }
    for module in (model, base):
        nn.Module.to(module, device_of(config, Share()), getattr(torch, config.dtype))
    path = Path(config.out) / "evals" / "kl.json"
    return f"KL to {config.kl.base}\n" + kl.measure(
        path, facts, model, base, tokenizer, config.kl, config.rollout.batch_tokens
    )


def check_served_alone(config: EvaluateConfig) -> None:
    """Raise ValueError if weights are needed that only a server has."""
    for key, needed in (("rollout.server=auto", config.rollout.server == "auto"), ("kl.base", config.kl.base)):
        if needed:
            raise ValueError(
                f"{key} needs the weights of {config.checkpoint} on this disk: run hf download {config.checkpoint}"
            )


@contextmanager
def progress_bar(config: EvaluateConfig) -> Iterator[ProgressCallback]:
    """A bar over the items of all suites, on stderr; items with kept answers count at once."""
    with tqdm(total=sum(plan_of(config.eval, name).size for name in config.eval.suites), unit="item") as bar:

        def progress(suite: str, count: int) -> None:
            bar.set_description(suite, refresh=not count)
            bar.update(count)

        yield progress
        bar.total = bar.n  # a suite that is read may hold fewer items than requested


def check_fit(config: EvaluateConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ValueError for a tokenizer with another vocabulary, or for lengths beyond the model's context."""
    check_tokenizer(model, tokenizer, config.checkpoint)
    if config.tokenizer is not None:
        check_same_tokens(config.checkpoint, config.tokenizer, tokenizer)
    check_lengths(config, context_length(model))


def check_same_tokens(checkpoint: str, name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ValueError if the checkpoint has its own tokenizer, in which some id is another token."""
    try:
        own = load_tokenizer(checkpoint)
    except ValueError:
        return  # the checkpoint has no tokenizer
    tokens = {number: token for token, number in tokenizer.get_vocab().items()}
    differing = [token for token, number in own.get_vocab().items() if tokens.get(number, token) != token]
    if differing:
        raise ValueError(
            f"tokenizer={name} does not match {checkpoint}'s own ({len(differing)} of {len(own)} differ): set "
            "tokenizer=null, or give the tokenizer that the checkpoint was trained with"
        )


def positions(model: PreTrainedModel) -> dict[str, Any] | None:
    """Rotary position settings of the model's configuration; None: it has none."""
    settings: dict[str, Any] | None = getattr(model.config, "rope_parameters", None)
    return settings
