"""Many run directories in a moment: one is composed, the others are its text with another method and seed."""

import json
import random
import re
from pathlib import Path
from typing import Any

import longctx_rl
from config.composing import config_with
from longctx_rl.config import load as configuration

METHODS = ("sft", "kd", "grpo", "opd", "dgrpo")
TASKS = ("multihop", "grounding", "longform")
LENGTHS = (256, 512, 1024)


def write_runs(root: Path, seeds: int, *, steps: int = 100, items: int = 6, metrics: int = 20) -> list[Path]:
    """``seeds`` runs of each method under ``root``: curves, answers before and after training, rollouts."""
    written = []
    for place, algo in enumerate(METHODS):
        text = configuration.dump(config_with(f"+algo={algo}", f"runs_root={root}", "experiment_name=many"))
        for seed in range(seeds):
            path = root / f"{algo}-mini-mix-s{seed}"
            (path / "rollouts").mkdir(parents=True)
            (path / "evals").mkdir()
            (path / "config.yaml").write_text(re.sub(r"(?m)^seed: 0$", f"seed: {seed}", text))
            (path / "environment.json").write_text(json.dumps({"longctx_rl": longctx_rl.__version__}))
            rng = random.Random(f"{algo} {seed}")
            _write_lines(path / "metrics.jsonl", rows(rng, steps, metrics, place))
            _write_lines(path / "evals" / "heldout.jsonl", answers(rng, steps, items, place))
            if place > 1:
                _write_lines(path / "rollouts" / f"step-{steps:06d}.jsonl", completions(rng, teacher=place > 2))
                _write_lines(path / "rollouts" / "step-000001.jsonl", completions(rng, teacher=place > 2)[4:])
            (path / "finished.json").write_text("{}")
            written.append(path)
    return written


def rows(rng: random.Random, steps: int, metrics: int, place: int) -> list[dict[str, Any]]:
    """metrics.jsonl: ``metrics`` noisy training curves and an evaluation every 20 steps."""
    found: list[dict[str, Any]] = []
    for step in range(steps + 1):
        if step:
            row = {"step": step, "progress/step": step, "progress/trained_tokens": step * (100 + 50 * place)}
            row |= {"progress/flops": step * 1e9 * (1 + place), "progress/wall_seconds": step * rng.uniform(1.0, 1.1)}
            row["loss/total"] = 2.0 / step + rng.gauss(0, 0.05)
            row |= {f"policy/made_up_{index:02d}": rng.gauss(place, 1) for index in range(metrics - 1)}
            found.append(row)
        if step % 20 == 0:
            score = min(1.0, 0.3 + 0.1 * place * step / steps + rng.uniform(0, 0.05))
            found.append({"step": step, "progress/step": step, "eval/heldout/mean": score, "time/eval": 1.0})
    return found


def answers(rng: random.Random, steps: int, items: int, place: int) -> list[dict[str, Any]]:
    """Records of every task and length, before and after training."""
    return [
        {
            "step": step,
            "id": f"{task}-test-{item:06d}-L{length}",
            "family_id": f"{task}-test-{item:06d}",
            "task": task,
            "length": length,
            "prompt_tokens": length,
            "output": f"the mentor of TorVin is </script> & <b>KesDal</b>.\nAnswer: KesDal {rng.random():.3f}",
            "score": float(rng.random() < 0.3 + (0.1 * place if step else 0)),
            "parts": {"answer": 1.0, "format": 1.0},
            "truncated": item % 5 == 4,
            "tokens": 20,
            "prompt_hash": "ab",
            "depth": item / items,
            "question": f"Who is the mentor of {task} {item}?",
            "expected": "KesDal",
        }
        for step in (0, steps)
        for task in TASKS
        for length in LENGTHS
        for item in range(items)
    ]


def completions(rng: random.Random, teacher: bool) -> list[dict[str, Any]]:
    """Rollouts of two prompts, four completions each; with the gap to the teacher if there is one."""
    texts = ["the", " mentor", " of", " Tor", "Vin", " is", " Kes", "Dal", ".", "<|im_end|>"]
    gaps: dict[str, Any] = {"view": "TorVin's mentor is KesDal.", "view_kind": "evidence"}
    gaps |= {"tokens_text": texts, "teacher_gap": [0.0, 0.01, -0.2, 0.5, 0.0, -1.5, 6.25, 0.1, 0.0, 0.0]}
    return [
        {
            "id": f"multihop-train-{prompt}-L256",
            "task": "multihop",
            "prompt_tail": "TorVin came home.\n\nWho is the mentor of TorVin?",
            "answer": "KesDal",
            "completion": "".join(texts[:-1]),
            "tokens": len(texts),
            "finish_reason": "stop",
            "reward": rng.choice((0.0, 1.0)),
            "reward_parts": {"answer": 1.0},
            "advantage": rng.gauss(0, 1),
            **(gaps if teacher else {}),
        }
        for prompt in range(2)
        for _ in range(4)
    ]


def _write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
