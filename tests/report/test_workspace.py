"""The wandb workspace and report as they are built, without a network."""

import json
from pathlib import Path

import pytest

from longctx_rl.report.experiment import Experiment, open_experiment
from longctx_rl.report.results import CellScores, Result
from longctx_rl.report.workspace import AXES, Place, build_report, build_workspace, place_of, save

pytest.importorskip("wandb_workspaces", reason="needs the extra: pip install 'longctx-rl[dashboard]'")
import wandb_workspaces.reports.v2 as wr
from wandb_workspaces.expr import expr_to_filters

CELL = CellScores(scores={10: {"a": 1.0}}, cut={})
RUN = Result(
    name="grpo-0",
    algo="grpo",
    seed=0,
    config={"logging.entity": "team", "logging.project": "p"},
    cells={("heldout", "multihop", length): CELL for length in (256, 1024)},
)
METHODS = Experiment(Path("table1"))
VARIED = Experiment(Path("table2"), {"algo.weights.kd": 0.5}, {"beta": {"0": {"algo.weights.kd": 0.0}, "0.5": {}}})


@pytest.mark.parametrize(("experiment", "keys"), [(VARIED, ["algo.weights.kd"]), (METHODS, ["algo.name"])])
def test_the_workspace_compares_methods_or_levels_over_every_cost(
    experiment: Experiment, keys: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    workspace = build_workspace(experiment, [RUN], Place("team", "p"))
    assert [key.name for key in workspace.runset_settings.groupby] == keys
    sections = {section.name: section for section in workspace.sections}
    assert {f"Training over {words}" for words in AXES.values()} < set(sections)
    (reward, *_) = sections["Training over FLOPs"].panels
    assert isinstance(reward, wr.LinePlot)
    assert (reward.x, reward.y) == ("progress/flops", ["rollout/reward_mean"])
    assert reward.groupby is None and reward.groupby_rangefunc == "stderr"  # of each group of runs
    (bars,) = sections["Accuracy by context length"].panels
    assert isinstance(bars, wr.BarPlot)
    assert bars.metrics == ["eval/heldout/multihop/256", "eval/heldout/multihop/1024"]
    (means,) = sections["Accuracy"].panels
    assert isinstance(means, wr.BarPlot) and means.metrics == ["eval/heldout/mean"]
    assert ("Importance of keys" in sections) == bool(experiment.axes)
    assert isinstance(sections["Differences between runs"].panels[0], wr.RunComparer)
    sent = json.dumps(workspace._to_model().model_dump(mode="json", by_alias=True))
    assert experiment.name in sent and "progress/trained_tokens" in sent and "experiment_name" in sent


def test_the_report_holds_the_same_panels() -> None:
    report = build_report(METHODS, [RUN], Place("team", "p"))
    titles = [block.text for block in report.blocks if isinstance(block, wr.H1)]
    assert titles[0] == "Accuracy by context length" and len(titles) == 2 + len(AXES)
    grids = [block for block in report.blocks if isinstance(block, wr.PanelGrid)]
    assert all("table1" in str(grid.runsets[0].filters) for grid in grids)
    assert {panel.x for panel in grids[2].panels if isinstance(panel, wr.LinePlot)} == {"progress/trained_tokens"}


def test_each_axis_has_its_levels_alone() -> None:
    """Runs at levels of other axes are filtered out, also those of the same keys; base and teacher stay."""
    experiment = open_experiment(Path(__file__).resolve().parents[2] / "experiments" / "table2")
    report = build_report(experiment, [RUN], Place("team", "p"))
    grids = {grid.runsets[0].name: grid.runsets[0] for grid in report.blocks if isinstance(grid, wr.PanelGrid)}
    assert grids["table2 beta"].groupby == ["config.algo.weights.kd"]
    assert grids["table2 mix"].groupby == ["config.data.name"]
    tree = str(expr_to_filters(str(grids["table2 start"].filters)))
    for wanted in ("mini_after_sft", "mini_after_kd", "base", "teacher", "long90", "table2"):
        assert wanted in tree
    for other in ("mini_self", "long50", "value=0.1", "value=2.0"):
        assert other not in tree


def test_without_key_or_entity_it_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_ENTITY", raising=False)
    with pytest.raises(ValueError, match=r"set WANDB_API_KEY .* logging.entity or WANDB_ENTITY"):
        save(VARIED)
    assert place_of([RUN]) == Place("team", "p")
    with pytest.raises(ValueError, match="set WANDB_ENTITY"):
        place_of([])
    monkeypatch.setenv("WANDB_ENTITY", "other")
    assert place_of([RUN]) == Place("other", "p")
