"""``python -m longctx_rl.harness checkpoint=FOLDER tasks=[NAME,...] out=FOLDER``: lm_eval's tasks on a checkpoint.

    python -m longctx_rl.harness checkpoint=runs/a/b/export tasks=[mmlu] fewshot=5 out=evaluations/mmlu
    python -m longctx_rl.harness checkpoint=runs/a/b/export tasks=[ruler] lengths=[4096,8192] out=evaluations/ruler

Tasks and groups: those of EleutherAI's lm_eval, as RULER, LongBench, InfiniteBench and MMLU, or task files of a folder,
include=FOLDER. It must be installed: pip install 'longctx-rl[lmeval]'. Settings are in conf/harness.yaml.
"""

import json
import random
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from huggingface_hub.errors import HfHubHTTPError
from torch import nn

from longctx_rl import cli
from longctx_rl.__main__ import composed_harness
from longctx_rl.config import convert
from longctx_rl.config.eval import HarnessConfig
from longctx_rl.policy.loading import check_tokenizer, load_model, load_tokenizer, locate
from longctx_rl.runs.directory import write_text

RESULTS = "results.json"
SEED = 1234
"""Of examples before a question, and of prompts that are made."""
UNAVAILABLE = (OSError, ValueError, HfHubHTTPError, datasets.exceptions.DatasetsError)
"""What a task raises whose data cannot be had."""


def run(config: HarnessConfig) -> str:
    """Ask the tasks, keep results and samples, and say what they amount to.

    Raises:
        ValueError: lm_eval is missing; a task that does not exist, is unsafe and not named, or whose data are not
            there; a checkpoint or folder that cannot be used.
    """
    try:
        import lm_eval
        from lm_eval.utils import make_table
    except ImportError as error:
        raise ValueError("lm_eval is not installed: pip install 'longctx-rl[lmeval]'") from error
    out = Path(config.out)
    if (out / RESULTS).exists():
        raise ValueError(f"{out} holds results already: choose another out=FOLDER")
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    tokenizer = load_tokenizer(config.tokenizer or config.checkpoint)
    loaded = load_tasks(config)
    model = load_model(config.checkpoint, config.yarn)
    check_tokenizer(model, tokenizer, config.checkpoint)
    cuda = torch.cuda.is_available() if config.device == "auto" else config.device == "cuda"
    nn.Module.to(model, "cuda" if cuda else "cpu", getattr(torch, config.dtype))
    from longctx_rl.evals.harness_model import HarnessModel  # needs lm_eval

    adapter = HarnessModel(
        model,
        tokenizer,
        max_new_tokens=config.max_new_tokens,
        batch_tokens=config.batch_tokens,
        chunk=config.chunk,
        name=config.checkpoint,
    )
    # Not simple_evaluate, which lists all of pip's packages afterwards.
    results = lm_eval.evaluate(
        lm=adapter,
        task_dict=loaded,
        limit=config.limit,
        apply_chat_template=config.chat,
        fewshot_as_multiturn=True,
        confirm_run_unsafe_code=bool(config.unsafe),
        log_samples=True,
    )
    results["settings"] = convert.plain(config)
    samples = results.pop("samples")
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "samples.json", json.dumps(samples, indent=1, default=str, ensure_ascii=False) + "\n")
    write_text(out / RESULTS, json.dumps(results, indent=1, default=str, ensure_ascii=False) + "\n")
    return str(make_table(results))


def load_tasks(config: HarnessConfig) -> dict[str, dict[str, Any]]:
    """The tasks with their data, and their groups, as lm_eval's task manager hands them over.

    Raises:
        ValueError: as ``run``.
    """
    from lm_eval.tasks import TaskManager

    if config.include is not None and not Path(config.include).is_dir():
        raise ValueError(f"include={config.include} is no folder of task files")
    # RULER makes its prompts to these lengths with this tokenizer.
    metadata = {"max_seq_lengths": list(config.lengths), "tokenizer": locate(config.tokenizer or config.checkpoint)}
    manager = TaskManager(include_path=config.include, include_defaults=config.include is None, metadata=metadata)
    if not set(config.tasks) <= set(manager.all_tasks):  # lm_eval's own are thousands of files
        manager = TaskManager(include_path=config.include, metadata=metadata)
    loaded: dict[str, dict[str, Any]] = {"tasks": {}, "groups": {}, "group_map": {}}
    for name in config.tasks:
        if name not in manager.all_tasks:
            raise ValueError(f"tasks={name} does not exist: see `lm_eval ls tasks`, or give include=FOLDER")
        refuse_unsafe(name, _settings(manager, name), config)
        random.seed(SEED)  # RULER's prompts are made as its tasks are loaded: the same whatever is named before
        np.random.seed(SEED)
        try:
            for kind, found in manager.load([name]).items():
                loaded[kind] |= found
        except ImportError as error:
            raise ValueError(
                f"task {name} needs a package ({error}): pip install 'lm_eval[ruler]' or the like"
            ) from error
        except UNAVAILABLE as error:
            cause = (str(error).strip() or type(error).__name__).splitlines()[0]
            source = _settings(manager, name).get("dataset_path") or "its data set"
            raise ValueError(
                f"the data of task {name} are not there ({cause}): hf download --repo-type dataset {source}"
            ) from error
    for name, task in loaded["tasks"].items():
        refuse_unsafe(name, {"unsafe_code": getattr(task, "UNSAFE_CODE", False)}, config)
        own = task.get_config("num_fewshot")
        if own != 0:  # what a task sets to 0 makes no sense with examples
            task.set_config(key="num_fewshot", value=own or 0 if config.fewshot is None else config.fewshot)
        task.set_fewshot_seed(seed=SEED)
    return loaded


def refuse_unsafe(name: str, settings: dict[str, Any], config: HarnessConfig) -> None:
    """Raise ValueError for a task that runs what the model writes and is not named."""
    if settings.get("unsafe_code") and name not in config.unsafe:
        raise ValueError(
            f"task {name} runs what the model writes, outside of any sandbox: eval=short grades HumanEval and MBPP "
            f"inside one; to run it all the same, unsafe=[{name}]"
        )


def _settings(manager: Any, name: str) -> dict[str, Any]:
    """What a task's own file says, functions unresolved; nothing of groups."""
    from lm_eval.tasks._yaml_loader import load_yaml

    path = manager.task_index[name].yaml_path
    found: dict[str, Any] = load_yaml(path, resolve_func=False) if path is not None else {}
    return found


def main() -> None:
    """Entry point."""
    overrides = sys.argv[1:]
    if not overrides or {"-h", "--help"} & set(overrides):
        print(__doc__)
        sys.exit(0 if overrides else cli.UNUSABLE)
    cli.command(lambda: run(composed_harness(overrides)))


if __name__ == "__main__":
    main()
