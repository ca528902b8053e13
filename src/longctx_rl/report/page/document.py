"""From run directories to a single HTML file."""

import json
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import longctx_rl
from longctx_rl.files import write_text
from longctx_rl.report.page import series, table, texts
from longctx_rl.report.page.arms import Arm, Settings, arms_of, duplicates, settings_of
from longctx_rl.report.page.starts import Fixed, labels, starts_of
from longctx_rl.report.runs import Run, find_evaluations, find_runs, read_evals
from longctx_rl.report.study import BASE
from longctx_rl.stats import t_quantile

SCRIPTS = ("page.js", "results.js", "curves.js", "maps.js", "answers.js", "rollouts.js", "runs.js", "start.js")
"""In the order in which they run, within one function."""
MOST_RUNS = 64
"""The page has t quantiles for arms of up to this many runs, and uses the last one above it."""


def write(root: Path, out: Path) -> str:
    """Write the page of all runs under ``root``, and return a summary of it in lines.

    Raises:
        ValueError: there are no runs, or plotly is not installed.
    """
    runs = find_runs(root)
    embedded = data_of(runs, root)
    text = filled(embedded, embedded["overview"]["title"])
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, text)
    marked = sum(bool(run["problems"]) for run in embedded["overview"]["runs"])
    lines = [f"{out}: {len(runs)} runs, {len(text.encode()) / 1e6:.1f} MB; open it in a browser"]
    lines += [f"marked: {marked} of them have problems, see the last section of the page"] if marked else []
    lines += [f"marked: {problem}" for problem in embedded["overview"]["unread"]]
    return "\n".join(lines)


def data_of(runs: Sequence[Run], root: Path) -> dict[str, Any]:
    """The data of the page by name; the page parses each part when it is first needed."""
    read = [read_evals(run.path) for run in runs]
    evals = [{suite: records for suite, (records, _) in suites.items()} for suites in read]
    folders = sorted(find_evaluations(root), key=lambda folder: folder.name != BASE)  # base goes first
    contents = [read_evals(folder.path) for folder in folders]
    fixed = [
        Fixed(
            _place(folder.path, root),
            folder.checkpoint,
            {suite: records for suite, (records, _) in suites.items()},
            folder.path,
        )
        for folder, suites in zip(folders, contents, strict=True)
    ]
    unread = [[problem for _, problems in suites.values() for problem in problems] for suites in read]
    settings = [settings_of(run.config) for run in runs]
    starts = starts_of(runs, settings, evals, fixed)
    arms = arms_of(runs, settings)
    repeated = {index: by for arm in arms for index, by in duplicates(arm, runs).items()}
    counted = [[index for index in arm.runs if index not in repeated] for arm in arms]
    ended = [[index for index in places if runs[index].finished] or places for places in counted]
    results = [table.result_of(run, own) for run, own in zip(runs, evals, strict=True)]
    curves = series.embedded(runs)
    overview = {
        "title": f"Runs of {root.name or root}",
        "version": longctx_rl.__version__,
        "t95": [rounded_t(runs_of_arm - 1) for runs_of_arm in range(2, MOST_RUNS + 1)],
        "arms": [_arm(arm, places) for arm, places in zip(arms, counted, strict=True)],
        "runs": [_run(run, index, arms, root, unread[index], repeated, runs) for index, run in enumerate(runs)],
        "table": table.table(arms, ended, results, runs, starts, fixed),
        "starts": list(labels(starts).values()),
        "unread": [problem for suites in contents for _, problems in suites.values() for problem in problems],
        "metrics": list(curves),
        "depths": table.DEPTHS,
    }
    return {
        "overview": overview,
        "maps": table.maps(ended, evals, starts),
        "config": _config(settings),
        "answers": texts.answers(evals, [start.evals for start in labels(starts)]),
        "rollouts": texts.rollouts(runs),
        **{f"metric-{place}": curve for place, curve in enumerate(curves.values())},
    }


def filled(embedded: dict[str, Any], title: str) -> str:
    """The template with style, scripts and data filled in."""
    parts = {
        "title": title.replace("&", "&amp;").replace("<", "&lt;"),
        "style": _file("page.css"),
        "library": plotly(),
        "scripts": "".join(_file(name) for name in SCRIPTS),
        "data": "\n".join(
            f'<script type="application/json" id="data-{name}">{as_json(value)}</script>'
            for name, value in embedded.items()
        ),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _file("page.html"))


def _file(name: str) -> str:
    return (resources.files("longctx_rl.report.page") / name).read_text(encoding="utf-8")


def as_json(value: Any) -> str:
    """JSON that cannot end the script element that contains it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def plotly() -> str:
    """Plotly's JavaScript. Raises ValueError if it is not installed."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ValueError("the page draws with plotly: pip install 'longctx-rl[report]'") from error
    return str(get_plotlyjs()).replace("</script", "<\\/script")


def rounded_t(freedom: int) -> float:
    """Two-sided 95 % quantile of Student's t, as the page stores it."""
    return round(t_quantile(0.975, freedom), 4)


def _arm(arm: Arm, counted: Sequence[int]) -> dict[str, Any]:
    return {"name": arm.name, "algo": arm.algo, "runs": list(arm.runs), "counted": list(counted)}


def _run(
    run: Run,
    index: int,
    arms: Sequence[Arm],
    root: Path,
    unread: Sequence[str],
    repeated: dict[int, int],
    runs: Sequence[Run],
) -> dict[str, Any]:
    problems = [*run.problems, *unread]
    if index in repeated:
        other = _place(runs[repeated[index]].path, root)
        problems.append(f"has the same arm and seed as {other}, which counts in its place: move one of them elsewhere")
    if not any(run.path.glob("evals/*.jsonl")):
        problems.append("contains no evaluation")
    short = [problem.replace(f"{run.path}/", "").replace(f"{run.path} ", "the run ") for problem in problems]
    git = run.environment.get("git") or {}
    return {
        "name": _place(run.path, root),
        "arm": next(place for place, arm in enumerate(arms) if index in arm.runs),
        "seed": run.seed,
        "finished": run.finished,
        "problems": short,
        "command": run.environment.get("command"),
        "commit": str(git.get("commit", ""))[:10] + (" + changes" if git.get("dirty") else ""),
        "axes": series.axes_of(run),
    }


def _config(settings: Sequence[Settings]) -> dict[str, Any]:
    """Keys, the distinct values of each, and the index of each run's value; -1 if the run does not have the key."""
    keys = sorted({key for run_settings in settings for key in run_settings})
    values, places = [], []
    for key in keys:
        different = sorted({run_settings[key] for run_settings in settings if key in run_settings})
        values.append(different)
        places.append([different.index(run_settings[key]) if key in run_settings else -1 for run_settings in settings])
    return {"keys": keys, "values": values, "places": places}


def _place(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path != root else path.name
