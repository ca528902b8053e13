"""``dashboard``: saves a wandb workspace and a report that compare an experiment's runs."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from longctx_rl.report import results
from longctx_rl.report.experiment import Experiment
from longctx_rl.report.results import Cell, Result
from longctx_rl.report.study import BASE, TEACHER

if TYPE_CHECKING:
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

AXES = {
    "progress/step": "steps",
    "progress/trained_tokens": "trained tokens",
    "progress/flops": "FLOPs",
    "progress/wall_seconds": "seconds",
}
CURVES = (
    "rollout/reward_mean",
    "policy/entropy",
    "teacher/kl_reverse",
    "grad/norm",
    "grad/pg_kd_cosine",
    "rollout/length_mean",
    "loss/total",
)
METHOD = "algo.name"


@dataclass(frozen=True, slots=True)
class Place:
    """Where the runs are on wandb."""

    entity: str
    project: str


def save(experiment: Experiment) -> str:
    """Save the workspace and the report, and return their addresses in lines.

    Raises:
        ValueError: there is no API key or no entity, the extra is not installed, or wandb rejects the request.
    """
    if not os.environ.get("WANDB_API_KEY"):
        raise ValueError(
            "set WANDB_API_KEY to a key from https://wandb.ai/authorize, and logging.entity or WANDB_ENTITY to a team "
            "or user; offline runs are uploaded first with: wandb sync runs/*/*/wandb/offline-run-*"
        )
    committed = results.read_all(experiment.results)
    place = place_of(committed)
    try:
        workspace, report = build_workspace(experiment, committed, place), build_report(experiment, committed, place)
        import wandb
    except ImportError as error:
        raise ValueError("the dashboard needs wandb-workspaces: pip install 'longctx-rl[dashboard]'") from error
    try:
        workspace.save()
        report.save()
    except (wandb.Error, OSError) as error:
        raise ValueError(
            f"wandb did not save the dashboard of {place.entity}/{place.project} ({error}): check WANDB_API_KEY and "
            "WANDB_ENTITY, then run the command again"
        ) from error
    return f"workspace: {workspace.url}\nreport: {report.url}"


def place_of(found: Sequence[Result]) -> Place:
    """The entity and the project that the runs were logged to. Raises ValueError if no entity is known."""
    logged = [result.config for result in found if result.trained]
    entities = [str(config["logging.entity"]) for config in logged if config.get("logging.entity")]
    entity = os.environ.get("WANDB_ENTITY") or next(iter(entities), None)
    if entity is None:
        raise ValueError(
            "no run records logging.entity: set WANDB_ENTITY to the team or user that owns the runs on wandb"
        )
    projects = [str(config["logging.project"]) for config in logged if config.get("logging.project")]
    return Place(entity, next(iter(projects), "longctx-rl"))


def build_workspace(experiment: Experiment, found: Sequence[Result], place: Place) -> "ws.Workspace":
    """The workspace: curves over each cost axis, accuracy by length, key importance, and differences between runs."""
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    keys = list(experiment.defaults) or [METHOD]
    accuracy = curves(accuracies(found), "progress/trained_tokens")
    sections = [
        ws.Section(
            name=f"Training over {words}", panels=curves(CURVES, axis), is_open=axis == "progress/trained_tokens"
        )
        for axis, words in AXES.items()
    ]
    sections += [
        ws.Section(name="Accuracy over trained tokens", panels=accuracy),
        ws.Section(name="Accuracy", panels=suite_panels(found), is_open=True),
        ws.Section(name="Accuracy by context length", panels=length_panels(found), is_open=True),
    ]
    if experiment.axes:
        sections.append(ws.Section(name="Importance of keys", panels=importance_panels(found)))
    sections.append(ws.Section(name="Differences between runs", panels=[wr.RunComparer(diff_only=True)]))
    return ws.Workspace(
        entity=place.entity,
        project=place.project,
        name=f"{experiment.name}: {'levels' if experiment.axes else 'methods'} compared",
        sections=sections,
        settings=ws.WorkspaceSettings(x_axis="progress/trained_tokens", max_runs=100, group_by_prefix="first"),
        runset_settings=ws.RunsetSettings(
            filters=ws.And(ws.Config("experiment_name") == experiment.name), groupby=[ws.Config(key) for key in keys]
        ),
    )


def build_report(experiment: Experiment, found: Sequence[Result], place: Place) -> "wr.Report":
    """The report: the same panels with text between them."""
    import wandb_workspaces.reports.v2 as wr

    def grid(
        panels: "list[wr.LinePlot | wr.BarPlot | wr.RunComparer | wr.ParameterImportancePlot]", axis: str | None = None
    ) -> "wr.PanelGrid":
        keys = varied(experiment, axis) if axis else list(experiment.defaults) or [METHOD]
        levels = f" and ({runs_of(experiment, axis)})" if axis else ""
        runset = wr.Runset(
            entity=place.entity,
            project=place.project,
            name=f"{experiment.name} {axis or ''}".strip(),
            filters=f"Config('experiment_name') = {experiment.name!r}{levels}",
            groupby=[f"config.{key}" for key in keys],
        )
        return wr.PanelGrid(runsets=[runset], panels=panels)

    blocks: list[wr.H1 | wr.P | wr.PanelGrid | wr.TableOfContents] = [
        wr.TableOfContents(),
        wr.P(
            "Curves are means over the seeds of each method or level, with standard errors. Significance tests and "
            f"confidence intervals are in the tables of experiments/{experiment.name} in the repository."
        ),
        wr.H1("Accuracy by context length"),
        grid(length_panels(found)),
    ]
    for axis in experiment.axes:
        panels = [*suite_panels(found), *curves(CURVES, "progress/trained_tokens")]
        blocks += [wr.H1(f"Levels of {axis}"), grid(panels, axis)]
    for axis, words in AXES.items():
        blocks += [wr.H1(f"Training over {words}"), grid(curves((*CURVES, *accuracies(found)), axis))]
    blocks += [wr.H1("Differences between runs"), grid([wr.RunComparer(diff_only=True)])]
    return wr.Report(
        entity=place.entity,
        project=place.project,
        title=f"longctx_rl: {experiment.name}",
        description="Five post-training methods as five coefficient vectors of one objective",
        blocks=blocks,
        width="fluid",
    )


def curves(metrics: Sequence[str], axis: str) -> "list[wr.LinePlot]":
    """One panel for each metric, with the mean and standard error of each group of runs over a cost axis."""
    import wandb_workspaces.reports.v2 as wr

    return [
        wr.LinePlot(
            title=f"{metric} / {AXES[axis]}",
            x=axis,
            y=[metric],
            groupby_aggfunc="mean",
            groupby_rangefunc="stderr",
            max_runs_to_show=100,
        )
        for metric in metrics
    ]


def length_panels(found: Sequence[Result]) -> "list[wr.BarPlot]":
    """One panel for each task that was evaluated at several lengths, with its last accuracy at each of them."""
    import wandb_workspaces.reports.v2 as wr

    lengths: dict[tuple[str, str], list[str]] = {}
    for cell in _cells(found):
        lengths.setdefault(cell[:2], []).append(_metric(cell))
    return [
        wr.BarPlot(title=f"{suite} / {task} by length", metrics=metrics, groupby_aggfunc="mean")
        for (suite, task), metrics in lengths.items()
        if len(metrics) > 1
    ]


def suite_panels(found: Sequence[Result]) -> "list[wr.BarPlot]":
    """One panel for each suite, with its last mean."""
    import wandb_workspaces.reports.v2 as wr

    return [
        wr.BarPlot(title=metric, metrics=[metric], groupby_aggfunc="mean", groupby_rangefunc="stderr")
        for metric in means(found)
    ]


def importance_panels(found: Sequence[Result]) -> "list[wr.ParameterImportancePlot]":
    """One panel for each suite, with the importance of configuration keys for its mean."""
    import wandb_workspaces.reports.v2 as wr

    return [wr.ParameterImportancePlot(with_respect_to=metric) for metric in means(found)]


def varied(experiment: Experiment, axis: str) -> list[str]:
    """The keys that an axis varies."""
    return sorted({key for values in experiment.axes[axis].values() for key in values})


def runs_of(experiment: Experiment, axis: str) -> str:
    """A filter for the runs at the levels of an axis, the base and the teacher."""
    levels = [experiment.defaults | values for values in experiment.axes[axis].values()]
    levels += [{METHOD: name} for name in (BASE, TEACHER)]
    return " or ".join(
        f"({' and '.join(f'Config({key!r}) = {value!r}' for key, value in settings.items())})" for settings in levels
    )


def means(found: Sequence[Result]) -> list[str]:
    """Metric names of the suites' means."""
    return sorted({f"eval/{suite}/mean" for suite, _, _ in _cells(found)})


def accuracies(found: Sequence[Result]) -> list[str]:
    """Metric names of the suites' means and of every cell."""
    return [*means(found), *map(_metric, _cells(found))]


def _cells(committed: Sequence[Result]) -> list[Cell]:
    return sorted({cell for result in committed if result.trained for cell in result.cells})


def _metric(cell: Cell) -> str:
    return f"eval/{cell[0]}/{cell[1]}/{cell[2]}"
