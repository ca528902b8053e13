"""The files of a built data set: rows, card, report and rejected questions."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from tqdm import tqdm

from longctx_rl.config.build import BuildConfig
from longctx_rl.data.building.pipeline import STAGES, Builder, balanced, rows_of, spent_on, without_repeats
from longctx_rl.data.reading import REQUIRED
from longctx_rl.files import replacing, write_text
from longctx_rl.rewards.endpoint import EndpointFailed, check_endpoint, check_prompt
from longctx_rl.rewards.replies import shortened

MILLION = 1e6
OTHER_PROMPTS = {
    "closed_book": ("question",),
    "supported": ("passages", "question", "answer"),
    "response": ("document", "question"),
}
"""The fields of each prompt but the writer's."""


def build(config: BuildConfig) -> str:
    """Build the data set and return a summary for the terminal.

    Raises:
        ValueError: there is no usable document, the endpoint fails, or no question passes the checks.
        KeyboardInterrupt: the build was interrupted; replies so far are kept.
    """
    check_build(config)
    out = Path(config.out).expanduser()
    out.mkdir(parents=True, exist_ok=True)
    builder = Builder(config)
    rows, rejected = [], []
    stages: Counter[str] = Counter()
    spent: Counter[str] = Counter()
    without: Counter[str] = Counter()
    total = len(builder.plan())
    for outcome in tqdm(rows_of(builder), desc="questions", total=total, unit="", disable=None):
        stages += outcome.stages
        spent += outcome.spent
        rejected += outcome.rejected
        if outcome.row is not None:
            rows.append(outcome.row)
    written = rows
    rows = without_repeats(written)
    stages["not repeated"] = len(rows)
    rejected += _dropped(written, rows, "the question repeats another question")
    unbalanced = rows
    rows = balanced(unbalanced, config.seed) if config.balance else unbalanced
    stages["balanced"] = len(rows)
    rejected += _dropped(unbalanced, rows, "too many questions of its task and length")
    if config.responder is not None and builder.responder is not None:
        name = f"response_{config.responder.model.rpartition('/')[2]}"
        try:
            answered = builder.responder.each(builder.respond, rows)
        except EndpointFailed as error:
            raise ValueError(f"{error}. All replies so far are kept: the same command resumes from there") from error
        for row, (reply, problem) in zip(rows, answered, strict=True):
            row[name] = None if problem else reply.text
            spent += spent_on(reply)
            without[problem] += bool(problem)
    report = {
        "documents": len(builder.documents),
        "left_out": builder.left_out,
        "asked_for": total,
        "stages": {stage: stages[stage] for stage in STAGES},
        "rejected": dict(Counter(record["reason"] for record in rejected).most_common()),
        "spent": dict(spent),
        "dollars": round(
            (spent["prompt_tokens"] * config.price_in + spent["completion_tokens"] * config.price_out) / MILLION, 4
        ),
        "rows": dict(Counter(row["task"] for row in rows)),
        "without_response": dict(+without),
    }
    write_text(out / "rejected.ndjson", "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in rejected))
    write_text(out / "report.json", json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    if not rows:
        reasons = ", ".join(
            f"{count} {why}" for why, count in Counter(record["reason"] for record in rejected).most_common()
        )
        first = shortened(rejected[0]["reply"]) if rejected else ""
        raise ValueError(
            f"no question passed the checks ({reasons}; the first reply was {first!r}): see {out / 'rejected.ndjson'}"
        )
    _write_rows(out / "data.parquet", rows)
    write_text(out / "README.md", card(config, report, rows))
    return summary(report, out)


def check_build(config: BuildConfig) -> None:
    """Raise ValueError for the first setting that cannot be used."""
    for task, count in config.tasks.items():
        if task not in config.prompts.question:
            raise ValueError(f"tasks.{task} has no prompt: add prompts.question.{task}, or remove the task")
        if count < 0:
            raise ValueError(f"tasks.{task}={count}: set it to 0 or more")
    for name, least in (("passages", 1), ("passage_characters", 100), ("attempts", 1), ("minimum_characters", 1)):
        if getattr(config, name) < least:
            raise ValueError(f"{name}={getattr(config, name)}: set it to {least} or more")
    if not 0 <= config.minimum_distance < 1:
        raise ValueError(f"minimum_distance={config.minimum_distance}: set it from 0 to below 1")
    for key, endpoint in (("writer", config.writer), ("responder", config.responder)):
        if endpoint is not None:
            check_endpoint(endpoint, key)
    for task, prompt in config.prompts.question.items():
        check_prompt(prompt, ("language", "passages"), f"prompts.question.{task}")
    for name, fields in OTHER_PROMPTS.items():
        check_prompt(getattr(config.prompts, name), fields, f"prompts.{name}")


def _dropped(before: list[dict[str, Any]], after: list[dict[str, Any]], reason: str) -> list[dict[str, str]]:
    kept = {row["id"] for row in after}
    return [
        {"document": row["family_id"], "task": row["task"], "reason": reason, "reply": row["question"]}
        for row in before
        if row["id"] not in kept
    ]


def _write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    columns = [*REQUIRED, *sorted({name for row in rows for name in row} - set(REQUIRED))]
    schema = pyarrow.schema([(name, pyarrow.string()) for name in columns])
    table = pyarrow.Table.from_pylist([{name: row.get(name) for name in columns} for row in rows], schema=schema)
    with replacing(path) as temporary:
        pyarrow.parquet.write_table(table, temporary, row_group_size=64)


def card(config: BuildConfig, report: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """Return the data-set card, in the format of the Hugging Face Hub."""
    languages = sorted({row["language"] for row in rows if len(row["language"]) == 2})
    listed = "".join(f"\n- {code}" for code in languages) or " []"
    stages = "\n".join(f"| {stage} | {count} |" for stage, count in report["stages"].items())
    tasks = "\n".join(f"| {task} | {count} |" for task, count in sorted(report["rows"].items()))
    return f"""---
language:{listed}
task_categories:
- question-answering
configs:
- config_name: default
  data_files: data.parquet
---
# Long-context questions about {config.source}

{len(rows)} questions about {len({row["family_id"] for row in rows})} documents, in the columns of LongBlocks plus
`task`, `evidence` (JSON: quotes and their depth in the document) and `family_id`. {config.writer.model} wrote the
questions, tried to answer them without the document, and judged whether the answers are supported.

| task | questions |
|---|---|
{tasks}

| stage | replies that passed |
|---|---|
{stages}

Train on it: `python -m longctx_rl +algo=dgrpo data=longblocks data.longblocks.path=<this folder>/data.parquet`. The
licence is that of the documents.
"""


def summary(report: dict[str, Any], out: Path) -> str:
    """Return a summary of the report for the terminal."""
    lines = [f"{report['documents']} documents, {report['asked_for']} questions requested"]
    lines += [f"  {stage:<34}{count:>7,}" for stage, count in report["stages"].items()]
    if report["rejected"]:
        lines += ["rejected", *(f"  {why:<60}{count:>7,}" for why, count in report["rejected"].items())]
    lines += [f"{count:,} rows without a response: {why}" for why, count in report["without_response"].items()]
    if report["left_out"]:
        lines.append(f"{len(report['left_out'])} files skipped, see {out / 'report.json'}")
    spent = report["spent"]
    lines.append(
        f"{spent.get('asked', 0):,} requests, {spent.get('replies', 0) - spent.get('asked', 0):,} replies from cache, "
        f"{spent.get('prompt_tokens', 0):,} + {spent.get('completion_tokens', 0):,} tokens, ${report['dollars']}"
    )
    return "\n".join([*lines, f"{sum(report['rows'].values())} rows in {out / 'data.parquet'}"])
