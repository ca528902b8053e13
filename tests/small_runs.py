"""Whole runs at the smallest size, trained in the test's own process."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from longctx_rl.config.compose import composed
from longctx_rl.config.model import ArchitectureConfig
from longctx_rl.config.schema import Config
from longctx_rl.launch import rank
from longctx_rl.policy.loading import fresh_model, load_tokenizer
from longctx_rl.runs.metrics import read_metrics

WIDTHS = {"student": 32, "teacher": 48}
SHAPE: dict[str, Any] = {
    "intermediate_size": 64,
    "num_layers": 2,
    "num_heads": 2,
    "num_kv_heads": 1,
    "head_dim": 16,
    "max_length": 512,
    "rope_theta": 10_000.0,
    "initializer_range": 0.3,
}
TIMED = ("time/", "perf/", "progress/wall_seconds")
"""Metrics that measure the machine, not the run."""


def save_model(folder: Path, width: int, seed: int, max_shard_size: str = "1GB") -> Path:
    """Save a tiny model with random weights, and the shipped models' tokenizer; returns the folder."""
    tokenizer = load_tokenizer("mini-student")
    model = fresh_model(ArchitectureConfig(hidden_size=width, **SHAPE), tokenizer, seed)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    tokenizer.save_pretrained(folder)
    return folder


def save_models(root: Path) -> tuple[str, str]:
    """Save a tiny student and a wider teacher; returns the overrides that name them."""
    folders = [save_model(root / name, width, seed) for seed, (name, width) in enumerate(WIDTHS.items())]
    return f"model.student={folders[0]}", f"model.teacher={folders[1]}"


def smoke(root: Path, *overrides: str) -> Config:
    """Return a checked configuration of two steps below ``root``: engine=local unless ``overrides`` say otherwise."""
    config = _composed(("+experiment=smoke", "logging=none", "engine=local", *overrides))
    below = Path(config.run_dir).relative_to(config.runs_root)
    return replace(config, runs_root=str(root), run_dir=str(root / below))


@cache
def _composed(overrides: Sequence[str]) -> Config:
    return composed(list(overrides))


def train(config: Config) -> list[dict[str, Any]]:
    """Train in this process; returns the rows of metrics.jsonl."""
    assert rank.execute(config) == 0
    return rows_of(Path(config.run_dir))


def rows_of(run: Path) -> list[dict[str, Any]]:
    """Return the rows of a run's metrics.jsonl."""
    return list(read_metrics(run / "metrics.jsonl"))


def untimed(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows without metrics that measure the machine."""
    return [{name: value for name, value in row.items() if not name.startswith(TIMED)} for row in rows]


def step_rows(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of training steps, without metrics that measure the machine."""
    return untimed([row for row in rows if "loss/total" in row])


def assert_same_steps(one_rank: Sequence[dict[str, Any]], two_ranks: Sequence[dict[str, Any]]) -> None:
    """Compare the step rows of one method with a teacher on one rank and on two: equal up to rounding."""
    for one, two in zip(one_rank, two_ranks, strict=True):
        for name in ("loss/total", "loss/kd", "grad/norm", "teacher/kl_reverse", "progress/sampled_tokens"):
            assert two[name] == pytest.approx(one[name], rel=1e-4, abs=1e-7), name
        for name in {"grad/pg_kd_cosine"} & one.keys():
            assert two[name] == pytest.approx(one[name], abs=1e-4)
        assert two["progress/trained_tokens"] == one["progress/trained_tokens"]
        assert two["progress/flops"] == one["progress/flops"]
