"""``python -m longctx_rl.evaluate checkpoint=FOLDER out=FOLDER [eval=all]``: what a checkpoint answers, suite by suite.

    python -m longctx_rl.evaluate checkpoint=mini-student out=runs/mini-student eval=code eval.items=100
    python -m longctx_rl.evaluate checkpoint=mini-student out=runs/mini-student processes=2

Suites: eval=heldout, longreason, ruler, code, or all of them; short, longblocks, longreason_hub. kl.base=FOLDER gives
the distance to another checkpoint; logging=wandb mirrors the results, as it does a training's. Settings are in
conf/evaluate.yaml and conf/eval/. Every answer is kept in out/evals/<suite>.jsonl as it comes; the same command, or one
with more items, goes on from there.
"""

import dataclasses
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import nn
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from longctx_rl import cli
from longctx_rl.__main__ import composed_evaluate
from longctx_rl.config.eval import EvaluateConfig
from longctx_rl.data.generators.chronicle import LENGTH_TOLERANCE
from longctx_rl.evals import kl, summary
from longctx_rl.evals.asking import Share, Told, ask, device_of, plan_of
from longctx_rl.evals.grading import runs_code
from longctx_rl.evals.processes import ask_together, merge
from longctx_rl.evals.records import ItemRecord
from longctx_rl.evals.suites import READ, check_suite
from longctx_rl.policy.loading import check_tokenizer, context_length, load_model, load_tokenizer
from longctx_rl.report.answers import evaluation_folder, page
from longctx_rl.runs.directory import write_text
from longctx_rl.runs.metrics import Row
from longctx_rl.runs.wandb import Mirror, evaluation_settings
from longctx_rl.sandbox import isolation

LIMITS = {
    "max_new_tokens": "token limit",
    "answer_slack": "token limit",
    "samples": "number of samples",
    "temperature": "temperature",
}
"""Settings of a suite that all answers in a folder have in common."""
SINGLE = {"samples": 1, "temperature": 0.0}
"""Those of folders that do not say."""


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
    model = load_model(config.checkpoint, config.yarn).eval()
    check_fit(config, model, tokenizer)
    if config.kl.base is not None:
        kl.check_tokens(config.kl.base, tokenizer)
    backend = isolation.choose(config.sandbox) if runs_code(config.eval.suites) else None
    with only_one(Path(config.out)), progress(config) as told:
        claim(Path(config.out), config, model, backend)
        merge(Path(config.out))
        if config.processes == 1:
            found = ask(config, model, tokenizer, Share(), told)
            del model
        else:
            del model  # each process has its own
            found = ask_together(config, told)
        settle(Path(config.out), found)
    tables = [
        f"{name}\n{summary.table(answered, means=config.eval.suites[name].shared_items)}"
        for name, answered in found.items()
    ]
    if config.kl.base is not None:
        tables.append(distance(config, tokenizer))
    if config.logging.mode != "disabled":
        mirror(config)
    return "\n\n".join([*tables, page.write(Path(config.out))])


def distance(config: EvaluateConfig, tokenizer: PreTrainedTokenizerBase) -> str:
    """KL(checkpoint || base), measured and kept, or found as it was measured before."""
    path = Path(config.out) / "evals" / "kl.json"
    base, model = kl.base_model(config.kl, tokenizer, config.yarn), load_model(config.checkpoint, config.yarn).eval()
    facts = dataclasses.asdict(config.kl) | {
        "checkpoint": config.checkpoint,
        "base_weights": weights_hash(base),
        "positions": [positions(one) for one in (model, base)],
    }
    for one in (model, base):
        nn.Module.to(one, device_of(config, Share()), getattr(torch, config.dtype))
    return f"KL to {config.kl.base}\n" + kl.measure(
        path, facts, model, base, tokenizer, config.kl, config.rollout.batch_tokens
    )


def mirror(config: EvaluateConfig) -> None:
    """Show on wandb what the folder holds, of this evaluation and of those before it, as a run of its own."""
    out = Path(config.out).resolve()
    row: Row = {"step": 0}
    for suite in evaluation_folder.load(out).suites:
        row |= summary.metrics(suite.records, suite.name) if suite.records else {}
    mirrored = Mirror(evaluation_settings(config))
    mirrored.log(row)
    mirrored.keep(out, None)
    mirrored.close()


@contextmanager
def only_one(out: Path) -> Iterator[None]:
    """Nobody else writes to the folder meanwhile. Raises ValueError if somebody does, or it cannot hold results."""
    other = "choose another out=FOLDER"
    if not (out / "evaluation.json").exists() and ((out / "config.yaml").exists() or (out / "evals").exists()):
        raise ValueError(f"{out} is a training run's folder, whose records would be lost: {other}")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{out} cannot be written ({error.strerror}): {other}") from error
    try:
        with FileLock(out / ".lock", timeout=0):
            yield
    except Timeout as error:
        raise ValueError(f"another evaluation writes to {out}: {other}") from error


@contextmanager
def progress(config: EvaluateConfig) -> Iterator[Told]:
    """A bar over all items of all suites; those that were answered before count at once."""
    with tqdm(total=sum(plan_of(config, name).size for name in config.eval.suites), unit="item") as bar:

        def told(suite: str, count: int) -> None:
            bar.set_description(suite, refresh=not count)
            bar.update(count)

        yield told
        bar.total = bar.n  # what is read may have fewer than are asked for


def check_fit(config: EvaluateConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer of another vocabulary, and lengths beyond the model's context."""
    check_tokenizer(model, tokenizer, config.checkpoint)
    if config.tokenizer is not None:
        check_same_tokens(config.checkpoint, config.tokenizer, tokenizer)
    context = context_length(model)
    for name, suite in config.eval.suites.items():
        if name in READ:
            continue  # their prompts are as long as they are: see asking.py
        need = round((1 + LENGTH_TOLERANCE) * max(suite.lengths)) + suite.max_new_tokens
        if need > context:
            raise ValueError(
                f"eval.suites.{name}.lengths needs {need} tokens with the answer, but the context of "
                f"{config.checkpoint} is {context}: lower it, or stretch the model, yarn='{{factor: 4.0, "
                "original_context: 32768}'"
            )


def check_same_tokens(checkpoint: str, name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ValueError if the checkpoint has a tokenizer of its own, in which some number is another token."""
    try:
        own = load_tokenizer(checkpoint)
    except ValueError:
        return  # it has none
    theirs = {number: token for token, number in tokenizer.get_vocab().items()}
    differing = [token for token, number in own.get_vocab().items() if theirs.get(number, token) != token]
    if differing:
        raise ValueError(
            f"tokenizer={name} has other tokens than {checkpoint}'s own ({len(differing)} of {len(own)} differ): leave "
            "tokenizer out, or give the one that the checkpoint was trained with"
        )


def claim(out: Path, config: EvaluateConfig, model: PreTrainedModel, backend: str | None) -> None:
    """Make ``out`` this checkpoint's folder, or find that it is. ``backend``: what generated code is run in.

    Raises:
        ValueError: it holds the results of other weights.
    """
    if backend is not None:
        tqdm.write(f"generated code is run in sandbox={backend}", file=sys.stderr)
    mine: dict[str, Any] = {
        "checkpoint": config.checkpoint,
        "tokenizer": config.tokenizer or config.checkpoint,
        "weights": weights_hash(model),
        "dtype": config.dtype,
        "positions": positions(model),
        "sandbox": backend,
        "limits": {name: {key: getattr(suite, key) for key in LIMITS} for name, suite in config.eval.suites.items()},
        "asked": {
            name: [(*cell, plan.each) for cell in plan.cells()]
            for name, plan in ((name, plan_of(config, name)) for name in config.eval.suites)
        },
    }
    path, other = out / "evaluation.json", "choose another out=FOLDER"
    if path.exists():
        theirs = json.loads(path.read_text(encoding="utf-8"))
        for key in ("weights", "dtype", "positions"):
            if (its := theirs.get(key, mine[key])) != mine[key]:
                raise ValueError(f"{out} holds answers of other {key} ({theirs['checkpoint']}, {its}): {other}")
        if "limits" not in theirs:
            raise ValueError(f"{out} was written by an older version, which kept no limits of answers: {other}")
        for name, limits in theirs["limits"].items():
            for key, limit in {**SINGLE, **limits}.items():
                if mine["limits"].setdefault(name, limits)[key] != limit:
                    setting = f"eval.suites.{name}.{key}={'null' if limit is None else limit}"
                    raise ValueError(f"{out} holds answers under another {LIMITS[key]}: set {setting}, or {other}")
        mine["asked"] = theirs.get("asked", {}) | mine["asked"]
    write_text(path, json.dumps(mine, indent=2) + "\n")


def settle(out: Path, found: dict[str, list[ItemRecord]]) -> None:
    """Put the number of items that there were in place of how many were asked for: a file may have fewer."""
    path = out / "evaluation.json"
    about = json.loads(path.read_text(encoding="utf-8"))
    for name, answered in found.items():
        counts = Counter((record.task, record.length) for record in answered)
        about["asked"][name] = [(*cell, count) for cell, count in counts.items()]
    write_text(path, json.dumps(about, indent=2) + "\n")


def positions(model: PreTrainedModel) -> dict[str, Any] | None:
    """How the model tells positions apart, as far as its configuration says; None: otherwise than by rotation."""
    found: dict[str, Any] | None = getattr(model.config, "rope_parameters", None)
    return found


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
        sys.exit(0 if overrides else cli.UNUSABLE)
    cli.command(lambda: evaluate(composed_evaluate(overrides)))


if __name__ == "__main__":
    main()
