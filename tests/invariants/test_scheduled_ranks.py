"""One completion at a time on two ranks whose weights are truly sharded, one of them with fewer groups."""

import os
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from config.composing import composed
from longctx_rl import cli
from longctx_rl.engine import distributed, startup, zero3
from longctx_rl.training.groups import sampled_groups
from longctx_rl.training.parts import build_parts
from longctx_rl.training.state import Stopwatch
from longctx_rl.training.step import global_count, objective_from, prepare, update
from ports import free_port

Found = tuple[float, dict[str, float]]


def work(rank: int, port: int, root: str) -> None:
    """Take the same step packed, scheduled and packed again; the rank's answers to ``<root>/<rank>.pt``."""
    torch.set_num_threads(1)
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    os.environ |= {name: str(value) for name, value in ranks.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    zero3.SMALL_MODEL_NUMEL = zero3.RESIDENT_NUMEL = 0
    config = composed(
        "+algo=dgrpo", "+experiment=smoke", "engine.num_processes=2", "optim.lr=0", "batch.prompts_per_step=3",
        "algo.kd.estimator=topk", "model.gradient_checkpointing=true", "model.scoring_chunk=5", f"runs_root={root}",
        "data.lengths=[768]",  # where student and teacher disagree
    )  # fmt: skip
    startup.init(config)
    parts, watch = build_parts(config), Stopwatch()
    mine = [0, 1, 2][rank::2]
    groups = sampled_groups(
        config, parts.engine, parts.sampler, parts.source, parts.tokenizer, parts.rewarder, mine, 0, watch
    )
    spec, denominators = objective_from(config), global_count(groups)
    found: list[Found] = []
    for scheduled in (False, True, False):
        rows = prepare(config, parts.engine, parts.anchors, groups, watch, scheduled=scheduled)
        outcome, metrics, _ = update(parts.engine, rows, spec, denominators, 1.0, watch, compare_terms=True)
        found.append((outcome.grad_norm, metrics))
    torch.save(found, f"{root}/{rank}.pt")
    distributed.shutdown()
    cli.leave(0)


def test_two_ranks_with_sharded_weights(tmp_path: Path) -> None:
    mp.spawn(work, args=(free_port(), str(tmp_path)), nprocs=2, daemon=True)
    for rank in range(2):
        (norm, metrics), *others = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        assert norm > 0 and metrics["loss/pg"] == pytest.approx(0, abs=1e-6)
        for other, of_other in others:
            assert other == pytest.approx(norm, rel=1e-5)
            assert of_other == pytest.approx(metrics, rel=1e-4, abs=1e-6)
