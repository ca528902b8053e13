"""Train a few steps on real servers with one and two ranks under ZeRO-3, and on two servers at once.

    python experiments/vllm/setups.py           # 3 minutes on 2 cores; after make vllm

Each must take its steps with tokens that the policy itself finds as likely as the server did. Writes setups.jsonl.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from train import start

RESULTS = Path(__file__).parent / "setups.jsonl"
STEPS = 5


def main() -> None:
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        servers = []
        for name in ("one", "two"):
            (Path(folder) / name).mkdir()
            servers.append(start(Path(folder) / name))
        both = ",".join(server.url for server in servers)
        for name, engine, ranks, address in (
            ("1 rank, 1 server", "zero3", 1, servers[0].url),
            ("2 ranks, 1 server", "zero3", 2, servers[0].url),
            ("1 rank, 2 servers", "local", 1, f"'{both}'"),
        ):
            run = Path(folder, name.replace(", ", "-").replace(" ", ""))
            command = [
                sys.executable, "-m", "longctx_rl", "+algo=dgrpo", f"engine={engine}", f"engine.num_processes={ranks}",
                "rollout=vllm", f"rollout.server={address}", "eval=none", "logging=none", f"budget.steps={STEPS}",
                "data.lengths=[256]", f"runs_root={folder}", f"run_dir={run}",
            ]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
            rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
            gaps = [row["policy/sampler_gap"] for row in rows if "policy/sampler_gap" in row]
            assert len(gaps) == STEPS
            lines.append({"setup": name, "engine": engine, "steps": STEPS, "largest_gap": max(gaps)})
            print(json.dumps(lines[-1]), flush=True)
        for server in servers:
            server.close()
    RESULTS.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    main()
