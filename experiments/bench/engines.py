"""Step time of ZeRO-3 against plain torch at mini scale, side by side in new, alternating processes.

    python experiments/bench/engines.py [--repeats 5] [--steps 6]

Appends one line to experiments/bench/results/engines.jsonl.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

from longctx_rl.runs.metrics import read_metrics

RESULTS = Path(__file__).parent / "results" / "engines.jsonl"
WARM_UP = 1
"""Warm-up steps at the start of each process, which are not counted."""


def step_seconds(engine: str, steps: int, root: Path, repeat: int) -> list[float]:
    """Seconds of each step after the warm-up, in its own process."""
    overrides = [
        "+algo=dgrpo",
        f"engine={engine}",
        "eval=none",
        "logging=none",
        f"budget.steps={steps + WARM_UP}",
        "checkpoint.every=0",
        f"runs_root={root}",
        f"experiment_name={engine}-{repeat}",
    ]
    subprocess.run([sys.executable, "-m", "longctx_rl", *overrides], check=True, stdout=subprocess.DEVNULL)
    (metrics,) = root.glob(f"{engine}-{repeat}/*/metrics.jsonl")
    return [row["perf/step_seconds"] for row in read_metrics(metrics) if "perf/step_seconds" in row][WARM_UP:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6)
    options = parser.parse_args()
    medians: dict[str, list[float]] = {"local": [], "zero3": []}
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(options.repeats):
            for engine, values in medians.items():
                values.append(statistics.median(step_seconds(engine, options.steps, Path(folder), repeat)))
                print(f"repeat {repeat}: {engine} {values[-1]:.3f} s per step", flush=True)
    ratios = [z / p for z, p in zip(medians["zero3"], medians["local"], strict=True)]
    row = {
        "date": date.today().isoformat(),
        "command": f"python experiments/bench/engines.py --repeats {options.repeats} --steps {options.steps}",
        "machine": f"{platform.machine()}, python {platform.python_version()}",
        "step_seconds": {engine: [round(v, 4) for v in values] for engine, values in medians.items()},
        "ratio_median": round(statistics.median(ratios), 3),
        "ratio_range": [round(min(ratios), 3), round(max(ratios), 3)],
    }
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    print(f"zero3 / local: median {row['ratio_median']} of {options.repeats}, range {row['ratio_range']}")


if __name__ == "__main__":
    main()
