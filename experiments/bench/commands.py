"""Measure the time of make's targets: python experiments/bench/commands.py [test test-quick test-slow demo]

Appends one line per command to experiments/bench/results/commands.jsonl. Any Python will do; in a fresh clone the time
includes the installation.
"""

import argparse
import json
import os
import subprocess
import time
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / "results" / "commands.jsonl"


def measure(target: str) -> dict[str, object]:
    """Run ``make target`` and time it, including the installation if there is none yet."""
    installed = (ROOT / ".venv" / ".installed-dev").exists()
    start = time.monotonic()
    subprocess.run(["make", target], cwd=ROOT, check=True)
    return {
        "date": date.today().isoformat(),
        "commit": subprocess.check_output(["git", "rev-parse", "--short=10", "HEAD"], cwd=ROOT, text=True).strip(),
        "cores": os.cpu_count(),
        "command": f"make {target}",
        "installed_before": installed,
        "seconds": round(time.monotonic() - start, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", default=["test", "test-quick", "test-slow", "demo"])
    for target in parser.parse_args().targets:
        row = measure(target)
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row))


if __name__ == "__main__":
    main()
