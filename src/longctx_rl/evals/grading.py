"""What a suite's answers are graded by: generated tasks' own graders, or tests of a file, or a reward's."""

from collections.abc import Callable, Mapping, Sequence

from longctx_rl.config.eval import FILES, SuiteConfig
from longctx_rl.config.reward import RewardConfig
from longctx_rl.evals.functions import FunctionGrader
from longctx_rl.rewards.composed import EXECUTION, Answered, Rewarder, check_reward
from longctx_rl.rewards.execution import CodeGrader, ExactGrader
from longctx_rl.types import Example, Reward

Grading = Callable[[Sequence[tuple[str, Example]]], list[Reward]]
RUN = ("code", *FILES)
"""Suites whose answers are run."""


def runs_code(suites: Mapping[str, SuiteConfig]) -> bool:
    """Whether answers to any of these suites are run."""
    return any(name in suites for name in RUN)


def grader_of(name: str, config: SuiteConfig, code: CodeGrader | None) -> Grading:
    """The grader of a suite.

    Args:
        code: runs answers that are code; None: no item's are.

    Raises:
        ValueError: a reward that cannot be used.
    """
    if name in FILES:
        assert code is not None
        return FunctionGrader(config, name, code)
    if name == "longblocks":
        return RewardGrader(config.reward, config.labels)
    return ExactGrader(code)


class RewardGrader:
    """The graders of a reward, the answer alone: ``score`` is the part ``answer``, whatever the weights are."""

    def __init__(self, config: RewardConfig | None, tasks: Sequence[str]) -> None:
        if config is None:
            raise ValueError(
                "eval.suites.longblocks.reward is null: choose /reward@eval.suites.longblocks.reward=rules"
            )
        check_reward(config, tasks)
        for task in tasks:
            if config.graders.get(task, config.graders.get("other")) == EXECUTION:
                raise ValueError(
                    f"eval.suites.longblocks.reward.graders.{task}=execution: its rows have no tests, set match"
                )
        self._reward = Rewarder(config, max_tokens=0)

    def __call__(self, answered: Sequence[tuple[str, Example]]) -> list[Reward]:
        """Scores with their parts. Raises GraderUnavailable if the judge gives none."""
        graded = self._reward([Answered(text, 0, example) for text, example in answered])
        return [Reward(reward.parts["answer"], reward.parts) for reward in graded]
