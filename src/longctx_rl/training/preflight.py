"""Checks that a configuration must pass before torch is imported: everything that its names and values decide."""

from collections.abc import Sequence
from pathlib import Path

from longctx_rl.config.schema import Config
from longctx_rl.data.source import check_lengths, check_tasks, generated_tasks
from longctx_rl.evals.grading import runs_code
from longctx_rl.evals.preconditions import check_suites
from longctx_rl.policy.model_folder import check_model
from longctx_rl.policy.shape import stated_context
from longctx_rl.policy.weights import locate
from longctx_rl.rewards.composed import EXECUTION, check_reward
from longctx_rl.rollout.serving import check_vllm
from longctx_rl.sandbox import probe


def preflight(config: Config) -> None:
    """Raise ValueError for a task, suite, grader, file or local model that does not exist, a sandbox that does not work
    on this machine, and lengths beyond the models' context.

    A data set's own tasks, and what only the Hub knows, are checked when they are read.
    """
    check_tasks(config)
    check_data_files(config)
    check_suites(config.eval.suites)
    tasks = generated_tasks(config) if config.data.longblocks is None else ()
    if config.algo.source == "policy" and tasks:
        check_reward(config.reward, tasks)
    contexts = [stated_context(name, config.model.yarn) for name in _models(config)]
    if config.model.architecture is not None:
        contexts.append(config.model.architecture.max_length)
    known = [context for context in contexts if context is not None]
    if known:
        check_lengths(config, min(known))
    if executes_code(config, tasks):
        probe.choose(config.sandbox)
    if config.served and config.rollout.server == "auto":
        check_vllm(config.rollout.python)


def _models(config: Config) -> list[str]:
    """Models whose weights the run loads. Raises ValueError if one of them, or the tokenizer, does not exist here."""
    model = config.model
    locate(model.tokenizer or model.student)
    names = [] if model.architecture is not None else [model.student]
    if config.loaded_teacher is not None:
        names.append(config.loaded_teacher)
    elif (
        model.teacher_cache is not None
        and config.external_teacher is not None
        and not any(Path(str(model.teacher_cache)).expanduser().glob("teacher-*"))
    ):
        raise ValueError(
            f"model.teacher_cache={model.teacher_cache} holds no cache: build it with python -m longctx_rl.data "
            "teacher-cache and the run's own settings, or set model.teacher_cache=null"
        )
    for name in names:
        check_model(name)
    return names


def executes_code(config: Config, tasks: Sequence[str]) -> bool:
    """Whether a run on these tasks executes generated code, in its rewards or its evaluations."""
    graders = config.reward.graders
    trained = config.algo.source == "policy" and any(
        graders.get(task, graders.get("other")) == EXECUTION for task in tasks
    )
    evaluated = config.eval.during or config.eval.at_start or config.eval.at_end
    return trained or bool(evaluated and runs_code(config.eval.suites))


def check_data_files(config: Config) -> None:
    """Raise ValueError for a local data set that does not exist."""
    rows = config.data.longblocks
    if rows is not None and rows.path.startswith((".", "/", "~")) and not Path(rows.path).expanduser().exists():
        raise ValueError(
            f"data.longblocks.path={rows.path} does not exist: give a folder or file of .parquet or .jsonl, or a Hub id"
        )


def check_cache(config: Config) -> None:
    """Raise ValueError for a run whose teacher signals cannot be cached."""
    check_tasks(config)
    check_data_files(config)
    locate(config.model.tokenizer or config.model.student)
    if config.model.teacher is not None:
        check_model(config.model.teacher)
    if config.model.teacher_cache is None:
        raise ValueError("model.teacher_cache=null: set the folder of the cache, model.teacher_cache=FOLDER")
    if config.algo.source != "dataset" or not config.needs_teacher:
        raise ValueError(
            f"+algo={config.algo.name} does not train on recorded answers with a teacher, so nothing can be cached: "
            "choose +algo=kd"
        )
    if config.budget.steps is None:
        raise ValueError("budget.steps=null: set the number of steps to cache, such as budget.steps=200")
