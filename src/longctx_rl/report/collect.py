"""``collect``: from run directories to an experiment's committed results.

Results of the runs that are there are added or replaced. A committed result whose run no longer exists stays.
"""

import shlex
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import longctx_rl
from longctx_rl.config import convert
from longctx_rl.config.checks import SHIPPED
from longctx_rl.evals.records import ItemRecord
from longctx_rl.policy.weights import weights_hash
from longctx_rl.report import results
from longctx_rl.report.experiment import Experiment, check_cells
from longctx_rl.report.results import Cell, CellScores, Result
from longctx_rl.report.runs import EvaluationFolder, Run, find_evaluations, find_runs, read_evals, run_directories
from longctx_rl.report.study import BASE, base_of
from longctx_rl.runs.metrics import Row

POINTS = 60
"""Maximum number of points of a committed curve; each is the mean over as many training steps as that requires."""
DIGITS = 6
"""Significant digits of committed numbers."""
PLACES = ("run_dir", "runs_root")
"""Keys that say where on this machine a run is stored."""
CURVES = (
    "loss/total",
    "rollout/reward_mean",
    "rollout/reward_std",
    "rollout/zero_std_groups",
    "rollout/length_mean",
    "rollout/truncated_frac",
    "policy/entropy",
    "policy/sampler_mismatch",
    "teacher/kl_reverse",
    "teacher/kl_forward",
    "teacher/agree_top1",
    "grad/norm",
    "grad/pg_kd_cosine",
    "perf/step_seconds",
    "perf/peak_gib",
    "time/rollout",
    "time/teacher",
    "time/policy",
    "time/backward",
)


def collect(experiment: Experiment, runs_root: Path) -> str:
    """Write the results of all finished runs under ``runs_root/<experiment>``; return a summary in lines.

    Raises:
        ValueError: there is nothing to collect, or the runs do not fit together. Nothing is written then.
    """
    folder = runs_root / experiment.name
    evaluations = find_evaluations(folder)
    if not evaluations and not _has_runs(folder):
        raise ValueError(f"no runs under {folder}: set runs_root=FOLDER to the folder above it, or train the runs")
    runs = find_runs(folder) if _has_runs(folder) else []
    finished = [run for run in runs if run.finished]
    fresh = [of_run(run) for run in finished] + [of_evaluation(evaluation) for evaluation in evaluations]
    committed = [results.read(path) for path in results.files(experiment.results)]
    names = {result.name for result in fresh}
    kept = [result for result in committed if result.name not in names]
    problems = _same_names(fresh) + check_cells(experiment, [*kept, *fresh])
    if problems:
        raise ValueError(f"{problems[0]}{f' (and {len(problems) - 1} similar problems)' if problems[1:] else ''}")
    for result in fresh:
        results.write(experiment.results, result)
    lines = [f"{len(fresh)} results written to {experiment.results}, {len(kept)} kept unchanged"]
    lines += [f"skipped: {run.path} is not finished, continue it with resume=true" for run in runs if not run.finished]
    lines += [f"marked: {problem}" for result in fresh for problem in result.problems]
    lines += _without_base([*kept, *fresh], folder)
    return "\n".join(lines)


def of_run(run: Run) -> Result:
    """The result of a run."""
    evals = read_evals(run.path)
    broken = [problem for _, unread in evals.values() for problem in unread]
    cells = cells_of({suite: records for suite, (records, _) in evals.items()})
    steps = {step for cell in cells.values() for step in cell.scores}
    problems = [*run.problems, *broken] + ([] if cells else [f"{run.path} contains no evaluation"])
    return Result(
        name=run.name,
        algo=run.algo,
        seed=run.seed,
        config={key: movable(run, value) for key, value in convert.flat(run.config) if key not in PLACES},
        origin=origin(run),
        problems=tuple(problem.replace(f"{run.path}/", "").replace(str(run.path), run.name) for problem in problems),
        before=before(run.metrics),
        costs=costs_at(run.metrics, steps),
        curves=curves_of(run.metrics),
        cells=cells,
    )


def of_evaluation(folder: EvaluationFolder) -> Result:
    """The result of fixed weights, named after their folder."""
    evals = read_evals(folder.path)
    problems = tuple(problem.replace(f"{folder.path}/", "") for _, unread in evals.values() for problem in unread)
    cells = cells_of({suite: records for suite, (records, _) in evals.items()})
    problems += tuple(unanswered(folder, cells))
    return Result(
        name=folder.name, algo=folder.name, seed=None, origin=folder.described, problems=problems, cells=cells
    )


def unanswered(folder: EvaluationFolder, cells: Mapping[Cell, CellScores]) -> Iterator[str]:
    """Items of an evaluation that have no answer yet, one sentence for each task and length."""
    for suite, planned in (folder.described.get("asked") or {}).items():
        for task, length, count in planned:
            cell = cells.get((suite, task, length))
            answered = len(cell.scores.get(0, {})) if cell else 0
            if answered < count:
                yield f"{folder.name} has {answered} of {count} families of {suite} {task} {length}: evaluate it again"


def movable(run: Run, value: Any) -> Any:
    """A value of a run's configuration with the default runs/ in place of the run's own runs_root."""
    root = str(run.config.get("runs_root", ""))
    return value.replace(f"{root}/", "runs/") if isinstance(value, str) and len(root) > 1 else value


def command(run: Run) -> str | None:
    """The command that makes the run, without the keys that say where on a machine it is stored."""
    typed = run.environment.get("command")
    if typed is None:
        return None
    kept = [word for word in shlex.split(str(typed)) if word.partition("=")[0] not in PLACES]
    return str(movable(run, shlex.join(kept)))


def cells_of(evals: dict[str, list[ItemRecord]]) -> dict[Cell, CellScores]:
    """Scores by suite, task and length. An item with two answers at a step counts with the last one."""
    items: dict[Cell, dict[int, dict[str, ItemRecord]]] = defaultdict(lambda: defaultdict(dict))
    for suite, records in evals.items():
        for record in records:
            items[suite, record.task, record.length][record.step][record.id] = record
    return {
        cell: CellScores(
            scores={step: _family_means(answers.values()) for step, answers in steps.items()},
            cut={
                step: rounded(fmean(answer.truncated for answer in answers.values())) for step, answers in steps.items()
            },
        )
        for cell, steps in items.items()
    }


def costs_at(rows: Sequence[Row], steps: Iterable[int]) -> dict[int, dict[str, float]]:
    """The ``progress/`` metrics of each evaluated step, where they were recorded; all are 0 at step 0."""
    spent: dict[int, dict[str, float]] = {}
    for row in rows:
        if "progress/trained_tokens" in row:
            names = (name for name in row if name.startswith("progress/"))
            spent[int(row["step"] or 0)] = {
                name.removeprefix("progress/"): rounded(value) for name in names if (value := row[name]) is not None
            }
    zero = dict.fromkeys(next(iter(spent.values()), {}), 0.0)
    return {step: spent.get(step, zero) for step in sorted(steps) if step in spent or step == 0}


def before(rows: Sequence[Row]) -> dict[str, float]:
    """The ``view/`` metrics of the rows before the first training step."""
    measured = (row for row in rows if not row["step"])
    return {
        name: rounded(value)
        for row in measured
        for name, value in row.items()
        if name.startswith("view/") and value is not None
    }


def curves_of(rows: Sequence[Row]) -> dict[str, list[float | None]]:
    """Training curves of at most ``POINTS`` points: the mean of a metric, the last value of steps and costs."""
    training = [row for row in rows if "progress/trained_tokens" in row]
    count = min(POINTS, len(training))
    edges = [round(index * len(training) / count) for index in range(count + 1)] if count else []
    bins = [training[start:end] for start, end in pairwise(edges)]
    costs = ["step", *sorted({name for row in training for name in row if name.startswith("progress/")})]
    curves: dict[str, list[float | None]] = {name: [_rounded(part[-1].get(name)) for part in bins] for name in costs}
    for name in CURVES:
        values = [[value for row in part if (value := row.get(name)) is not None] for part in bins]
        if any(values):
            curves[name] = [rounded(fmean(part)) if part else None for part in values]
    return curves


def origin(run: Run) -> dict[str, Any]:
    """The provenance of a run, without anything that names people or machines."""
    environment = run.environment
    host = environment.get("host") or {}
    return {
        "command": command(run),
        "started": environment.get("started"),
        "git": environment.get("git"),
        "longctx_rl": environment.get("longctx_rl"),
        "python": environment.get("python"),
        "packages": environment.get("packages"),
        "machine": {key: host.get(key) for key in ("cores", "memory_gib", "gpus")},
        "evaluation_seconds": rounded(sum(row.get("time/eval") or 0.0 for row in run.metrics)),
        "resumed": len(environment.get("resumed") or []),
        "models": environment.get("models"),
        **weights(run),
    }


def weights(run: Run) -> dict[str, str | None]:
    """Hashes of the student's and the teacher's weights: as the run recorded them, else of the files that exist now."""
    noted = run.environment.get("weights")
    if noted is not None:
        return {role: noted.get(role) for role in ("student", "teacher")}
    taught = run.config.get("algo", {}).get("weights", {}).get("kd")
    hashes: dict[str, str | None] = {}
    for role in ("student", "teacher") if taught else ("student",):
        name = str(run.config.get("model", {}).get(role))
        folder = shipped(name)
        hashes[role] = weights_hash(folder or Path(run.environment.get("directory") or ".", name))
    return hashes


def shipped(name: str) -> Path | None:
    """The folder of a shipped model; None for another name."""
    return Path(longctx_rl.__file__).parent / "shipped_models" / name if name in SHIPPED else None


def rounded(value: float) -> float:
    """A number rounded to ``DIGITS`` significant digits; whole numbers stay whole."""
    return float(f"{value:.{DIGITS}g}") if value != int(value) or abs(value) > 1e15 else int(value)


def _rounded(value: float | None) -> float | None:
    return None if value is None else rounded(value)


def _family_means(answers: Iterable[ItemRecord]) -> dict[str, float]:
    grouped: dict[str, list[float]] = defaultdict(list)
    for answer in answers:
        grouped[answer.family_id or answer.id].append(answer.score)
    return {family: rounded(fmean(scores)) for family, scores in grouped.items()}


def _without_base(collected: Sequence[Result], folder: Path) -> list[str]:
    """The command that evaluates the base model, if it has no result."""
    used = [
        (result.config.get("model.student"), result.config.get("eval.name"), result.config.get("eval.items"))
        for result in collected
        if result.trained and result.cells
    ]
    if base_of(collected) or not used:
        return []
    (student, suites, items), _ = Counter(used).most_common(1)[0]
    return [f"the base has no result, so there are no gains: {evaluate_command(student, folder / BASE, suites, items)}"]


def evaluate_command(model: Any, out: Path, suites: Any, items: Any) -> str:
    """The command that evaluates a model on the items of the runs' evaluations, and the step after it."""
    overrides = f"checkpoint={model} out={out} logging=wandb eval={suites} eval.items={items}"
    return f"python -m longctx_rl.evaluate {overrides}, then collect"


def _has_runs(folder: Path) -> bool:
    return any(run_directories(folder))


def _same_names(collected: Sequence[Result]) -> list[str]:
    names = [result.name for result in collected]
    twice = sorted({name for name in names if names.count(name) > 1})
    return [f"two run directories are named {name}: move one of them elsewhere" for name in twice]
