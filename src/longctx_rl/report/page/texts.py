"""Texts of models side by side: answers to evaluation items, and rollouts of training."""

from collections.abc import Sequence
from typing import Any

from longctx_rl.evals.records import ItemRecord
from longctx_rl.report.page.series import rounded
from longctx_rl.report.page.starts import Evals
from longctx_rl.report.runs import Run

ANSWERS_BUDGET = 5_000_000
"""Maximum number of characters of all answers on a page."""
ROLLOUTS_BUDGET = 5_000_000
"""Maximum number of characters of all rollouts on a page."""
LONGEST = 4_000
"""Maximum number of characters of a text."""


def answers(evals: Sequence[Evals], starts: Sequence[Evals]) -> dict[str, Any]:
    """Items of every suite, task and length with the answers of each run after training, and the answers before it.

    Each cell has as many items as fit on the page; ``asked`` counts all items.

    Args:
        starts: evaluations before training, at step 0; their run indices are -1, -2 and so on.
    """
    cells: dict[tuple[str, str, int], dict[str, dict[str, Any]]] = {}
    before = [(-1 - place, suites) for place, suites in enumerate(starts)]
    for index, suites in [*before, *enumerate(evals)]:
        for suite, records in suites.items():
            step = 0 if index < 0 else max((record.step for record in records), default=0)
            for record in records:
                if record.step != step or (index >= 0 and not step):
                    continue
                cell = cells.setdefault((suite, record.task, record.length), {})
                item = cell.setdefault(record.id, {**_item(record), "by": {}})
                item["by"][index, record.step] = _answer(index, record)
    sizes = [[_answers_size(item) for item in cell.values()] for cell in cells.values()]
    kept = max(map(len, sizes), default=0)
    while kept > 1 and sum(sum(cell[:kept]) for cell in sizes) > ANSWERS_BUDGET:
        kept -= 1
    return {
        "asked": sum(map(len, sizes)),
        "cells": [
            {
                "suite": suite,
                "task": task,
                "length": length,
                "items": [{**item, "by": list(item["by"].values())} for item in list(cell.values())[:kept]],
            }
            for (suite, task, length), cell in sorted(cells.items())
        ],
    }


def rollouts(runs: Sequence[Run]) -> dict[str, Any]:
    """Completions by step and prompt, for as many steps as fit: the last, the first, then those between."""
    steps: dict[int, dict[str, dict[str, Any]]] = {}
    for index, run in enumerate(runs):
        for step, rows in run.rollouts().items():
            for row in rows:
                prompt = {"id": row.get("id"), "prompt": row.get("prompt_tail", ""), "answer": row.get("answer", "")}
                prompts = steps.setdefault(step, {})
                entry = prompts.setdefault(str(prompt["id"]), {**prompt, "by": {}})
                entry["by"].setdefault(index, []).append(_completion(row))
                if row.get("view"):
                    entry.setdefault("views", {})[index] = [str(row.get("view_kind", "")), _shortened(row["view"])]
    ordered = sorted(steps)
    priority = [*ordered[-1:], *ordered[:1], *ordered[1:-1]]
    kept: list[int] = []
    left = ROLLOUTS_BUDGET
    for step in dict.fromkeys(priority):
        left -= sum(
            _size(completion)
            for prompt in steps[step].values()
            for group in prompt["by"].values()
            for completion in group
        )
        if left < 0 and kept:
            break
        kept.append(step)
    return {
        "saved": len(ordered),
        "steps": [
            {"step": step, "prompts": [{**entry, "by": list(entry["by"].items())} for entry in steps[step].values()]}
            for step in sorted(kept)
        ],
    }


def _item(record: ItemRecord) -> dict[str, Any]:
    texts = {"question": _shortened(record.question), "answer": record.expected}
    return {"id": record.id, "depth": record.depth, **(texts if record.question else {})}


def _answers_size(item: dict[str, Any]) -> int:
    return sum(len(answer[2]) + 80 for answer in item["by"].values())


def _answer(run: int, record: ItemRecord) -> list[Any]:
    parts = {name: rounded(value) for name, value in record.parts.items()}
    return [run, record.step, _shortened(record.output), rounded(record.score), parts, record.truncated, record.tokens]


def _completion(row: dict[str, Any]) -> dict[str, Any]:
    """A saved completion, with its tokens and their gap to the teacher if they were saved, else with its text."""
    completion = {key: row.get(key) for key in ("tokens", "finish_reason", "reward", "advantage")}
    completion["parts"] = {name: rounded(value) for name, value in (row.get("reward_parts") or {}).items()}
    if row.get("teacher_gap") and len(row["teacher_gap"]) == len(row.get("tokens_text") or ()):
        completion |= {"texts": row["tokens_text"], "gaps": [round(gap, 2) for gap in row["teacher_gap"]]}
    else:
        completion["text"] = _shortened(str(row.get("completion", "")))
    return completion


def _size(completion: dict[str, Any]) -> int:
    return 150 + len(completion.get("text", "")) + sum(len(text) + 9 for text in completion.get("texts", ()))


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} […]"
