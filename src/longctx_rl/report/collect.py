"""``collect``: from run directories to an experiment's committed results.

Adds and replaces what it finds. A committed result whose run is gone stays.
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
from longctx_rl.policy.weights import fingerprint
from longctx_rl.report import results
from longctx_rl.report.experiment import Experiment, check_cells
from longctx_rl.report.results import Cell, CellScores, Result
from longctx_rl.report.runs import EvaluationFolder, Run, find_asked, find_runs, read_evals, run_directories
from longctx_rl.report.study import BASE, base_of
from longctx_rl.runs.metrics import Row

POINTS = 60
"""Points of a committed curve: each the mean of as many training steps as it takes."""
DIGITS = 6
"""Significant digits of what is committed."""
PLACES = ("run_dir", "runs_root")
"""Keys that say where on this machine a run lies."""
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
    """Write the results of all finished runs under ``runs_root/<experiment>``; say what was done.

    Raises:
        ValueError: nothing to collect, or runs that cannot stand beside each other. Nothing is written then.
    """
    folder = runs_root / experiment.name
    asked = find_asked(folder)
    if not asked and not _has_runs(folder):
        raise ValueError(f"no runs under {folder}: name the folder above it, runs_root=FOLDER, or train them")
    runs = find_runs(folder) if _has_runs(folder) else []
    finished = [run for run in runs if run.finished]
    found = [of_run(run) for run in finished] + [of_evaluation(one) for one in asked]
    committed = [results.read(path) for path in results.files(experiment.results)]
    fresh = {result.name for result in found}
    kept = [result for result in committed if result.name not in fresh]
    problems = _same_names(found) + check_cells(experiment, [*kept, *found])
    if problems:
        raise ValueError(f"{problems[0]}{f' ({len(problems) - 1} more like it)' if problems[1:] else ''}")
    for result in found:
        results.write(experiment.results, result)
    lines = [f"{len(found)} results written to {experiment.results}, {len(kept)} kept as they were"]
    lines += [f"skipped: {run.path} is not finished, continue it with resume=true" for run in runs if not run.finished]
    lines += [f"marked: {problem}" for result in found for problem in result.problems]
    lines += _without_base([*kept, *found], folder)
    return "\n".join(lines)


def of_run(run: Run) -> Result:
    """What is kept of a run."""
    evals = read_evals(run.path)
    broken = [problem for _, unread in evals.values() for problem in unread]
    cells = cells_of({suite: found for suite, (found, _) in evals.items()})
    steps = {step for cell in cells.values() for step in cell.scores}
    problems = [*run.problems, *broken] + ([] if cells else [f"{run.path} holds no evaluation"])
    return Result(
        name=run.name,
        algo=run.algo,
        seed=run.seed,
        config={key: movable(run, value) for key, value in convert.flat(run.config) if key not in PLACES},
        origin=origin(run),
        problems=tuple(problem.replace(f"{run.path}/", "").replace(str(run.path), run.name) for problem in problems),
        costs=costs_at(run.metrics, steps),
        curves=curves_of(run.metrics),
        cells=cells,
    )


def of_evaluation(asked: EvaluationFolder) -> Result:
    """What is kept of fixed weights: a row named as their folder."""
    evals = read_evals(asked.path)
    problems = tuple(problem.replace(f"{asked.path}/", "") for _, unread in evals.values() for problem in unread)
    cells = cells_of({suite: found for suite, (found, _) in evals.items()})
    problems += tuple(unanswered(asked, cells))
    return Result(name=asked.name, algo=asked.name, seed=None, origin=asked.described, problems=problems, cells=cells)


def unanswered(asked: EvaluationFolder, cells: Mapping[Cell, CellScores]) -> Iterator[str]:
    """What a folder was asked and has not answered, one sentence for each task and length."""
    for suite, wanted in (asked.described.get("asked") or {}).items():
        for task, length, count in wanted:
            cell = cells.get((suite, task, length))
            answered = len(cell.scores.get(0, {})) if cell else 0
            if answered < count:
                yield f"{asked.name} has {answered} of {count} families of {suite} {task} {length}: evaluate it again"


def movable(run: Run, value: Any) -> Any:
    """Text of a run with its runs' folder as if that were the default one, wherever on a machine it lies."""
    root = str(run.config.get("runs_root", ""))
    return value.replace(f"{root}/", "runs/") if isinstance(value, str) and len(root) > 1 else value


def command(run: Run) -> str | None:
    """What a person would type to make the run, without where on their machine it was put."""
    typed = run.environment.get("command")
    if typed is None:
        return None
    kept = [word for word in shlex.split(str(typed)) if word.partition("=")[0] not in PLACES]
    return str(movable(run, shlex.join(kept)))


def cells_of(evals: dict[str, list[ItemRecord]]) -> dict[Cell, CellScores]:
    """Scores by suite, task and length. An item that was answered twice at a step counts with its last answer."""
    items: dict[Cell, dict[int, dict[str, ItemRecord]]] = defaultdict(lambda: defaultdict(dict))
    for suite, records in evals.items():
        for record in records:
            items[suite, record.task, record.length][record.step][record.id] = record
    return {
        cell: CellScores(
            scores={step: _family_means(answers.values()) for step, answers in steps.items()},
            cut={step: rounded(fmean(one.truncated for one in answers.values())) for step, answers in steps.items()},
        )
        for cell, steps in items.items()
    }


def costs_at(rows: Sequence[Row], steps: Iterable[int]) -> dict[int, dict[str, float]]:
    """The ``progress/`` metrics of each evaluated step that was recorded; nothing is spent at step 0."""
    spent: dict[int, dict[str, float]] = {}
    for row in rows:
        if "progress/trained_tokens" in row:
            names = (name for name in row if name.startswith("progress/"))
            spent[int(row["step"] or 0)] = {
                name.removeprefix("progress/"): rounded(value) for name in names if (value := row[name]) is not None
            }
    zero = dict.fromkeys(next(iter(spent.values()), {}), 0.0)
    return {step: spent.get(step, zero) for step in sorted(steps) if step in spent or step == 0}


def curves_of(rows: Sequence[Row]) -> dict[str, list[float | None]]:
    """Training curves of at most ``POINTS`` points: means of metrics, the last value of steps and costs."""
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
    """Where a run came from, without what names people or machines."""
    environment = run.environment
    host = environment.get("host", {})
    return {
        "command": command(run),
        "started": environment.get("started"),
        "git": environment.get("git"),
        "longctx_rl": environment.get("longctx_rl"),
        "python": environment.get("python"),
        "packages": environment.get("packages"),
        "machine": {key: host.get(key) for key in ("cores", "memory_gib", "gpus")},
        "evaluation_seconds": rounded(sum(row.get("time/eval") or 0.0 for row in run.metrics)),
        "resumed": len(environment.get("resumed", [])),
        "models": environment.get("models"),
        **weights(run),
    }


def weights(run: Run) -> dict[str, str | None]:
    """Hashes of the run's student and teacher as it noted them; else of those that are here now, if they are files."""
    noted = run.environment.get("weights")
    if noted is not None:
        return {role: noted.get(role) for role in ("student", "teacher")}
    taught = run.config.get("algo", {}).get("weights", {}).get("kd")
    found: dict[str, str | None] = {}
    for role in ("student", "teacher") if taught else ("student",):
        name = str(run.config.get("model", {}).get(role))
        folder = shipped(name)
        found[role] = fingerprint(folder or Path(run.environment.get("directory", "."), name))
    return found


def shipped(name: str) -> Path | None:
    """The folder of a shipped model."""
    return Path(longctx_rl.__file__).parent / "shipped_models" / name if name in SHIPPED else None


def rounded(value: float) -> float:
    """A number with the digits that are committed; whole numbers stay whole."""
    return float(f"{value:.{DIGITS}g}") if value != int(value) or abs(value) > 1e15 else int(value)


def _rounded(value: float | None) -> float | None:
    return None if value is None else rounded(value)


def _family_means(answers: Iterable[ItemRecord]) -> dict[str, float]:
    grouped: dict[str, list[float]] = defaultdict(list)
    for answer in answers:
        grouped[answer.family_id or answer.id].append(answer.score)
    return {family: rounded(fmean(scores)) for family, scores in grouped.items()}


def _without_base(found: Sequence[Result], folder: Path) -> list[str]:
    """How to ask the model before training, if nobody has."""
    asked = [
        (result.config.get("model.student"), result.config.get("eval.name"), result.config.get("eval.items"))
        for result in found
        if result.trained and result.cells
    ]
    if base_of(found) or not asked:
        return []
    (student, suites, items), _ = Counter(asked).most_common(1)[0]
    return [f"no base, so no gains: {asking(student, folder / BASE, suites, items)}"]


def asking(model: Any, out: Path, suites: Any, items: Any) -> str:
    """How to ask a model that no run trains what the runs were asked."""
    asked = f"checkpoint={model} out={out} logging=wandb eval={suites} eval.items={items}"
    return f"python -m longctx_rl.evaluate {asked}, then collect"


def _has_runs(folder: Path) -> bool:
    return any(run_directories(folder))


def _same_names(found: Sequence[Result]) -> list[str]:
    names = [result.name for result in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    return [f"two directories are named {name}: move one of them elsewhere" for name in twice]
