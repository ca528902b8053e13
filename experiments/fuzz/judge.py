"""Fuzz the judge of generated code: random code and replies must not pass, hang it, crash it or affect honest code.

    python experiments/fuzz/judge.py --minutes 60 [--seed 0]

Candidates are random selections of lines from the known exploits, random bytes and JSON written to random files, and
honest code with random edits. Replies are random bytes and JSON for the reader on the trusted side. Appends a line to
results.jsonl.
"""

import argparse
import json
import random
import runpy
import time
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

from longctx_rl.sandbox import probe
from longctx_rl.sandbox.pool import CPU_SECONDS, GRACE, WALL_FACTOR, Outcome, Sandbox, read
from longctx_rl.sandbox.submissions import Submission, compare

ROOT = Path(__file__).parents[2]
KNOWN = runpy.run_path(str(ROOT / "tests" / "sandbox" / "exploits.py"))
EXPLOITS: dict[str, str] = KNOWN["EXPLOITS"]
HONEST: str = KNOWN["HONEST"]
RESULTS = Path(__file__).parent / "results.jsonl"
BATCH = 16
WRONG = [code for code in EXPLOITS.values() if "2 * x" not in code]
"""Exploits without a right answer behind a condition, because a random edit could make the condition true."""
LINES = [line for code in WRONG for line in code.splitlines() if line.strip()]


def json_value(draw: random.Random, depth: int = 0) -> Any:
    """A random JSON value that may resemble an answer."""
    kind = draw.randrange(9 if depth < 4 else 6)
    if kind < 6:
        return draw.choice([None, True, False, 0, 1, -1, 2, 1e308, float("nan"), "", "value", "x" * 50, 10**30])
    if kind == 6:
        return [json_value(draw, depth + 1) for _ in range(draw.randrange(4))]
    keys = ["outputs", "value", "error", "tuple", "set", "dict", "passed", "score", "x"]
    return {draw.choice(keys): json_value(draw, depth + 1) for _ in range(draw.randrange(3))}


def payload(draw: random.Random) -> bytes:
    """Bytes of a reply: noise, JSON, or truncated JSON."""
    if draw.random() < 0.3:
        return draw.randbytes(draw.randrange(200))
    results = [{draw.choice(["value", "error"]): json_value(draw)} for _ in range(draw.choice([0, 1, 4, 5]))]
    text = json.dumps(draw.choice([{"outputs": results}, json_value(draw)])).encode()
    return text[: draw.randrange(len(text) + 1)] if draw.random() < 0.3 else text


def candidate(draw: random.Random) -> str:
    """Random code that must not pass."""
    kind = draw.randrange(4)
    if kind == 0:
        lines = draw.sample(LINES, draw.randint(1, 12))
        return "\n".join(lines)
    if kind == 1:
        indented = "\n".join(f"    {line.strip()}" for line in draw.sample(LINES, draw.randint(1, 6)))
        return f"import os, sys, gc, json, signal\ndef double(x):\n{indented}\n    return None"
    if kind == 2:
        writes = "\n".join(
            f"try:\n    os.write({draw.randrange(12)}, {payload(draw)!r})\nexcept OSError: pass"
            for _ in range(draw.randint(1, 4))
        )
        return f"import os\n{writes}\n" + draw.choice(["os._exit(0)", "def double(x): return None", ""])
    code = list(draw.choice([HONEST.replace("2 * x", "x - 77"), *WRONG]))
    for _ in range(draw.randint(1, 6)):
        code[draw.randrange(len(code))] = chr(draw.choice([10, 32, 58, 0, 0xD800, 0x202E, *range(33, 127)]))
    return "".join(code)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--backend", default="auto")
    options = parser.parse_args()
    backend = probe.choose(options.backend)
    draw = random.Random(options.seed)
    statuses: Counter[str] = Counter()
    candidates = replies = 0
    slowest = 0.0
    start = time.monotonic()
    with Sandbox(backend, workers=2) as sandbox:
        while time.monotonic() - start < 60 * options.minutes:
            inputs = [[draw.randrange(3, 10**9)] for _ in range(5)]
            codes = [candidate(draw) for _ in range(BATCH)]
            work = [Submission(code, "double", inputs, [2 * x for (x,) in inputs]) for code in [*codes, HONEST]]
            begin = time.monotonic()
            outcomes = sandbox.run([submission.call() for submission in work])
            slowest = max(slowest, time.monotonic() - begin)
            grades = [compare(submission, outcome) for submission, outcome in zip(work, outcomes, strict=True)]
            for submission, verdict in zip(work[:-1], grades[:-1], strict=True):
                if verdict.right:
                    raise SystemExit(f"passed:\n{submission.code}")
                statuses[verdict.status] += 1
            if not grades[-1].right:
                raise SystemExit(f"honest code failed ({outcomes[-1]}) beside:\n" + "\n---\n".join(codes))
            candidates += BATCH
            for _ in range(200):
                outcome = read(draw.choice([b"", b"O", b"T", b"L", b"D", b"x"]) + payload(draw), 5)
                assert isinstance(outcome, Outcome) and len(outcome.results) in (0, 5)
                assert not compare(work[-1], outcome).right
                replies += 1
        limit = (WALL_FACTOR * CPU_SECONDS + GRACE) * (BATCH + 1)  # two workers, each candidate twice at most
        assert slowest < limit, f"a batch took {slowest:.1f} s of at most {limit:.1f}"
    row = {
        "date": date.today().isoformat(),
        "command": f"python experiments/fuzz/judge.py --minutes {options.minutes:g} --seed {options.seed}",
        "backend": backend,
        "minutes": round((time.monotonic() - start) / 60, 1),
        "candidates": candidates,
        "replies": replies,
        "passed": 0,
        "slowest_batch_seconds": round(slowest, 2),
        "statuses": dict(statuses.most_common()),
    }
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row, indent=2))


if __name__ == "__main__":
    main()
