"""The wandb workspace and report as they are built, without a network."""

import json
from pathlib import Path

import pytest

from longctx_rl.report.experiment import Experiment
from longctx_rl.report.results import CellScores, Result
from longctx_rl.report.workspace import AXES, Place, build_report, build_workspace, place_of, save

pytest.importorskip("wandb_workspaces", reason="needs the extra: pip install 'longctx-rl[dashboard]'")
import wandb_workspaces.reports.v2 as wr

CELL = CellScores(scores={10: {"a": 1.0}}, cut={})
RUN = Result(
    name="grpo-0",
    algo="grpo",
    seed=0,
    config={"logging.entity": "team", "logging.project": "p"},
    cells={("heldout", "multihop", length): CELL for length in (256, 1024)},
)
VARIED = Experiment(Path("table2"), {"algo.weights.kd": 0.5}, {"beta": {"0": {"algo.weights.kd": 0.0}, "0.5": {}}})


def test_the_workspace_compares_methods_over_every_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    workspace = build_workspace(VARIED, [RUN], Place("team", "p"))
    sections = {section.name: section for section in workspace.sections}
    assert {f"Training over {words}" for words in AXES.values()} < set(sections)
    (reward, *_) = sections["Training over FLOPs"].panels
    assert isinstance(reward, wr.LinePlot)
    assert (reward.x, reward.y) == ("progress/flops", ["rollout/reward_mean"])
    assert (reward.groupby, reward.groupby_rangefunc) == (wr.Config("algo.name"), "stderr")
    (bars,) = sections["Accuracy by context length"].panels
    assert isinstance(bars, wr.BarPlot)
    assert bars.metrics == ["eval/heldout/multihop/256", "eval/heldout/multihop/1024"]
    assert [panel.groupby for panel in sections["Ablations"].panels if isinstance(panel, wr.BarPlot)] == [
        "algo.weights.kd"
    ]
    assert isinstance(sections["What differs between runs"].panels[0], wr.RunComparer)
    sent = json.dumps(workspace._to_model().model_dump(mode="json", by_alias=True))
    assert "table2" in sent and "progress/trained_tokens" in sent and "experiment_name" in sent


def test_the_report_holds_the_same_panels() -> None:
    report = build_report(Experiment(Path("table1")), [RUN], Place("team", "p"))
    titles = [block.text for block in report.blocks if isinstance(block, wr.H1)]
    assert titles[0] == "Accuracy by context length" and "Ablations" not in titles and len(titles) == 2 + len(AXES)
    grids = [block for block in report.blocks if isinstance(block, wr.PanelGrid)]
    assert all("table1" in str(grid.runsets[0].filters) for grid in grids)
    assert {panel.x for panel in grids[2].panels if isinstance(panel, wr.LinePlot)} == {"progress/trained_tokens"}


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
