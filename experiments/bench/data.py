"""Preparation of rows compared with the tokenizer alone, and KD from a cache compared with KD with the teacher.

    python experiments/bench/data.py [--repeats 5] [--rows 600]

Each measurement runs in a new process, and compared variants alternate. Appends one line to results/data.jsonl.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from random import Random

import pyarrow
import pyarrow.parquet

from longctx_rl.config.model import ArchitectureConfig
from longctx_rl.data.generators.wording import CORES
from longctx_rl.data.preparation import Measure, prepare
from longctx_rl.data.reading import Origin
from longctx_rl.policy.loading import fresh_model, load_tokenizer
from longctx_rl.runs.metrics import read_metrics

RESULTS = Path(__file__).parent / "results" / "data.jsonl"
CHARACTERS = 40_000
"""Characters of a document."""


def write_rows(path: Path, rows: int) -> None:
    """Write documents of random words, 200 to a file."""
    draw = Random(0)
    words = sorted({word for core in CORES for word in str(core).split()})
    path.mkdir()
    for number in range(0, rows, 200):
        table = []
        for index in range(number, min(rows, number + 200)):
            document = " ".join(draw.choices(words, k=CHARACTERS // 6))
            row = {"id": str(index), "document": f"{index} {document}", "source": "bench", "language": "en"}
            table.append(row | {"question": f"What is {index}?", "answer": " ".join(draw.choices(words, k=3))})
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table), path / f"{number:06}.parquet", row_group_size=50)


def tokenizer_alone(path: Path) -> float:
    """Seconds of the tokenizer alone for the same texts, which are read beforehand."""
    measure = Measure(load_tokenizer("mini-student"))
    texts = [
        text
        for file in sorted(path.glob("*.parquet"))
        for row in pyarrow.parquet.read_table(file).to_pylist()
        for text in (row["document"], f"\n\n{row['question']}", row["answer"])
    ]
    start = time.perf_counter()
    for first in range(0, len(texts), 300):
        measure.lengths(texts[first : first + 300])
    return time.perf_counter() - start


def prepared(path: Path) -> tuple[float, float]:
    """Seconds of a complete preparation, and its peak resident memory above the start in MiB."""
    tokenizer = load_tokenizer("mini-student")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as cache:
        start = time.perf_counter()
        prepare(Origin(str(path)), tokenizer, Path(cache))
        seconds = time.perf_counter() - start
    return seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def child(kind: str, path: Path) -> dict[str, float]:
    """Run one measurement in its own process."""
    done = subprocess.run(
        [sys.executable, __file__, "--child", kind, str(path)], capture_output=True, text=True, check=True
    )
    measurement: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measurement


def large_teacher(path: Path) -> Path:
    """A randomly initialised teacher, twenty times the mini student's size: about the paper's ratio."""
    tokenizer = load_tokenizer("mini-student")
    shape = ArchitectureConfig(
        hidden_size=256, intermediate_size=768, num_layers=6, num_heads=8, num_kv_heads=8, head_dim=32,
        max_length=4096, rope_theta=10000.0, initializer_range=0.02,
    )  # fmt: skip
    fresh_model(shape, tokenizer, seed=0).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def kd_step(teacher: str, cache: str, root: Path, name: str) -> float:
    """Median seconds of a KD step."""
    overrides = [
        "+algo=kd", "engine=local", "eval=none", "logging=none", "budget.steps=12", "checkpoint.every=0",
        f"runs_root={root}", f"experiment_name={name}", f"model.teacher={teacher}", f"model.teacher_cache={cache}",
    ]  # fmt: skip
    subprocess.run([sys.executable, "-m", "longctx_rl", *overrides], check=True, stdout=subprocess.DEVNULL)
    (metrics,) = root.glob(f"{name}/*/metrics.jsonl")
    step_seconds = (row.get("perf/step_seconds") for row in read_metrics(metrics))
    return statistics.median([seconds for seconds in step_seconds if seconds is not None][2:])


def kd_against_cache(root: Path, repeats: int) -> dict[str, object]:
    """Seconds of a KD step with each teacher and with its cache, alternating."""
    teachers = {"mini-teacher": "mini-teacher", "20 x student": str(large_teacher(root / "teacher"))}
    steps: dict[str, list[float]] = {}
    for name, teacher in teachers.items():
        command = [sys.executable, "-m", "longctx_rl.data", "teacher-cache", "+algo=kd", "engine=local"]
        cache = root / f"cache-{name.replace(' ', '-')}"
        subprocess.run(
            [*command, f"model.teacher={teacher}", f"model.teacher_cache={cache}", "budget.steps=12"], check=True
        )
    for repeat in range(repeats):
        for name, teacher in teachers.items():
            for where in ("null", str(root / f"cache-{name.replace(' ', '-')}")):
                kind = f"{name}, {'live' if where == 'null' else 'cached'}"
                median = kd_step(
                    teacher, where, root, f"kd-{repeat}-{len(steps)}-{kind.replace(', ', '-').replace(' ', '-')}"
                )
                steps.setdefault(kind, []).append(round(median, 4))
                print(repeat, kind, steps[kind][-1], flush=True)
    ratios = {
        name: round(
            statistics.median(a / b for a, b in zip(steps[f"{name}, live"], steps[f"{name}, cached"], strict=True)), 3
        )
        for name in teachers
    }
    return {"kd_step_seconds": steps, "kd_step_live_over_cached": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rows", type=int, default=600)
    parser.add_argument("--child", nargs=2)
    options = parser.parse_args()
    if options.child:
        kind, path = options.child
        if kind == "tokenizer":
            print(json.dumps({"seconds": tokenizer_alone(Path(path))}))
        else:
            seconds, mib = prepared(Path(path))
            print(json.dumps({"seconds": seconds, "mib": mib}))
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for size in (1, 2):
            write_rows(root / f"rows{size}", size * options.rows)
        measurements: dict[str, list[dict[str, float]]] = {"tokenizer": [], "prepare": [], "prepare twice as many": []}
        for repeat in range(options.repeats):
            for kind, values in measurements.items():
                values.append(child(kind.split()[0], root / ("rows2" if "twice" in kind else "rows1")))
                print(repeat, kind, values[-1], flush=True)
        kd = kd_against_cache(root, options.repeats)
    seconds = {
        kind: [round(measurement["seconds"], 3) for measurement in values] for kind, values in measurements.items()
    }
    memory = {
        kind: [round(measurement["mib"]) for measurement in values]
        for kind, values in measurements.items()
        if "mib" in values[0]
    }
    row = {
        "date": date.today().isoformat(),
        "command": f"python experiments/bench/data.py --repeats {options.repeats} --rows {options.rows}",
        "seconds": seconds,
        "share_of_tokenizer_speed": round(
            statistics.median(a / b for a, b in zip(seconds["tokenizer"], seconds["prepare"], strict=True)), 3
        ),
        "peak_mib": memory,
    } | kd
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row, indent=2))


if __name__ == "__main__":
    main()
