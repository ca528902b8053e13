"""Rebuild the shipped mini models: eight stages of SFT, a measurement, and a copy into the package.

    python experiments/mini_models/build.py [--root runs] [--items 500]     # make mini-models

Each stage is one run of the program (conf/experiment/mini/) that starts from the export of the one before and ends once
it has reached its accuracy. The student is the model after stage 7; stage 8 trains it on longer contexts into the
teacher. An interrupted stage continues, and a finished one is not repeated. Nothing is installed unless both models
meet the requirements of the comparison of methods.
"""

import argparse
import json
import shutil
import subprocess
import sys
from contextlib import closing, suppress
from datetime import date
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

import longctx_rl.shipped_models
from longctx_rl.config import load as configuration
from longctx_rl.config.eval import SuiteConfig
from longctx_rl.config.schema import UntilConfig
from longctx_rl.data.prompts import closed_book
from longctx_rl.evals.evaluation import answer
from longctx_rl.evals.items import Item
from longctx_rl.evals.records import ItemRecord
from longctx_rl.evals.suites import Plan, items_of
from longctx_rl.evals.summary import cells
from longctx_rl.policy.attention import dispatch
from longctx_rl.rewards.execution import CodeGrader, ExactGrader
from longctx_rl.rollout.hf import HFSampler
from longctx_rl.runs.metrics import read_metrics
from longctx_rl.sandbox import probe
from longctx_rl.types import UNANSWERABLE

HERE = Path(__file__).parent
SHIPPED = Path(longctx_rl.shipped_models.__file__).parent
RESULTS = HERE / "results.jsonl"
COURSE = HERE / "stages.jsonl"
STAGES = ("copy", "lookup", "pairs", "short", "code", "drill", "student", "teacher")
TASKS = ("multihop", "grounding", "longform")
SHORT, LONG = 256, 1024
LENGTHS = (SHORT, 512, LONG)
CODE = ("closed", "short", "pad", "bury", "hard")
REASONING = ("original", "expanded", "context")
FAR = (768, LONG)
"""Prompt lengths of code and multiple choice, in tokens."""
TOKENS = 96
"""Maximum tokens of an answer."""
FIRST = 1000
"""First held-out family; the accuracy that ends the last two stages is measured on other families (eval.first)."""


def train(stage: str, before: str | None, root: Path, overrides: list[str]) -> None:
    """Run or continue a stage."""
    command = [sys.executable, "-m", "longctx_rl", "+algo=sft", f"+experiment=mini/{stage}", f"runs_root={root}"]
    if before:
        command.append(f"model.student={root}/mini-models/{before}/export")
    with subprocess.Popen([*command, "resume=true", *overrides]) as run:
        while (status := run.poll()) is None:
            with suppress(KeyboardInterrupt):  # the run receives it too, saves and stops
                run.wait()
    if status:  # the run has printed the reason and how to continue
        raise SystemExit(status)
    check_gate(root / "mini-models" / stage)


def gate(run: Path) -> tuple[UntilConfig, float]:
    """The accuracy that ends a stage, and the one that it reached."""
    until = configuration.read(run / "config.yaml").budget.until
    assert until is not None
    return until, [row[until.metric] for row in read_metrics(run / "metrics.jsonl") if until.metric in row][-1]


def course(run: Path) -> dict[str, Any]:
    """The costs of a stage, and the commit that it started with."""
    until, reached = gate(run)
    last = [row for row in read_metrics(run / "metrics.jsonl") if "loss/total" in row][-1]
    environment = json.loads((run / "environment.json").read_text())
    return {
        "stage": run.name,
        "commit": (environment["git"] or {}).get("commit", "")[:10],
        "seed": configuration.read(run / "config.yaml").seed,
        "steps": last["step"],
        "seconds": round(last["progress/wall_seconds"]),
        "trained_tokens": last["progress/trained_tokens"],
        "metric": until.metric,
        "reached": round(reached, 4),
    }


def check_gate(run: Path) -> None:
    """Stop after a stage, other than the teacher's, that spent its steps without reaching its accuracy."""
    until, reached = gate(run)
    if reached < until.at_least and run.name != STAGES[-1]:
        raise SystemExit(
            f"{run} ended at {until.metric}={reached:.3f}, below {until.at_least}: some seeds stall, so try another, "
            'make mini-models ARGS="--root runs/again seed=1"'
        )


def plan(labels: tuple[str, ...], lengths: tuple[int, ...], items: int) -> Plan:
    """The items that models are evaluated on."""
    return Plan(SuiteConfig(labels=labels, lengths=lengths, max_new_tokens=TOKENS), items, FIRST)


def measure(name: str, directory: Path, items: int) -> list[dict[str, Any]]:
    """Evaluate a model: its accuracy in each cell, with and without the document."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory).eval()
    dispatch.install(model)
    sampler = HFSampler(tokenizer, temperature=0.0, max_new_tokens=TOKENS, batch_tokens=65536)

    rows = []
    benchmarks = {
        ("heldout", "open"): items_of("heldout", plan(TASKS, LENGTHS, items), tokenizer),
        ("heldout", "closed"): without_document(tokenizer, items),
        ("code", "open"): items_of("code", plan(CODE, FAR, items), tokenizer),
        ("longreason", "open"): items_of("longreason", plan(REASONING, FAR, items), tokenizer),
    }
    with closing(CodeGrader(probe.choose("auto"))) as code:
        for (suite, book), questions in benchmarks.items():
            records: list[ItemRecord] = answer(model, sampler, tokenizer, questions, ExactGrader(code), step=0)
            for cell in cells(records):
                score = {key: round(getattr(cell.score, key), 4) for key in ("value", "low", "high")}
                row = {"model": name, "suite": suite, "book": book, "task": cell.task, "length": cell.length}
                rows.append(row | {"n": cell.n} | score)
                print(json.dumps(rows[-1]), flush=True)
    return rows


def without_document(tokenizer: PreTrainedTokenizerBase, items: int) -> list[Item]:
    """``items`` questions of each task without their document, excluding those whose answer is "unknown"."""
    chosen = []
    for task in TASKS:
        questions = items_of("heldout", plan((task,), (SHORT,), 2 * items), tokenizer)
        known = [item for item in questions if item.example.answer != UNANSWERABLE]
        chosen += [Item(item.label, closed_book(item.example)) for item in known[:items]]
    return chosen


def shortcomings(rows: list[dict[str, Any]]) -> list[str]:
    """Unmet requirements: the student must be good at short prompts and worse at long ones, the teacher good at all."""
    score = {(row["model"], row["book"], row["task"], row["length"]): row["value"] for row in rows}
    unmet = []
    for task in TASKS:
        short, long = score["mini-student", "open", task, SHORT], score["mini-student", "open", task, LONG]
        needs = {
            f"student >= 0.70 at {SHORT}": short >= 0.70,
            f"student >= 0.25 lower at {LONG}": short - long >= 0.25,
            f"teacher >= 0.90 at {SHORT}": score["mini-teacher", "open", task, SHORT] >= 0.90,
            f"teacher >= 0.80 at {LONG}": score["mini-teacher", "open", task, LONG] >= 0.80,
            "student <= 0.05 without the document": score["mini-student", "closed", task, SHORT] <= 0.05,
            "teacher <= 0.05 without the document": score["mini-teacher", "closed", task, SHORT] <= 0.05,
        }
        unmet += [f"{task}: {need}" for need, met in needs.items() if not met]
    student, teacher = (
        {(task, length): score[name, "open", task, length] for task, length in code_cells()}
        for name in ("mini-student", "mini-teacher")
    )
    choice = {name: score[name, "open", "context", LONG] for name in ("mini-student", "mini-teacher")}
    needs = {
        "student >= 0.60 of the facts alone": score["mini-student", "open", "original", 0] >= 0.60,
        f"student >= 0.15 lower among others at {LONG}": (
            score["mini-student", "open", "original", 0] - choice["mini-student"] >= 0.15
        ),
        f"teacher >= 0.15 above the student at {LONG}": choice["mini-teacher"] - choice["mini-student"] >= 0.15,
    }
    unmet += [f"multiple choice: {need}" for need, met in needs.items() if not met]
    needs = {
        "student >= 0.50 short": student["short", 0] >= 0.50,
        f"student >= 0.25 lower buried at {LONG}": student["short", 0] - student["bury", LONG] >= 0.25,
        "student <= 0.05 without the definitions": student["closed", 0] <= 0.05,
        "teacher >= 0.80 short": teacher["short", 0] >= 0.80,
        f"teacher >= 0.60 buried at {LONG}": teacher["bury", LONG] >= 0.60,
        "teacher <= 0.05 without the definitions": teacher["closed", 0] <= 0.05,
    }
    return unmet + [f"code: {need}" for need, met in needs.items() if not met]


def code_cells() -> list[tuple[str, int]]:
    """Labels and lengths of code; 0 for prompts of natural length."""
    return list(plan(CODE, FAR, 1).cells())


def card(name: str, rows: list[dict[str, Any]]) -> str:
    """The model card with numbers from the results."""
    model_rows = [row for row in rows if row["model"] == name]
    score = {(row["suite"], row["book"], row["task"], row["length"]): row for row in model_rows}

    def percent(*cell: Any) -> str:
        row = score.get(cell)
        return f"{100 * row['value']:.1f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]" if row else "-"

    lines = [
        "| task | " + " | ".join(f"{length} tokens" for length in LENGTHS) + f" | no document ({SHORT}) |",
        "|---" * (len(LENGTHS) + 2) + "|",
    ]
    for task in TASKS:
        percentages = [percent("heldout", "open", task, length) for length in LENGTHS]
        lines.append(f"| {task} | " + " | ".join([*percentages, percent("heldout", "closed", task, SHORT)]) + " |")
    lines += ["", "| suite | items | natural length | " + " | ".join(f"{n} tokens" for n in FAR) + " |"]
    lines += ["|---" * (len(FAR) + 3) + "|"]
    for suite, labels in (("code", CODE), ("longreason", REASONING)):
        for label in labels:
            percentages = [percent(suite, "open", label, length) for length in (0, *FAR)]
            lines.append(f"| {suite} | {label} | " + " | ".join(percentages) + " |")
    data = {
        "mini-student": "short documents only (stages 1 to 7 of its training)",
        "mini-teacher": "the same data as mini-student, then documents of up to 1,024 tokens (stage 8)",
    }[name]
    return (
        (HERE / "card.md")
        .read_text()
        .format(name=name, data=data, table="\n".join(lines), items=model_rows[0]["n"], date=model_rows[0]["date"])
    )


def install(name: str, export: Path, text: str) -> None:
    """Copy a model and its card into the package."""
    for file in ("config.json", "generation_config.json", "model.safetensors"):
        shutil.copyfile(export / file, SHIPPED / name / file)
    (SHIPPED / name / "README.md").write_text(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="runs", type=Path, help="folder of the runs")
    parser.add_argument("--items", default=500, type=int, help="held-out items per task and length")
    parser.add_argument("overrides", nargs="*", help="settings for all stages, such as engine.threads=2")
    arguments = parser.parse_args()
    for before, stage in zip((None, *STAGES), STAGES, strict=False):
        train(stage, before, arguments.root, arguments.overrides)
    exports = {f"mini-{stage}": arguments.root / "mini-models" / stage / "export" for stage in STAGES[-2:]}
    rows = [row for name, export in exports.items() for row in measure(name, export, arguments.items)]
    if unmet := shortcomings(rows):
        raise SystemExit("not installed, because these requirements are not met:\n  " + "\n  ".join(unmet))
    rows = [{"date": date.today().isoformat(), **row} for row in rows]
    stages = [course(arguments.root / "mini-models" / stage) for stage in STAGES]
    for file, content in ((RESULTS, rows), (COURSE, stages)):
        file.write_text("".join(json.dumps(row) + "\n" for row in content))
    for name, export in exports.items():
        install(name, export, card(name, rows))
        print(f"installed {SHIPPED / name}")


if __name__ == "__main__":
    main()
