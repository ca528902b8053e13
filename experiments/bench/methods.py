"""The five methods with default settings: costs of each run, and changes of its scores on held-out items.

    python experiments/bench/methods.py run [--algos dgrpo,grpo,...] [--seeds 0,1,2] [--again]   # minutes per run
    python experiments/bench/methods.py show                                    # from the committed results

``run`` appends one line per run to experiments/bench/results/methods.jsonl: wall time of the whole command, peak
resident memory of its processes, seconds until the first step was recorded, cost counters, and the score of every
held-out item before and after. A run that has a line already is skipped unless --again is given; the newest line of a
run counts.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from longctx_rl import stats
from longctx_rl.evals.records import read
from longctx_rl.runs.environment import git_state
from longctx_rl.runs.metrics import read_metrics

RESULTS = Path(__file__).parent / "results" / "methods.jsonl"
COSTS = ("sampled_tokens", "trained_tokens", "teacher_tokens", "flops", "wall_seconds")
LONG = 1024
"""Prompt length in tokens from which a context counts as long."""


def resident_gib(process: psutil.Process) -> float:
    """Resident memory of a process and its children, with shared pages counted once."""
    total = 0
    for member in [process, *process.children(recursive=True)]:
        try:
            total += member.memory_full_info().pss
        except psutil.Error:
            continue
    return total / 2**30


def measure(algo: str, seed: int, root: Path) -> dict[str, Any]:
    """Run one method with default settings and read its run directory."""
    command = [sys.executable, "-m", "longctx_rl", f"+algo={algo}", f"seed={seed}", f"runs_root={root}"]
    start = time.monotonic()
    process = psutil.Popen(command, stdout=subprocess.DEVNULL)
    peak, first_step = 0.0, None
    while process.poll() is None:
        peak = max(peak, resident_gib(process))
        metrics = next(root.glob(f"*/{algo}-*-s{seed}/metrics.jsonl"), None)
        if first_step is None and metrics and any((row["step"] or 0) > 0 for row in read_metrics(metrics)):
            first_step = time.monotonic() - start
        time.sleep(0.25)
    seconds = time.monotonic() - start
    if process.returncode:
        raise SystemExit(f"{algo} seed {seed} ended with status {process.returncode}")
    (run,) = root.glob(f"*/{algo}-*-s{seed}")
    rows = [row for row in read_metrics(run / "metrics.jsonl") if "loss/total" in row]
    records = read(run / "evals" / "heldout.jsonl")
    cells: dict[str, dict[str, list[float]]] = defaultdict(lambda: {"before": [], "after": []})
    last = max(record.step for record in records)
    for when, step in (("before", 0), ("after", last)):
        for record in sorted((r for r in records if r.step == step), key=lambda r: r.id):
            cells[f"{record.task}/{record.length}"][when].append(round(record.score, 4))
    return {
        "measured": datetime.now(UTC).isoformat(timespec="minutes"),
        "commit": (git_state(Path(__file__).resolve().parents[2]) or {}).get("commit", "")[:10],
        "algo": algo,
        "seed": seed,
        "seconds": round(seconds, 1),
        "first_step_seconds": round(first_step or seconds, 1),
        "peak_gib": round(peak, 3),
        "steps": rows[-1]["step"],
        **{name: rows[-1][f"progress/{name}"] for name in COSTS},
        "cells": cells,
    }


def run(algos: list[str], seeds: list[int], again: bool) -> None:
    RESULTS.parent.mkdir(exist_ok=True)
    done = set() if again else {(row["algo"], row["seed"]) for row in load()}
    for seed in seeds:
        for algo in algos:
            if (algo, seed) in done:
                print(f"{algo} seed {seed}: already in {RESULTS.name}")
                continue
            with tempfile.TemporaryDirectory() as folder:
                row = measure(algo, seed, Path(folder))
            with RESULTS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{algo} seed {seed}: {row['seconds']:.0f} s, {row['peak_gib']:.2f} GiB", flush=True)


def load() -> list[dict[str, Any]]:
    if not RESULTS.is_file():
        return []
    rows = [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]
    return list({(row["algo"], row["seed"]): row for row in rows}.values())


def show() -> None:
    """Mean scores and paired differences. Intervals resample items, each with all seeds; not the seeds.

    Costs are the largest of any seed, of the newest commit that was measured.
    """
    rows = load()
    newest = max(rows, key=lambda row: row["measured"])["commit"]
    print(
        "| method | seeds | short before | short after | short difference [95 %] "
        "| long before | long after | long difference [95 %] | long difference by seed | first step, s | all, s | GiB |"
    )
    print("|---" * 12 + "|")
    for algo in dict.fromkeys(row["algo"] for row in rows):
        algo_rows = [row for row in rows if row["algo"] == algo]
        columns = [algo, str(len(algo_rows))]
        for long in (False, True):
            before, after, families = pooled(algo_rows, long)
            columns += [f"{sum(scores) / len(scores):.3f}" for scores in (before, after)]
            difference = stats.paired_difference(before, after, families, seed=0)
            columns.append(f"{difference.value:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]")
        columns.append(
            ", ".join(
                f"{sum(a) / len(a) - sum(b) / len(b):+.3f}" for b, a, _ in (pooled([row], True) for row in algo_rows)
            )
        )
        costly = [row for row in algo_rows if row["commit"] == newest]
        for name, digits in (("first_step_seconds", 0), ("seconds", 0), ("peak_gib", 2)):
            columns.append(f"{max(row[name] for row in costly):.{digits}f}" if costly else "")
        print("| " + " | ".join(columns) + " |")


def pooled(rows: list[dict[str, Any]], long: bool) -> tuple[list[float], list[float], list[str]]:
    """Scores before and after and item families over all seeds: contexts from LONG tokens on, or the shortest."""
    shortest = min(int(cell.split("/")[1]) for cell in rows[0]["cells"])
    before: list[float] = []
    after: list[float] = []
    families: list[str] = []
    for row in rows:
        for cell, scores in row["cells"].items():
            task, length = cell.split("/")
            if int(length) >= LONG if long else int(length) == shortest:
                before += scores["before"]
                after += scores["after"]
                families += [f"{task}/{item}" for item in range(len(scores["before"]))]
    return before, after, families


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("run", "show"))
    parser.add_argument("--algos", default="dgrpo,grpo,opd,kd,sft")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--again", action="store_true", help="also measure runs that have a line already")
    options = parser.parse_args()
    if options.action == "run":
        run(options.algos.split(","), [int(seed) for seed in options.seeds.split(",")], options.again)
    show()


if __name__ == "__main__":
    main()
