"""Prompts whose groups have equal rewards are replaced by the next ones: DAPO's dynamic sampling."""

from pathlib import Path
from typing import Any

import pytest

from longctx_rl.engine import distributed, startup
from longctx_rl.training.assembly import build_parts
from longctx_rl.training.groups import Drawn, has_equal_rewards, sampled_groups
from longctx_rl.training.state import Stopwatch
from rank_processes import run_ranks
from small_runs import assert_same_steps, rows_of, smoke, step_rows, train

SETTINGS = (
    "+algo=dgrpo",
    "algo.draws=3",
    "algo.group_size=4",
    "batch.prompts_per_step=3",
    "data.lengths=[256]",
    "rollout.max_new_tokens=48",
    "seed=2",
)


def drawn(root: Path, *overrides: str) -> Drawn:
    startup.init(config := smoke(root, *SETTINGS, *overrides))
    try:
        return sampled_groups(build_parts(config), 0, 0, Stopwatch())
    finally:
        distributed.shutdown()


def ids(result: Drawn) -> list[str]:
    return [group.example.id for group in result.groups]


def test_groups_with_equal_rewards_are_replaced_in_place(tmp_path: Path) -> None:
    once, several = drawn(tmp_path, "algo.draws=1"), drawn(tmp_path)
    equal = [has_equal_rewards(group) for group in once.groups]
    assert any(equal) and not once.dropped and once.prompts == 3
    kept = [(before, after) for before, after, same in zip(ids(once), ids(several), equal, strict=True) if not same]
    assert all(before == after for before, after in kept)
    changed = [(before, after) for before, after, same in zip(ids(once), ids(several), equal, strict=True) if same]
    assert all(before != after for before, after in changed)
    assert several.prompts == 3 + len(several.dropped)
    assert all(has_equal_rewards(group) for group in several.dropped)
    assert sum(map(has_equal_rewards, several.groups)) <= sum(equal)
    assert all(len(group.advantages) == 4 for group in several.groups)


def test_dropped_groups_count_as_cost_and_their_prompts_are_not_drawn_again(tmp_path: Path) -> None:
    def rows(draws: int) -> list[dict[str, Any]]:
        return step_rows(train(smoke(tmp_path / str(draws), *SETTINGS, f"algo.draws={draws}", "optim.lr=0")))

    once, several = rows(1), rows(3)
    assert "rollout/draws" not in once[0] and several[0]["rollout/draws"] > 1
    first = round(several[0]["rollout/draws"] * 3)
    assert several[0]["progress/prompts"] == first and once[0]["progress/prompts"] == 3
    assert several[0]["progress/sampled_tokens"] > several[0]["progress/trained_tokens"]
    assert several[0]["progress/flops"] > once[0]["progress/flops"]


@pytest.mark.slow
def test_two_ranks_draw_the_same(tmp_path: Path) -> None:
    one = step_rows(train(smoke(tmp_path, *SETTINGS)))
    two = smoke(tmp_path / "two", *SETTINGS, "engine=zero3", "engine.num_processes=2")
    run_ranks(train, two)
    assert_same_steps(one, step_rows(rows_of(Path(two.run_dir))))


def test_resumed_runs_draw_the_same(tmp_path: Path) -> None:
    settings = (*SETTINGS, "optim.schedule=constant", "optim.warmup_steps=0")
    whole = train(smoke(tmp_path / "whole", *settings, "budget.steps=2"))
    train(smoke(tmp_path / "parts", *settings, "budget.steps=1"))
    parts = train(smoke(tmp_path / "parts", *settings, "budget.steps=2", "resume=true"))
    assert step_rows(parts)[-1:] == step_rows(whole)[-1:]
