"""Advantages from rewards, by group and by task."""

import statistics

import pytest

from longctx_rl.config.compose import composed
from longctx_rl.objective.advantages import STD_FLOOR
from longctx_rl.training.groups import with_advantages
from longctx_rl.types import Completion, Example, Reward, RolloutGroup


def group(task: str, *scores: float) -> RolloutGroup:
    example = Example(id=task, document="", question="", answer="", task=task)
    completion = Completion((1,), "", "stop")
    return RolloutGroup(example, (1,), (completion,) * len(scores), tuple(Reward(score) for score in scores))


GROUPS = [group("a", 0.0, 1.0), group("a", 0.0, 0.2), group("b", 0.5, 0.6), group("b", 1.0, 1.0)]


def test_per_task_advantages_share_the_task_s_spread() -> None:
    scored = with_advantages(composed(["+algo=grpo", "reward.normalize_per_task=true"]), GROUPS)
    for first, second in ((0, 1), (2, 3)):
        pair = [GROUPS[first], GROUPS[second]]
        scores = [reward.score for each in pair for reward in each.rewards]
        spread = statistics.stdev(scores) + STD_FLOOR
        for each, original in zip((scored[first], scored[second]), pair, strict=True):
            own = [reward.score for reward in original.rewards]
            assert each.advantages == pytest.approx([(score - statistics.mean(own)) / spread for score in own])
    assert scored[3].advantages == (0.0, 0.0)


def test_advantages_of_each_group_by_default() -> None:
    scored = with_advantages(composed(["+algo=grpo"]), GROUPS)
    assert scored[0].advantages == pytest.approx(scored[1].advantages, rel=1e-2)
