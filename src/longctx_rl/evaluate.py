"""``python -m longctx_rl.evaluate checkpoint=FOLDER out=FOLDER [eval=all]``: what a checkpoint answers, suite by suite.

    python -m longctx_rl.evaluate checkpoint=mini-student out=runs/mini-student eval=code eval.items=100

Suites: eval=heldout, longreason, ruler, code, or all of them; short, longblocks, longreason_hub. kl.base=FOLDER gives
the distance to another checkpoint. Settings are in conf/evaluate.yaml and conf/eval/. Every answer is kept in
out/evals/<suite>.jsonl as it comes; the same command, or one with more items, goes on from there.
"""

import dataclasses
import hashlib
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import nn
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from longctx_rl import process
from longctx_rl.__main__ import composed_evaluate
from longctx_rl.config_eval import EvaluateConfig, SuiteConfig
from longctx_rl.data.generators.chronicle import LENGTH_TOLERANCE
from longctx_rl.data.source import prompt_ids
from longctx_rl.evals import kl, page, records, summary
from longctx_rl.evals.evaluation import answer
from longctx_rl.evals.grading import Grading, grader_of, runs_code
from longctx_rl.evals.items import Item
from longctx_rl.evals.records import ItemRecord, prompt_hash
from longctx_rl.evals.suites import Plan, check_suite, items_of
from longctx_rl.policy import attention
from longctx_rl.policy.loading import context_length, end_tokens, load_model, load_tokenizer
from longctx_rl.rewards.code import CodeGrader
from longctx_rl.rewards.judge import GraderUnavailable
from longctx_rl.rollout.hf import HFSampler
from longctx_rl.run_directory import write_text

BATCH = 64
"""Items that are answered before they are written."""


def evaluate(config: EvaluateConfig) -> str:
    """Answer what is missing, and say what it amounts to.

    Raises:
        ValueError: a checkpoint, suite or folder that cannot be used, or code that cannot be run.
    """
    for name, suite in config.eval.suites.items():
        check_suite(name, suite.labels)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    tokenizer = load_tokenizer(config.tokenizer or config.checkpoint)
    model = load_model(config.checkpoint).eval()
    check_fit(config, model, tokenizer)
    with ExitStack() as stack:
        code = None
        if runs_code(config.eval.suites):
            code = stack.enter_context(closing(CodeGrader(config.sandbox)))
        claim(Path(config.out), config, model)
        try:
            stack.enter_context(FileLock(Path(config.out) / ".lock", timeout=0))
        except Timeout as error:
            raise ValueError(f"another evaluation writes to {config.out}: choose another out=FOLDER") from error
        attention.install(model)
        cuda = torch.cuda.is_available() if config.device == "auto" else config.device == "cuda"
        model.to("cuda" if cuda else "cpu", getattr(torch, config.dtype))
        tables = []
        try:
            for name, suite in config.eval.suites.items():
                found = run_suite(config, name, suite, model, tokenizer, grader_of(name, suite, code))
                tables.append(f"{name}\n{summary.table(found)}")
            if config.kl.base is not None:
                tables.append(distance(config, model, tokenizer))
        except GraderUnavailable as error:
            raise ValueError(f"{error}. Answers so far are kept: the same command goes on from there") from error
    return "\n\n".join([*tables, page.write(Path(config.out))])


def run_suite(
    config: EvaluateConfig,
    name: str,
    suite: SuiteConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    grader: Grading,
) -> list[ItemRecord]:
    """The records of all items of a suite, the missing ones answered and written."""
    path = Path(config.out) / "evals" / f"{name}.jsonl"
    plan = Plan(suite, config.eval.items, config.eval.first)
    items = items_of(name, plan, tokenizer)
    records.drop_after(path, 0)  # a last line that was cut off
    prompts = {item.example.id: prompt_hash(prompt_ids(tokenizer, item.example)) for item in items}
    found = records.read(path) if path.exists() else []
    kept = {record.id: record for record in found if prompts.get(record.id) == record.prompt_hash}
    if stale := [record.id for record in found if record.id in prompts and record.id not in kept]:
        raise ValueError(f"{path} answers other prompts ({stale[0]}): choose another out=FOLDER")
    sampler = HFSampler(
        tokenizer,
        temperature=0.0,
        max_new_tokens=suite.max_new_tokens,
        batch_tokens=config.rollout.batch_tokens,
        eos_ids=end_tokens(model, tokenizer),
    )
    missing = [item for item in items if item.example.id not in kept]
    with tqdm(total=len(items), initial=len(items) - len(missing), desc=name, unit="item") as bar:
        for batch in batches(missing):
            answered = answer(model, sampler, tokenizer, batch, grader, step=0)
            kept |= {record.id: record for record in answered}
            records.append(path, answered)
            bar.update(len(batch))
    return [kept[item.example.id] for item in items]


def distance(config: EvaluateConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    """KL(checkpoint || base), measured and kept, or found as it was measured before."""
    path = Path(config.out) / "evals" / "kl.json"
    base = kl.base_model(config.kl, tokenizer)
    facts = dataclasses.asdict(config.kl) | {"checkpoint": config.checkpoint, "base_weights": weights_hash(base)}
    base.to(model.device, model.dtype)
    return f"KL to {config.kl.base}\n" + kl.measure(
        path, facts, model, base, tokenizer, config.kl, config.rollout.batch_tokens
    )


def batches(items: Sequence[Item]) -> list[list[Item]]:
    """Items of similar length together, those that share a document next to each other."""
    ordered = sorted(items, key=lambda item: (item.example.length, item.example.document))
    return [ordered[start : start + BATCH] for start in range(0, len(ordered), BATCH)]


def check_fit(config: EvaluateConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer of another vocabulary, and lengths beyond the model's context."""
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, nn.Embedding)
    rows = embedding.num_embeddings
    if len(tokenizer) > rows:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens and {config.checkpoint} knows {rows}: give the tokenizer that "
            "it was trained with, tokenizer=FOLDER"
        )
    context = context_length(model)
    for name, suite in config.eval.suites.items():
        need = round((1 + LENGTH_TOLERANCE) * max(suite.lengths)) + suite.max_new_tokens
        if need > context:
            raise ValueError(
                f"eval.suites.{name}.lengths needs {need} tokens with the answer, but the context of "
                f"{config.checkpoint} is {context}: lower it"
            )


def claim(out: Path, config: EvaluateConfig, model: PreTrainedModel) -> None:
    """Make ``out`` this checkpoint's folder, or find that it is.

    Raises:
        ValueError: it holds the results of other weights, or cannot be written.
    """
    mine: dict[str, Any] = {
        "checkpoint": config.checkpoint,
        "weights": weights_hash(model),
        "dtype": config.dtype,
        "max_new_tokens": {name: suite.max_new_tokens for name, suite in config.eval.suites.items()},
        "asked": {
            name: {"items": config.eval.items, "cells": list(Plan(suite.labels, suite.lengths, 0).cells())}
            for name, suite in config.eval.suites.items()
        },
    }
    path, other = out / "evaluation.json", "choose another out=FOLDER"
    if path.exists():
        theirs = json.loads(path.read_text(encoding="utf-8"))
        for key in ("weights", "dtype"):
            if theirs[key] != mine[key]:
                raise ValueError(f"{out} holds answers of other {key} ({theirs['checkpoint']}, {theirs[key]}): {other}")
        for name, limit in theirs["max_new_tokens"].items():
            if mine["max_new_tokens"].setdefault(name, limit) != limit:
                raise ValueError(
                    f"{out} holds answers of at most {limit} tokens to {name}: set eval.suites.{name}.max_new_tokens="
                    f"{limit}, or {other}"
                )
        mine["asked"] = theirs.get("asked", {}) | mine["asked"]
    elif (out / "config.yaml").exists() or (out / "evals").exists():
        raise ValueError(f"{out} is a training run's folder, whose records would be lost: {other}")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{out} cannot be written ({error.strerror}): {other}") from error
    write_text(path, json.dumps(mine, indent=2) + "\n")


def weights_hash(model: PreTrainedModel) -> str:
    """A hash of all parameters, as they were loaded."""
    digest = hashlib.blake2b(digest_size=16)
    for name, parameter in sorted(model.named_parameters()):
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def main() -> None:
    """Entry point."""
    overrides = sys.argv[1:]
    if not overrides or {"-h", "--help"} & set(overrides):
        print(__doc__)
        sys.exit(0 if overrides else process.UNUSABLE)
    process.command(lambda: evaluate(composed_evaluate(overrides)))


if __name__ == "__main__":
    main()
