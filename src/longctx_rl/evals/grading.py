"""How the answers of each suite are graded: by the generated task's grader, a file's tests, or a reward's graders."""

from collections.abc import Callable, Mapping, Sequence

from longctx_rl.config.eval import FILES, SuiteConfig
from longctx_rl.config.reward import RewardConfig
from longctx_rl.evals.functions import FunctionGrader
from longctx_rl.rewards.composed import EXECUTION, Answered, Rewarder, check_reward
from longctx_rl.rewards.execution import CodeGrader, ExactGrader
from longctx_rl.types import Example, Reward

Grading = Callable[[Sequence[tuple[str, Example]]], list[Reward]]
"""Pairs of answer text and example to their rewards, all in one call."""
EXECUTED = ("code", *FILES)
"""Suites whose answers are graded by running them."""


def runs_code(suites: Mapping[str, SuiteConfig]) -> bool:
    """Whether any of these suites runs its answers."""
    return any(name in suites for name in EXECUTED)


def check_graders(suites: Mapping[str, SuiteConfig]) -> None:
    """Raise ValueError for a reward that cannot grade the suite ``longblocks``, before anything is loaded."""
    if "longblocks" in suites:
        _checked_reward(suites["longblocks"])


def grader_of(name: str, config: SuiteConfig, code: CodeGrader | None) -> Grading:
    """The grader of the suite ``name``.

    Args:
        code: runs answers that are code; None for suites without code.

    Raises:
        ValueError: a reward that cannot grade the suite.
    """
    if name in FILES:
        assert code is not None
        return FunctionGrader(config, name, code)
    if name == "longblocks":
        return RewardGrader(_checked_reward(config))
    return ExactGrader(code)


class RewardGrader:
    """A reward's graders applied to the answer alone: ``score`` is the part ``answer``, whatever the weights are."""

    def __init__(self, config: RewardConfig) -> None:
        self._reward = Rewarder(config, max_tokens=0)

    def __call__(self, answered: Sequence[tuple[str, Example]]) -> list[Reward]:
        """Rewards of pairs of answer and example. Raises GraderUnavailable if the judge model does not respond."""
        graded = self._reward([Answered(text, 0, example) for text, example in answered])
        return [Reward(reward.parts["answer"], reward.parts) for reward in graded]


def _checked_reward(suite: SuiteConfig) -> RewardConfig:
    """The reward of the suite ``longblocks``, which must be able to grade all of its labels."""
    config = suite.reward
    if config is None:
        raise ValueError("eval.suites.longblocks.reward is null: choose /reward@eval.suites.longblocks.reward=rules")
    check_reward(config, suite.labels)
    for task in suite.labels:
        if config.graders.get(task, config.graders.get("other")) == EXECUTION:
            raise ValueError(
                f"eval.suites.longblocks.reward.graders.{task}=execution: its rows have no tests, set match"
            )
    return config
