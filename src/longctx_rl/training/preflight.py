"""Checks that a configuration must pass before torch is imported: everything that its names and values decide."""

from longctx_rl.config.schema import Config
from longctx_rl.data.source import check_tasks, generated_tasks
from longctx_rl.evals.suites import check_suite
from longctx_rl.policy.weights import locate
from longctx_rl.rewards.composed import check_reward


def preflight(config: Config) -> None:
    """Raise ValueError for a task, suite, grader or local model that does not exist."""
    check_tasks(config)
    for name, suite in config.eval.suites.items():
        check_suite(name, suite.labels)
    if config.algo.source == "policy" and config.data.longblocks is None:
        check_reward(config.reward, generated_tasks(config))
    model = config.model
    locate(model.tokenizer or model.student)
    if model.architecture is None:
        locate(model.student)
    if config.needs_teacher and model.teacher_cache is None:
        assert model.teacher is not None
        locate(model.teacher)


def check_cache(config: Config) -> None:
    """Raise ValueError for a run whose teacher signals cannot be cached."""
    check_tasks(config)
    if config.model.teacher_cache is None:
        raise ValueError("model.teacher_cache=null: set the folder of the cache, model.teacher_cache=FOLDER")
    if config.algo.source != "dataset" or not config.needs_teacher:
        raise ValueError(
            f"+algo={config.algo.name} does not train on recorded answers with a teacher, so nothing can be cached: "
            "choose +algo=kd"
        )
    if config.budget.steps is None:
        raise ValueError("budget.steps=null: set the number of steps to cache, such as budget.steps=200")
