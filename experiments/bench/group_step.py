"""The group step compared with itself without sharing, TRL's trainers, transformers' generate, and the lower bound.

    python experiments/bench/group_step.py run [--only decode,teacher,...] [--repeats 5]
    python experiments/bench/group_step.py show     # from the committed results
    python experiments/bench/group_step.py plot     # results/group_step.svg

Each measurement runs in a new process (group_cases.py); variants alternate, and the numbers are ratios of medians over
the repeats of one call. ``run`` appends a line to results/group_step.jsonl as soon as a question is answered.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
from floor import Machine, floor, machine

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "group_step.jsonl"
LONG = {"prompt": 4096, "completion": 64, "group": 8}
"""The case in which sharing helps most: a long prompt and short completions."""
SHORT = {"prompt": 512, "completion": 256, "group": 8}
"""The case in which it helps least."""

Runs = dict[str, list[dict[str, Any]]]


def measure(kind: str, variant: str, case: dict[str, int], environment: dict[str, str] | None = None) -> dict[str, Any]:
    """Run one measurement in its own process."""
    sizes = [part for name, value in case.items() for part in (f"--{name}", str(value))]
    command = [sys.executable, str(HERE / "group_cases.py"), kind, variant, *sizes]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **(environment or {})}, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def alternate(
    kind: str, variants: dict[str, dict[str, int]], repeats: int, names: dict[str, str] | None = None
) -> Runs:
    """``repeats`` measurements of each variant, alternating between the variants."""
    runs: Runs = {name: [] for name in variants}
    for repeat in range(repeats):
        for name, case in variants.items():
            runs[name].append(measure(kind, (names or {}).get(name, name), case))
            shown = {k: round(v, 3) for k, v in runs[name][-1].items() if isinstance(v, float)}
            print(f"{kind} {repeat} {name}: {shown}", flush=True)
    return runs


def median(runs: list[dict[str, Any]], column: str) -> float:
    return statistics.median(run[column] for run in runs)


def ratio(runs: Runs, slow: str, fast: str, column: str) -> dict[str, float]:
    """The ratio of medians, and the range of the ratios of single repeats."""
    pairs = [a[column] / b[column] for a, b in zip(runs[slow], runs[fast], strict=True)]
    return {
        "ratio": round(median(runs[slow], column) / median(runs[fast], column), 3),
        "lowest": round(min(pairs), 3),
        "highest": round(max(pairs), 3),
    }


def columns(runs: Runs) -> dict[str, dict[str, float]]:
    """The median of every number of every variant."""
    return {
        name: {k: round(median(rows, k), 5) for k, v in rows[0].items() if isinstance(v, (int, float))}
        for name, rows in runs.items()
    }


def step(repeats: int, case: dict[str, int]) -> dict[str, Any]:
    """Whole steps of dGRPO and their updates, against no sharing and against TRL's GRPO, which has no teacher."""
    variants = ("packed", "separate", "trl-grpo", "trl-grpo-nogc")
    runs = alternate("step", dict.fromkeys(variants, case), repeats)
    ratios = {
        f"{column}: {slow} / packed": ratio(runs, slow, "packed", column)
        for slow in variants[1:]
        for column in ("update", "step", "update_mib")
    }
    phases = {name: median(runs["packed"], name) for name in ("rollout", "teacher", "update")}
    return {"case": case, "medians": columns(runs), "ratios": ratios, "phases": phases, "machine": machine().as_dict()}


def peers(repeats: int) -> dict[str, Any]:
    """TRL's distillation, which queries its teacher within the update, and TRL's GRPO with its short GPU loss."""
    variants = ("packed", "trl-distill", "trl-distill-nogc", "trl-grpo-compact", "trl-grpo-compact-nogc")
    runs = alternate("step", dict.fromkeys(variants, LONG), repeats)
    ratios = {}
    for slow in variants[1:]:
        column = "scored_update" if slow.startswith("trl-distill") else "update"
        runs[slow] = [row | {"scored_update": row["update"]} for row in runs[slow]]
        ratios |= {f"{each}: {slow} / packed": ratio(runs, slow, "packed", each) for each in (column, "step")}
    return {"medians": columns(runs), "ratios": ratios}


def memory(repeats: int) -> dict[str, Any]:
    """Peak memory of teacher and update, each with and without activation recomputation, and of TRL in both modes."""
    variants = ("packed", "packed-gc", "scheduled-gc", "trl-grpo", "trl-grpo-batch")
    runs = alternate("step", dict.fromkeys(variants, LONG), repeats)
    pairs = (("trl-grpo", "packed-gc"), ("trl-grpo-batch", "packed"), ("trl-grpo-batch", "packed-gc"))
    ratios = {f"update_mib: {a} / {b}": ratio(runs, a, b, "update_mib") for a, b in pairs}
    return {"medians": columns(runs), "ratios": ratios}


def scheduled(repeats: int) -> dict[str, Any]:
    """Peak memory of the update over G, packed and one completion at a time, and the time that the latter costs."""
    variants = {f"{mode} G={g}": LONG | {"group": g} for g in (4, 8, 32) for mode in ("packed", "scheduled")}
    names = {name: name.split()[0] for name in variants}
    runs = alternate("update", variants, repeats, names)
    return {
        "medians": columns(runs),
        "ratios": {
            "update_mib: scheduled G=32 / scheduled G=4": ratio(runs, "scheduled G=32", "scheduled G=4", "update_mib"),
            "update_mib: packed G=32 / scheduled G=32": ratio(runs, "packed G=32", "scheduled G=32", "update_mib"),
            "update: scheduled G=8 / packed G=8": ratio(runs, "scheduled G=8", "packed G=8", "update"),
        },
    }


def group_size(repeats: int) -> dict[str, Any]:
    """Time of the update over G with a prompt of 8,192 tokens."""
    variants = {f"G={g}": {"prompt": 8192, "completion": 32, "group": g} for g in (4, 16)}
    runs = alternate("update", variants, repeats, dict.fromkeys(variants, "packed"))
    return {"medians": columns(runs), "ratios": {"update: G=16 / G=4": ratio(runs, "G=16", "G=4", "update")}}


def decode(repeats: int) -> dict[str, Any]:
    """Greedy decoding with identical tokens."""
    runs = alternate("decode", dict.fromkeys(("shared", "repeated"), LONG), repeats)
    outputs = [run.pop("tokens") for rows in runs.values() for run in rows]
    ratios = {f"{c}: repeated / shared": ratio(runs, "repeated", "shared", c) for c in ("decode", "kv_mib")}
    return {
        "medians": columns(runs),
        "ratios": ratios,
        "token_identical": all(tokens == outputs[0] for tokens in outputs),
    }


def teacher(repeats: int) -> dict[str, Any]:
    """Scoring a group by the teacher."""
    runs = alternate("teacher", dict.fromkeys(("packed", "separate"), LONG), repeats)
    scores = {name: torch.tensor(rows[0]["logprobs"]) for name, rows in runs.items()}
    wrong = ((scores["packed"] - scores["separate"]).abs() / scores["separate"].abs()).max().item()
    ratios = {"teacher: separate / packed": ratio(runs, "separate", "packed", "teacher")}
    return {"medians": columns(runs), "ratios": ratios, "relative_difference": wrong}


def costs(repeats: int) -> dict[str, Any]:
    """The most expensive operations of teacher and update, with and without sharing."""
    measured = {variant: measure("costs", variant, LONG) for variant in ("separate", "packed")}
    result: dict[str, Any] = {}
    for variant, row in measured.items():
        result[variant] = {name: round(seconds, 3) for name, seconds in row["operations"].items()}
        result[f"{variant}, all"] = round(row["total"], 3)
    return result


def vocabulary(repeats: int) -> dict[str, Any]:
    """Exact reverse KL with gradient, 16,384 loss tokens over 151,936 entries at width 64."""
    sizes = {"prompt": 1, "completion": 2048, "group": 8, "width": 64, "vocabulary": 151_936}
    return {"medians": columns(alternate("vocabulary", {"256": sizes, "1024": sizes}, min(repeats, 2)))}


def exactness(repeats: int) -> dict[str, Any]:
    """Loss and gradient of every implementation of the step, against plain transformers in float32."""
    result: dict[str, Any] = {}
    for name, case in (("long", LONG), ("short", SHORT)):
        gradients, losses = {}, {}
        for variant in ("naive", "packed", "scheduled", "separate"):
            with tempfile.TemporaryDirectory() as folder:
                file = f"{folder}/gradient.pt"
                losses[variant] = measure("gradient", variant, case, {"GRADIENT_FILE": file})["loss"]
                gradients[variant] = torch.load(file)
        largest = gradients["naive"].abs().max()
        for variant in ("packed", "scheduled", "separate"):
            result[f"{name} {variant}"] = {
                "gradient": ((gradients[variant] - gradients["naive"]).abs().max() / largest).item(),
                "loss": abs(losses[variant] / losses["naive"] - 1),
            }
        print(result, flush=True)
    return result


def scaling(repeats: int) -> dict[str, Any]:
    """Time of the update over prompt, completion, group and vocabulary sizes, packed and separate, for ``plot``."""
    base = {"prompt": 2048, "completion": 64, "group": 8, "vocabulary": 4096}
    axes = {
        "prompt": (512, 1024, 2048, 4096),
        "completion": (16, 64, 256),
        "group": (2, 4, 8, 16),
        "vocabulary": (1024, 4096, 32_768),
    }
    result: dict[str, Any] = {}
    for axis, values in axes.items():
        for value in values:
            for variant in ("packed", "separate"):
                rows = [measure("update", variant, base | {axis: value}) for _ in range(min(repeats, 3))]
                result[f"{axis}={value} {variant}"] = [round(row["update"], 4) for row in rows]
                print(axis, value, variant, result[f"{axis}={value} {variant}"], flush=True)
    return result


QUESTIONS: dict[str, Callable[[int], dict[str, Any]]] = {
    "exactness": exactness,
    "long step": lambda repeats: step(repeats, LONG),
    "short step": lambda repeats: step(repeats, SHORT),
    "peers": peers,
    "decode": decode,
    "teacher": teacher,
    "memory": memory,
    "scheduled": scheduled,
    "group size": group_size,
    "vocabulary": vocabulary,
    "costs": costs,
    "scaling": scaling,
}


def run(only: list[str], repeats: int) -> None:
    RESULTS.parent.mkdir(exist_ok=True)
    for question in only or list(QUESTIONS):
        row = {
            "question": question,
            "date": date.today().isoformat(),
            "repeats": repeats,
            "machine": f"{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}",
            "answer": QUESTIONS[question](repeats),
        }
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def latest() -> dict[str, dict[str, Any]]:
    """The newest result for each question."""
    if not RESULTS.is_file():
        raise SystemExit(f"{RESULTS} does not exist: make it with python experiments/bench/group_step.py run")
    rows = [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]
    return {row["question"]: row["answer"] for row in rows}


def show() -> None:
    for question, answer in latest().items():
        print(f"\n## {question}\n")
        for name, entry in answer.get("ratios", {}).items():
            print(f"- {name}: {entry['ratio']:.2f} ({entry['lowest']:.2f} to {entry['highest']:.2f})")
        if "phases" in answer:
            least = floor(answer["case"], layers=4, width=128, vocabulary=4096)
            for name, seconds in answer["phases"].items():
                ceilings = Machine.of(answer["machine"])
                possible, more = (least[name].seconds(ceilings, exponentials=counted) for counted in (False, True))
                print(
                    f"- {name}: {seconds:.3f} s, {seconds / possible:.2f} times its floor of {possible:.3f} s; "
                    f"{seconds / more:.2f} times with softmax's exponentials"
                )
        rest = {k: v for k, v in answer.items() if k not in ("ratios", "phases")}
        for name, value in rest.items():
            print(f"- {name}: {value}")


def plot() -> None:
    """Plot the time of the update over each size, packed and separate."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    scaling = latest()["scaling"]
    axes = dict.fromkeys(name.split("=")[0] for name in scaling)
    figure, panels = pyplot.subplots(1, len(axes), figsize=(14, 3.4), sharey=True, layout="constrained")
    for panel, axis in zip(panels, axes, strict=True):
        for variant, label in (("separate", "each completion with its prompt"), ("packed", "prompt shared")):
            points = {
                int(name.split("=")[1].split()[0]): statistics.median(values)
                for name, values in scaling.items()
                if name.startswith(f"{axis}=") and name.endswith(variant)
            }
            panel.plot(list(points), list(points.values()), marker="o", label=label)
        panel.set(xscale="log", yscale="log", xlabel=f"{axis}, tokens" if axis != "group" else "completions per prompt")
        panel.set_xticks(list(points), [f"{value:,}" for value in points], minor=False)
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("update, seconds")
    panels[0].legend(frameon=False)
    figure.savefig(HERE / "results" / "group_step.svg")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("run", "show", "plot"))
    parser.add_argument("--only", default="", help=f"questions to run, separated by commas: {','.join(QUESTIONS)}")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    if options.action == "run":
        run([name for name in options.only.split(",") if name], options.repeats)
    (plot if options.action == "plot" else show)()


if __name__ == "__main__":
    main()
