"""Candidates graded per second with isolation: warm workers, and a fork for each candidate.

    python experiments/bench/judge.py [--candidates 600] [--repeats 5]

Appends a line to results/judge.jsonl.
"""

import argparse
import json
import statistics
import time
from datetime import date
from pathlib import Path

from longctx_rl.sandbox import probe
from longctx_rl.sandbox.pool import Sandbox
from longctx_rl.sandbox.submissions import Submission, grade

RESULTS = Path(__file__).parent / "results" / "judge.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=600)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    rates: dict[str, list[float]] = {"bwrap": [], "rlimit": []}
    start_seconds = {}
    for backend, speeds in rates.items():
        begin = time.perf_counter()
        with Sandbox(probe.choose(backend), workers=2) as sandbox:
            start_seconds[backend] = round(time.perf_counter() - begin, 3)
            for repeat in range(options.repeats):
                work = [
                    Submission("def double(x): return 2 * x", "double", [[x] for x in range(n, n + 20)],
                               [2 * x for x in range(n, n + 20)])
                    for n in range(options.candidates)
                ]  # fmt: skip
                begin = time.perf_counter()
                assert all(verdict.right for verdict in grade(sandbox, work))
                speeds.append(round(options.candidates / (time.perf_counter() - begin), 1))
                print(backend, repeat, speeds[-1], flush=True)
    row = {
        "date": date.today().isoformat(),
        "command": f"python experiments/bench/judge.py --candidates {options.candidates} --repeats {options.repeats}",
        "candidates_per_second": rates,
        "median": {name: statistics.median(speeds) for name, speeds in rates.items()},
        "start_seconds": start_seconds,
    }
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row, indent=2))


if __name__ == "__main__":
    main()
