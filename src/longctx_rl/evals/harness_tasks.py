"""Tasks of EleutherAI's lm_eval: loading them with their data, and running them on a checkpoint."""

import json
import random
from pathlib import Path
from typing import Any

import lm_eval
import numpy as np
import torch
from datasets.exceptions import DatasetsError
from huggingface_hub.errors import HfHubHTTPError
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml
from lm_eval.utils import make_table
from torch import nn

from longctx_rl.config import convert
from longctx_rl.config.eval import HarnessConfig
from longctx_rl.evals.harness_model import HarnessModel
from longctx_rl.evals.preconditions import RESULTS
from longctx_rl.files import write_text
from longctx_rl.policy.loading import check_tokenizer, load_model, load_tokenizer
from longctx_rl.policy.policy import Policy
from longctx_rl.policy.weights import locate
from longctx_rl.rollout import agreement

SEED = 1234
"""Seed of few-shot examples and of generated prompts."""
UNAVAILABLE = (OSError, ValueError, HfHubHTTPError, DatasetsError)
"""Errors of a task whose data cannot be loaded."""


def run_tasks(config: HarnessConfig) -> str:
    """Run the tasks, write results.json and samples.json, and return lm_eval's table.

    Raises:
        ValueError: an unknown or unsafe task, or one whose data are not available; a checkpoint that cannot be used.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    tokenizer = load_tokenizer(config.tokenizer or config.checkpoint)
    tasks = load_tasks(config)
    model = load_model(config.checkpoint, config.yarn)
    check_tokenizer(model, tokenizer, config.checkpoint)
    agreement.check_scores(Policy(model.eval(), chunk=config.chunk), tokenizer)
    agreement.check_samples(model, tokenizer)
    cuda = torch.cuda.is_available() if config.device == "auto" else config.device == "cuda"
    nn.Module.to(model, "cuda" if cuda else "cpu", getattr(torch, config.dtype))
    adapter = HarnessModel(
        model,
        tokenizer,
        max_new_tokens=config.max_new_tokens,
        batch_tokens=config.batch_tokens,
        chunk=config.chunk,
        name=config.checkpoint,
    )
    # Not simple_evaluate, which lists all installed packages afterwards.
    results = lm_eval.evaluate(
        lm=adapter,
        task_dict=tasks,
        limit=config.limit,
        apply_chat_template=config.chat,
        fewshot_as_multiturn=True,
        confirm_run_unsafe_code=bool(config.unsafe),
        log_samples=True,
    )
    results["settings"] = convert.plain(config)
    samples = results.pop("samples")
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "samples.json", json.dumps(samples, indent=1, default=str, ensure_ascii=False) + "\n")
    write_text(out / RESULTS, json.dumps(results, indent=1, default=str, ensure_ascii=False) + "\n")
    return str(make_table(results))


def load_tasks(config: HarnessConfig) -> dict[str, dict[str, Any]]:
    """The tasks with their data and their groups, in the form that ``lm_eval.evaluate`` expects.

    Raises:
        ValueError: an unknown task; an unsafe task that ``unsafe`` does not name; data or a package that a task needs
            are missing.
    """
    # RULER generates prompts of these lengths with this tokenizer.
    metadata = {"max_seq_lengths": list(config.lengths), "tokenizer": locate(config.tokenizer or config.checkpoint)}
    manager = TaskManager(include_path=config.include, include_defaults=config.include is None, metadata=metadata)
    if not set(config.tasks) <= set(manager.all_tasks):  # lm_eval's own tasks are thousands of files
        manager = TaskManager(include_path=config.include, metadata=metadata)
    loaded: dict[str, dict[str, Any]] = {"tasks": {}, "groups": {}, "group_map": {}}
    for name in config.tasks:
        if name not in manager.all_tasks:
            raise ValueError(f"tasks={name} does not exist: see `lm_eval ls tasks`, or give include=FOLDER")
        refuse_unsafe(name, _settings(manager, name), config)
        random.seed(SEED)  # RULER generates prompts while its tasks load: the same ones whatever was loaded before
        np.random.seed(SEED)
        try:
            for kind, entries in manager.load([name]).items():
                loaded[kind] |= entries
        except ImportError as error:
            raise ValueError(
                f"task {name} needs a package ({error}): pip install 'lm_eval[ruler]' or the like"
            ) from error
        except UNAVAILABLE as error:
            cause = (str(error).strip() or type(error).__name__).splitlines()[0]
            source = _settings(manager, name).get("dataset_path") or "its data set"
            raise ValueError(
                f"the data of task {name} are not available ({cause}): hf download --repo-type dataset {source}"
            ) from error
    for name, task in loaded["tasks"].items():
        refuse_unsafe(name, {"unsafe_code": getattr(task, "UNSAFE_CODE", False)}, config)
        own = task.get_config("num_fewshot")
        if own != 0:  # a task that sets 0 is not meant to have examples
            task.set_config(key="num_fewshot", value=own or 0 if config.fewshot is None else config.fewshot)
        task.set_fewshot_seed(seed=SEED)
    return loaded


def refuse_unsafe(name: str, settings: dict[str, Any], config: HarnessConfig) -> None:
    """Raise ValueError for a task that executes the model's output, unless ``unsafe`` names it."""
    if settings.get("unsafe_code") and name not in config.unsafe:
        raise ValueError(
            f"task {name} executes the model's output outside of any sandbox: eval=short grades HumanEval and MBPP "
            f"inside one; to run it anyway, set unsafe=[{name}]"
        )


def _settings(manager: Any, name: str) -> dict[str, Any]:
    """The settings in a task's own file, with functions unresolved; empty for a group."""
    path = manager.task_index[name].yaml_path
    settings: dict[str, Any] = load_yaml(path, resolve_func=False) if path is not None else {}
    return settings
