"""Two ranks with sharded weights, one of which has fewer groups, against one rank; packed and one at a time."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from longctx_rl.config.compose import composed
from longctx_rl.config.schema import Config
from longctx_rl.engine import distributed, startup, zero3
from longctx_rl.objective.spec import Weights
from longctx_rl.training.assembly import build_parts
from longctx_rl.training.groups import sampled_groups
from longctx_rl.training.state import Stopwatch
from longctx_rl.training.step import global_count, prepare, update
from longctx_rl.types import RolloutGroup
from rank_processes import run_ranks

Step = tuple[float, dict[str, float]]
"""The norm of a step's gradient, and its metrics."""
PROMPTS = [0, 1, 2]


def step_config(root: str, *overrides: str) -> Config:
    return composed([
        "+algo=dgrpo", "+experiment=smoke", "optim.lr=0", "batch.prompts_per_step=3",
        "algo.kd.estimator=topk", "model.gradient_checkpointing=true", "model.scoring_chunk=5", f"runs_root={root}",
        "data.lengths=[768]",  # student and teacher disagree
        "algo.group_size=3", "seed=19",  # a group of each rank has different rewards, hence a policy gradient
        *overrides,
    ])  # fmt: skip


def steps(config: Config) -> tuple[list[RolloutGroup], dict[str, Step]]:
    """Sample this rank's groups, and take the same step packed, one at a time, again, and without the teacher."""
    startup.init(config)
    parts, watch = build_parts(config), Stopwatch()
    groups = sampled_groups(parts, PROMPTS[0], 0, watch).groups
    policy_gradient = replace(config, algo=replace(config.algo, weights=Weights(pg=1.0)))
    results = {}
    for name, chosen, compare_terms in (
        ("packed", replace(parts, one_at_a_time=False), True),
        ("one at a time", replace(parts, one_at_a_time=True), True),
        ("packed again", replace(parts, one_at_a_time=False), True),
        ("policy gradient", replace(parts, one_at_a_time=False, config=policy_gradient), False),
    ):
        rows = prepare(chosen, groups, watch)
        outcome, metrics, _ = update(chosen, rows, global_count(groups), watch, compare_terms=compare_terms)
        results[name] = outcome.grad_norm, metrics
    return groups, results


def steps_of_a_rank(root: str) -> None:
    """Take the steps on one of two ranks, and write the groups and the results to ``<root>/<rank>.pt``."""
    zero3.SMALL_MODEL_NUMEL = zero3.RESIDENT_NUMEL = 0
    config = step_config(root, "engine.num_processes=2")
    torch.save(steps(config), f"{root}/{distributed.rank()}.pt")
    distributed.shutdown()


def assert_same_step(one: Step, two: Step) -> None:
    assert two[0] == pytest.approx(one[0], rel=1e-5) and one[0] > 0
    assert two[1] == pytest.approx(one[1], rel=1e-4, abs=1e-6)


def test_two_ranks_with_sharded_weights(tmp_path: Path) -> None:
    run_ranks(steps_of_a_rank, str(tmp_path))
    groups, expected = steps(step_config(str(tmp_path), "engine=local"))
    tokens = [[one.token_ids for one in group.completions] for group in groups]
    assert [any(group.advantages or ()) for group in groups] == [True, True, False]
    assert len({len(ids) for ids in tokens[0]}) > 1 and {len(ids) for ids in tokens[0]}.isdisjoint(map(len, tokens[1]))
    assert "grad/pg_kd_cosine" in expected["packed"][1]
    assert expected["packed"][1]["loss/pg"] == pytest.approx(0, abs=1e-6)
    for rank in range(2):
        of_rank, found = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        assert [[one.token_ids for one in group.completions] for group in of_rank] == tokens[rank::2]
        for name, step in found.items():
            assert_same_step(expected[name], step)
        assert_same_step(found["packed"], found["one at a time"])
        assert_same_step(found["packed"], found["packed again"])
