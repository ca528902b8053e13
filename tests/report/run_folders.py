"""Run directories written by the writers that runs use, without training: what reports are tested on."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import longctx_rl
from config.composing import composed
from longctx_rl import config as configuration
from longctx_rl.evals import records
from longctx_rl.evals.records import ItemRecord

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
    config = composed(*overrides)
    path = root / config.experiment_name / (name or Path(config.run_dir).name)
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(configuration.dump(config))
    environment: dict[str, Any] = {
        "started": "2026-11-27T10:00:00+00:00",
        "command": f"python -m longctx_rl {' '.join(overrides)}",
        "directory": "/home/someone",
        "longctx_rl": longctx_rl.__version__,
        "git": {"commit": "0123456789abcdef", "dirty": False},
        "python": "3.12.1",
        "packages": {"torch": "2.13.0"},
        "host": {"name": "host", "system": "Linux", "cores": 2, "memory_gib": 8.0, "gpus": []},
    }
    (path / "environment.json").write_text(json.dumps(environment))
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for step, scores in evaluations.items():
        append_scores(path, step, scores)
    if finished:
        (path / "finished.json").write_text(json.dumps({"step": max(evaluations, default=0), "reason": "spent"}))
    return path
