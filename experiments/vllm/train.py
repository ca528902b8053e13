"""Train the mini student with both samplers: are rewards and losses the same within noise, and does the server agree?

    python experiments/vllm/train.py            # about 20 minutes on 2 cores; after make vllm

One server takes the weights of all runs in turn. Each method trains 20 steps with three seeds and each sampler; the two
draw different random numbers, so curves agree within noise alone. Writes training.jsonl: a line for each run, and one
for each method with the difference between the samplers and its 95 % interval over seeds.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from scipy.stats import t

from longctx_rl.config.compose import composed
from longctx_rl.engine.local import LocalEngine
from longctx_rl.policy.loading import load_model, load_tokenizer
from longctx_rl.policy.policy import Policy
from longctx_rl.rollout.serving import ServerProcess

HERE = Path(__file__).parent
PYTHON = HERE.parents[1] / ".venv-vllm" / "bin" / "python"
RESULTS = HERE / "training.jsonl"
METHODS = ("grpo", "opd", "dgrpo", "opsd", "dgrpo_self")
"""Methods that sample. The other two, sft and kd, use the sampler in their evaluations only."""
SEEDS, STEPS = (0, 1, 2), 20
SETTINGS = ("engine=local", "logging=none", f"budget.steps={STEPS}", "data.lengths=[256]", "logging.gap_prompts=0")
COMPARED = ("rollout/reward_mean", "loss/total", "rollout/length_mean", "policy/entropy")


def train(method: str, seed: int, sampler: tuple[str, ...], root: Path) -> dict[str, Any]:
    """Train one run and return its means over all steps, and the largest difference between sampler and policy."""
    name = sampler[0].removeprefix("rollout=") + (" ahead" if "rollout.ahead=1" in sampler else "")
    evaluated = () if method in METHODS else ("eval.at_start=true", "eval.items=4")
    command = [
        sys.executable, "-m", "longctx_rl", f"+algo={method}", f"seed={seed}", *SETTINGS, *sampler,
        *(evaluated or ("eval=none",)), f"runs_root={root}", f"experiment_name={name.replace(' ', '-')}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = root.glob(f"{name.replace(' ', '-')}/{method}-*-s{seed}")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "loss/total" in row]
    assert len(steps) == STEPS
    means = {key: round(fmean(row[key] for row in steps), 6) for key in COMPARED if key in steps[0]}
    evaluations = [row["eval/heldout/mean"] for row in rows if "eval/heldout/mean" in row]
    return {
        "method": method,
        "seed": seed,
        "sampler": name,
        **means,
        "largest_gap": max((row["policy/sampler_gap"] for row in steps if "policy/sampler_gap" in row), default=None),
        "score_before_and_after": evaluations or None,
        "seconds_per_step": round(fmean(row["perf/step_seconds"] for row in steps[2:]), 3),
        "rollout_seconds": round(fmean(row.get("time/rollout", 0.0) for row in steps[2:]), 3),
    }


def difference(first: list[dict[str, Any]], second: list[dict[str, Any]], key: str) -> list[float] | None:
    """The mean difference over seeds of a quantity, and its 95 % interval."""
    values = [two[key] - one[key] for one, two in zip(first, second, strict=True) if key in one]
    if not values:
        return None
    half = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5
    return [round(value, 4) for value in (fmean(values), fmean(values) - half, fmean(values) + half)]


def start(root: Path) -> ServerProcess:
    """Start a server of the mini student, whose head is stored apart from its embedding, and wait for it."""
    config = composed(["+algo=grpo", "rollout=vllm", f"rollout.python={PYTHON}", "engine=local", f"run_dir={root}"])
    LocalEngine(config, Policy(load_model("mini-student"), chunk=64), 1).export(
        root / "student", load_tokenizer("mini-student"), untied=True
    )
    log = root / "vllm.log"
    server = ServerProcess(config.rollout, root / "student", log, dtype="float32", context=2048, cpu=True)
    server.wait()
    return server


def main() -> None:
    lines: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        process = start(Path(folder))
        lines.append({"command": "python experiments/vllm/train.py"})
        server = ("rollout=vllm", f"rollout.server={process.url}")
        for method in ("sft", "kd", *METHODS):
            samplers = [("rollout=hf",), server]
            if method == "dgrpo":
                samplers.append((*server, "rollout.ahead=1"))
            seeds = SEEDS if method in METHODS else SEEDS[:1]
            runs = [[train(method, seed, sampler, Path(folder)) for seed in seeds] for sampler in samplers]
            lines += [run for each in runs for run in each]
            for other in runs[1:] if method in METHODS else ():
                compared = {key: difference(runs[0], other, key) for key in COMPARED}
                lines.append({"method": method, "sampler": f"{other[0]['sampler']} minus hf", **compared})
            print(json.dumps(lines[-1]), flush=True)
        process.close()
    RESULTS.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    main()
