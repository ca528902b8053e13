"""Run directories written by the writers that runs use, without training: what reports are tested on."""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import longctx_rl
from config.composing import config_with
from longctx_rl.config import load as configuration
from longctx_rl.config.schema import Config
from longctx_rl.evals import records
from longctx_rl.evals.records import ItemRecord
from longctx_rl.runs.metrics import Row

Scores = Mapping[tuple[str, str, int], Sequence[float]]
"""Suite, task and length to one score for each family."""


def record(step: int, task: str, length: int, family: int, score: float) -> ItemRecord:
    """An answer; families are the same at all lengths and in all conditions of a task's suite."""
    name = "code" if task in ("bury", "short") else task
    return ItemRecord(
        step=step,
        id=f"{task}-{length}-{family}",
        family_id=f"{name}-{family}",
        task=task,
        length=length,
        prompt_tokens=length,
        output="the answer",
        score=score,
        parts={"answer": score},
        truncated=False,
        tokens=4,
        depth=(family % 10) / 10,
    )


def append_scores(folder: Path, step: int, scores: Scores) -> None:
    """Add an evaluation to ``evals/``."""
    for (suite, task, length), values in scores.items():
        answers = [record(step, task, length, family, score) for family, score in enumerate(values)]
        records.append(folder / "evals" / f"{suite}.jsonl", answers)


def write_run(
    root: Path,
    *overrides: str,
    evaluations: Mapping[int, Scores],
    rows: Sequence[Mapping[str, float | None]],
    finished: bool = True,
    name: str | None = None,
) -> Path:
    """A run directory of ``python -m longctx_rl <overrides>`` under ``root/<experiment_name>``."""
    config = config_with(*overrides)
    path = root / config.experiment_name / (name or Path(config.run_dir).name)
    write_config(path, config, overrides)
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for step, scores in evaluations.items():
        append_scores(path, step, scores)
    if finished:
        (path / "finished.json").write_text(json.dumps({"step": max(evaluations, default=0), "reason": "spent"}))
    return path


def write_config(path: Path, config: Config, overrides: Sequence[str]) -> None:
    """A new run directory with what a run writes before it trains."""
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(configuration.dump(config))
    environment: dict[str, Any] = {
        "started": "2026-11-27T10:00:00+00:00",
        "command": f"python -m longctx_rl {shlex.join(overrides)}",
        "directory": "/home/someone",
        "longctx_rl": longctx_rl.__version__,
        "git": {"commit": "0123456789abcdef", "dirty": False},
        "python": "3.12.1",
        "packages": {"torch": "2.13.0"},
        "host": {"name": "host", "system": "Linux", "cores": 2, "memory_gib": 8.0, "gpus": []},
    }
    (path / "environment.json").write_text(json.dumps(environment))


def training_rows(
    steps: int, *, tokens: int, seconds: float, evaluated: Sequence[int]
) -> list[dict[str, float | None]]:
    """metrics.jsonl of a run: each step costs the same."""
    rows: list[dict[str, float | None]] = [{"step": 0, "progress/step": 0, "time/eval": 1.0}]
    for step in range(1, steps + 1):
        progress = {"step": step, "prompts": 8 * step, "sampled_tokens": 0, "teacher_tokens": 0}
        progress |= {"trained_tokens": tokens * step, "flops": 1e9 * step}
        row: Row = {"step": step}
        row |= {f"progress/{name}": value for name, value in progress.items()}
        row |= {"progress/wall_seconds": seconds * step, "loss/total": 1.0 / step, "grad/norm": None}
        rows.append(row | {"policy/entropy": 2.0 - step / steps, "rollout/reward_mean": step / steps})
        if step in evaluated:
            rows.append({"step": step, "progress/step": step, "time/eval": 1.0, "eval/heldout/mean": 0.5})
    return rows


def shares(right: int, of: int) -> list[float]:
    """Scores of ``of`` families, of which the first ``right`` are right."""
    return [1.0] * right + [0.0] * (of - right)


def answers(long: int, short: int, code_long: int, code_short: int, reasoning: int, of: int = 20) -> Scores:
    """An evaluation of three suites: how many of ``of`` families are right in each cell."""
    return {
        ("heldout", "multihop", 256): shares(short, of),
        ("heldout", "multihop", 1024): shares(long, of),
        ("longreason", "context", 1024): shares(reasoning, of),
        ("code", "bury", 1024): shares(code_long, of),
        ("code", "short", 0): shares(code_short, of),
    }


def write_evaluation(folder: Path, scores: Scores, checkpoint: str = "mini-student") -> None:
    """A folder of ``python -m longctx_rl.evaluate checkpoint=... out=folder``."""
    folder.mkdir(parents=True)
    (folder / "evaluation.json").write_text(json.dumps({"checkpoint": checkpoint, "weights": "ab" * 16}))
    append_scores(folder, 0, scores)


def write_grid(root: Path, name: str = "table1") -> None:
    """Two methods with three seeds each, and the base: ``root/name``."""
    base = answers(4, 18, 4, 16, 6)
    write_evaluation(root / name / "base", base)
    write_evaluation(root / name / "teacher", answers(18, 19, 16, 18, 17), "mini-teacher")
    for seed in range(3):
        for algo, tokens, gained in (("sft", 100, 4), ("grpo", 200, 8 + seed)):
            during, end = answers(6, 18, 5, 16, 7), answers(4 + gained, 17, 4 + gained, 16, 6 + gained)
            few = {cell: scores[:10] for cell, scores in during.items()}
            write_run(
                root,
                f"+algo={algo}",
                f"seed={seed}",
                f"experiment_name={name}",
                "eval=all",
                evaluations={0: base, 5: few, 10: end},
                rows=training_rows(10, tokens=tokens, seconds=2.0, evaluated=(5, 10)),
            )
