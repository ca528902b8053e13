"""The records of a run: ``metrics.jsonl``, sampled rollouts, log.txt, and a wandb mirror of the metrics.

``metrics.jsonl`` is authoritative: one JSON object per line, ``step`` first. wandb gets the same rows (runs/wandb.py).
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from longctx_rl.config.schema import Config
from longctx_rl.engine import distributed
from longctx_rl.files import write_text
from longctx_rl.runs.metrics import Row, read_metrics
from longctx_rl.runs.progress import Progress
from longctx_rl.runs.wandb import Mirror, training_settings
from longctx_rl.types import Completion, RolloutGroup

PROMPT_TAIL = 400
"""Characters at the end of the document that are saved with a rollout."""
VIEW_TOKENS = 1000
"""Tokens at the end of the teacher's own prompt that are saved with a rollout."""
GAP_DIGITS = 4
"""Decimal places of a token's gap to the teacher."""

TokenTexts = Callable[[Sequence[int]], list[str]]
"""Maps token ids to the text that each of them adds."""


class Recorder(Protocol):
    """Receives everything that the training loop reports."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of a step. A step may have several rows."""

    def save_rollouts(self, step: int, groups: Sequence[RolloutGroup], token_texts: TokenTexts) -> None:
        """Save scored completions for inspection; ``token_texts`` decodes tokens whose teacher gap is known."""

    def keep(self, export: Path) -> None:
        """Upload what is configured, after the run has finished and written ``export``."""

    def say(self, text: str) -> None:
        """Print a message to the terminal and to log.txt."""

    def close(self) -> None:
        """Flush and close all files."""


def build_recorder(config: Config, run_dir: Path, *, resume_step: int | None, evaluated: bool) -> Recorder:
    """Return the recorder of this rank: only the main rank writes.

    Args:
        resume_step: step of the checkpoint that the run resumes from; None: the run starts.
        evaluated: whether the checkpoint includes the evaluation at its step; otherwise that is recorded again.
    """
    return RunRecorder(config, run_dir, resume_step, evaluated) if distributed.is_main() else NullRecorder()


class NullRecorder:
    """The recorder of every rank except the main rank."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        pass

    def save_rollouts(self, step: int, groups: Sequence[RolloutGroup], token_texts: TokenTexts) -> None:
        pass

    def keep(self, export: Path) -> None:
        pass

    def say(self, text: str) -> None:
        pass

    def close(self) -> None:
        pass


class RunRecorder:
    """Writes the records of a run. Records of an earlier process after the checkpoint are removed."""

    def __init__(self, config: Config, run_dir: Path, resume_step: int | None, evaluated: bool = False) -> None:
        self._run_dir, self._uploads_model = run_dir, config.logging.artifacts
        self._rollouts = run_dir / "rollouts"
        run_dir.mkdir(parents=True, exist_ok=True)
        cut_back(run_dir, resume_step, evaluated)
        self._metrics = (run_dir / "metrics.jsonl").open("a", encoding="utf-8")
        self._log = (run_dir / "log.txt").open("a", encoding="utf-8")
        self._progress = Progress(config.budget, self._log)
        self._mirror: Mirror | None = None
        if config.logging.mode != "disabled":
            self._mirror = Mirror(training_settings(config, run_dir, resume_step is not None))
            if resume_step is not None:
                self._mirror.replay(run_dir)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        row: Row = {"step": step, **{name: _finite(value) for name, value in metrics.items()}}
        self._metrics.write(json.dumps(row, allow_nan=False) + "\n")
        self._metrics.flush()
        if self._mirror:
            self._mirror.log(row)
        if "perf/step_seconds" in metrics:
            self._progress.show(metrics)

    def save_rollouts(self, step: int, groups: Sequence[RolloutGroup], token_texts: TokenTexts) -> None:
        self._rollouts.mkdir(exist_ok=True)
        rows = [row for group in groups for row in _rollout_rows(group, token_texts)]
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        write_text(self._rollouts / f"step-{step:06d}.jsonl", "".join(f"{line}\n" for line in lines))
        if self._mirror:
            self._mirror.log_rollouts(step, rows)

    def keep(self, export: Path) -> None:
        if self._mirror:
            self._mirror.keep(self._run_dir, export if self._uploads_model else None)

    def say(self, text: str) -> None:
        self._progress.say(text)

    def close(self) -> None:
        self._progress.end_line()
        self._metrics.close()
        self._log.close()
        if self._mirror:
            self._mirror.close()


def cut_back(run_dir: Path, resume_step: int | None, evaluated: bool) -> None:
    """Remove the records after the checkpoint of ``resume_step``, which will be recorded again. None: all records.

    Without ``evaluated``, the evaluation at that step came after its checkpoint as well.
    """
    metrics = run_dir / "metrics.jsonl"
    last = -1 if resume_step is None else resume_step
    if metrics.is_file():
        kept = [
            row
            for row in read_metrics(metrics)
            if (row["step"] or 0) < last or (row["step"] == last and (evaluated or "time/eval" not in row))
        ]
        write_text(metrics, "".join(json.dumps(row) + "\n" for row in kept))
    for rollouts in (run_dir / "rollouts").glob("step-*.jsonl"):
        step = rollouts.stem.removeprefix("step-")
        if step.isdecimal() and int(step) > last:
            rollouts.unlink()


def _finite(value: float) -> float | None:
    """Return None for a value that is not finite, since JSON cannot represent it."""
    return value if math.isfinite(value) else None


def _rollout_rows(group: RolloutGroup, token_texts: TokenTexts) -> list[dict[str, Any]]:
    example = group.example
    return [
        {
            "id": example.id,
            "task": example.task,
            "prompt_tail": f"{example.document[-PROMPT_TAIL:]}\n\n{example.question}",
            "answer": example.answer,
            **_view(group, token_texts),
            "completion": completion.text,
            "tokens": len(completion.token_ids),
            "finish_reason": completion.finish_reason,
            "policy_version": completion.policy_version,
            "reward": group.rewards[index].score if group.rewards else None,
            "reward_parts": dict(group.rewards[index].parts) if group.rewards else {},
            "advantage": group.advantages[index] if group.advantages else None,
            **_token_columns(completion, token_texts),
        }
        for index, completion in enumerate(group.completions)
    ]


def _view(group: RolloutGroup, token_texts: TokenTexts) -> dict[str, Any]:
    """Return ``view`` and ``view_kind``, the end of the prompt that the teacher reads instead, if it reads its own."""
    if not group.views:
        return {}
    return {"view": "".join(token_texts(group.views[0][-VIEW_TOKENS:])), "view_kind": group.view_kinds[0]}


def _token_columns(completion: Completion, token_texts: TokenTexts) -> dict[str, Any]:
    """Return ``tokens_text`` and ``teacher_gap``, [C] each, if there is a teacher."""
    if completion.teacher_gap is None:
        return {}
    gaps = [round(gap, GAP_DIGITS) + 0.0 for gap in completion.teacher_gap]
    return {"tokens_text": token_texts(completion.token_ids), "teacher_gap": gaps}
