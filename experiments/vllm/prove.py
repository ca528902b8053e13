"""Test `python -m longctx_rl.data build` and the judge with a real vLLM server of the mini teacher, on a CPU.

    make vllm-proof        # or: python experiments/vllm/prove.py

Serves the mini teacher, builds a data set from this project's own
documentation, kills the build midway and continues it, and starts a GRPO run with the served model as judge. The mini
teacher has never seen such prompts and replies with gibberish. The test therefore asserts that every question is
rejected with a reason, none is lost, no reply is paid for twice, and a run whose judge says neither yes nor no is saved
and stops before it trains on anything. Appends a line to results.jsonl.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

from install import VLLM, install

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RESULTS = HERE / "results.jsonl"
QUESTIONS = {"multihop": 2, "grounding": 1, "longform": 1}


@contextlib.contextmanager
def served(python: Path, log: Path) -> Iterator[tuple[str, float]]:
    """Serve the mini teacher; yields the URL and the seconds that the start took."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    model = ROOT / "src" / "longctx_rl" / "shipped_models" / "mini-teacher"
    command = [
        python, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--served-model-name", "mini-teacher",
        "--host", "127.0.0.1", "--port", port, "--dtype", "float32", "--max-model-len", 4096, "--max-num-seqs", 8,
        "--enforce-eager",
    ]  # fmt: skip
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    start = time.monotonic()
    with log.open("wb") as out:
        server = subprocess.Popen(
            [str(part) for part in command], stdout=out, stderr=out, env=environment, start_new_session=True
        )
        try:
            while not _answers(f"http://127.0.0.1:{port}/health"):
                if server.poll() is not None or time.monotonic() - start > 600:
                    raise SystemExit(f"vLLM did not start:\n{log.read_text(errors='replace')[-3000:]}")
                time.sleep(0.5)
            yield f"http://127.0.0.1:{port}/v1", time.monotonic() - start
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(60)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def build(url: str, documents: Path, out: Path) -> list[str]:
    tasks = [f"tasks.{name}={count}" for name, count in QUESTIONS.items()]
    return [
        sys.executable, "-m", "longctx_rl.data", "build", f"documents={documents}", f"out={out}",
        f"writer.base_url={url}", "writer.model=mini-teacher", "writer.max_tokens=256", "writer.concurrency=2",
        "passages=2", "passage_characters=300", "minimum_distance=0.1", "language=en", *tasks,
    ]  # fmt: skip


def replies(out: Path) -> int:
    """The number of replies on disk."""
    if not (out / "replies.sqlite").exists():
        return 0
    with contextlib.closing(sqlite3.connect(out / "replies.sqlite", timeout=60)) as kept:
        try:
            count: int = kept.execute("SELECT count(*) FROM replies").fetchone()[0]
        except sqlite3.OperationalError:  # the file exists before its table does
            return 0
    return count


def killed_and_continued(url: str, documents: Path, out: Path) -> dict[str, Any]:
    """Kill a build after its fourth reply, continue it, and check its report and its replies."""
    first = subprocess.Popen(build(url, documents, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while replies(out) < 4:
        assert first.poll() is None, "the build ended before it could be killed"
        time.sleep(0.05)
    first.kill()
    first.wait()
    before = replies(out)
    start = time.monotonic()
    done = subprocess.run(build(url, documents, out), capture_output=True, text=True, check=False)
    seconds = time.monotonic() - start
    said = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 2 and "no question passed the checks" in said, done.stdout + done.stderr
    report = json.loads((out / "report.json").read_text())
    asked_for = report["documents"] * sum(QUESTIONS.values())
    rejected = [json.loads(line) for line in (out / "rejected.ndjson").read_text().splitlines()]
    attempts = 2
    assert report["asked_for"] == asked_for
    assert len(rejected) == asked_for * attempts == sum(report["rejected"].values()), "an attempt was lost"
    assert all(attempt["reason"] for attempt in rejected)
    spent = report["spent"]
    assert replies(out) == before + spent["asked"], "a reply was paid twice, or not kept"
    return {
        "documents": report["documents"],
        "questions": asked_for,
        "rejected": report["rejected"],
        "replies_before_the_kill": before,
        "asked_after_it": spent["asked"],
        "from_disk": spent["replies"] - spent["asked"],
        "seconds": round(seconds, 1),
        "said": said.split(": see ")[0],
    }


def judged(url: str, root: Path) -> dict[str, Any]:
    """Run two steps of GRPO that the served model grades: its replies are not verdicts, so the run must stop."""
    command = [
        sys.executable, "-m", "longctx_rl", "+algo=grpo", "+experiment=smoke", "reward=judge", "engine=local",
        "eval=none", "logging.mode=disabled", f"runs_root={root}", f"reward.judge.base_url={url}",
        "reward.judge.model=mini-teacher", f"reward.judge.cache={root}/judge.sqlite",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 2 and "Step 0 is saved; continue with:" in said, done.stdout + done.stderr
    (run,) = root.glob("smoke/*")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert not any("rollout/reward_mean" in row for row in rows), "a made-up reward was trained on"
    assert list((run / "checkpoints").iterdir())
    return {"said": said.split(" Step 0 is saved")[0].removeprefix("error: ").replace(url, "URL")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environment", type=Path, default=ROOT / ".venv-vllm", help="vLLM's own virtual environment")
    options = parser.parse_args()
    python = install(options.environment)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        shutil.copytree(ROOT / "docs", root / "documents")
        with served(python, root / "vllm.log") as (url, seconds):
            row = {
                "date": date.today().isoformat(),
                "command": "python experiments/vllm/prove.py",
                "vllm": VLLM,
                "start_seconds": round(seconds, 1),
                "build": killed_and_continued(url, root / "documents", root / "out"),
                "judge": judged(url, root / "runs"),
            }
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row, indent=2))


if __name__ == "__main__":
    main()
