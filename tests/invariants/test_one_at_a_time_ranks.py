"""One completion at a time on two ranks with sharded weights, one of which has fewer groups."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from longctx_rl.config.compose import composed
from longctx_rl.engine import distributed, startup, zero3
from longctx_rl.training.assembly import build_parts
from longctx_rl.training.groups import sampled_groups
from longctx_rl.training.state import Stopwatch
from longctx_rl.training.step import global_count, prepare, update
from rank_processes import run_ranks


def take_steps(root: str) -> None:
    """Take the same step packed, one at a time and packed again; the rank's results go to ``<root>/<rank>.pt``."""
    zero3.SMALL_MODEL_NUMEL = zero3.RESIDENT_NUMEL = 0
    config = composed([
        "+algo=dgrpo", "+experiment=smoke", "engine.num_processes=2", "optim.lr=0", "batch.prompts_per_step=3",
        "algo.kd.estimator=topk", "model.gradient_checkpointing=true", "model.scoring_chunk=5", f"runs_root={root}",
        "data.lengths=[768]",  # student and teacher disagree
        "algo.group_size=3", "seed=19",  # a group of each rank has different rewards, hence a policy gradient
    ])  # fmt: skip
    startup.init(config)
    parts, watch = build_parts(config), Stopwatch()
    groups = sampled_groups(parts, [0, 1, 2][distributed.rank() :: 2], 0, watch)
    results: list[tuple[float, dict[str, float]]] = []
    for flag in (False, True, False):
        chosen = replace(parts, one_at_a_time=flag)
        rows = prepare(chosen, groups, watch)
        outcome, metrics, _ = update(chosen, rows, global_count(groups), watch, compare_terms=True)
        results.append((outcome.grad_norm, metrics))
    torch.save(results, f"{root}/{distributed.rank()}.pt")
    distributed.shutdown()


def test_two_ranks_with_sharded_weights(tmp_path: Path) -> None:
    run_ranks(take_steps, str(tmp_path))
    for rank in range(2):
        (norm, metrics), *others = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        assert norm > 0 and "grad/pg_kd_cosine" in metrics and metrics["loss/pg"] == pytest.approx(0, abs=1e-6)
        for other_norm, other_metrics in others:
            assert other_norm == pytest.approx(norm, rel=1e-5)
            assert other_metrics == pytest.approx(metrics, rel=1e-4, abs=1e-6)
