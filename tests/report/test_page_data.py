"""The data of the page: arms, thinned curves, budgets of text, and runs in any state. No browser."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from longctx_rl import cli
from longctx_rl.report.page import document, texts
from longctx_rl.report.page.arms import arms_of, duplicates, settings_of
from longctx_rl.report.page.series import POINTS, axes_of, curves_of, thinned
from longctx_rl.report.runs import Run, find_runs, read_evals
from report.conftest import Command
from report.run_folders import write_evaluation
from report.synthetic import write_runs


def run(algo: str, seed: int = 0, *, finished: bool = True, rows: int = 1, **settings: Any) -> Run:
    config = {"algo": {"name": algo}, "seed": seed, "experiment_name": "a", "engine": {"threads": seed}, **settings}
    return Run(Path(f"{algo}-{seed}"), config, {}, [{"step": step} for step in range(rows)], (), finished)


def names(runs: list[Run]) -> list[str]:
    return [arm.name for arm in arms_of(runs, [settings_of(one.config) for one in runs])]


def embedded(path: Path) -> dict[str, Any]:
    """The data of a page."""
    found = re.findall(r'<script type="application/json" id="data-([\w-]+)">(.*?)</script>', path.read_text(), re.S)
    return {name: json.loads(text) for name, text in found}


def test_arms_are_methods_with_the_settings_that_tell_them_apart() -> None:
    assert names([run("dgrpo"), run("sft"), run("dgrpo", 1), run("mine")]) == ["sft", "dgrpo", "mine"]
    betas = [run("dgrpo", seed, optim={"lr": lr}) for seed in (0, 1) for lr in (1e-4, 3e-4)]
    assert names([*betas, run("sft")]) == ["sft", "dgrpo optim.lr=0.0001", "dgrpo optim.lr=0.0003"]
    moved = [run("opd", experiment_name=name, optim={"lr": lr}) for name, lr in (("a", 1), ("b", 2))]
    assert names(moved) == ["opd a", "opd b"]
    views = [run("opd", prompt=prompt, view=view) for prompt, view in ((1, "a"), (2, "b"), (2, "c"))]
    assert names(views) == ["opd view=a", "opd view=b", "opd view=c"]  # the prompt says nothing that the view does not
    assert names([run("opd"), run("opd", 1, forgotten_key=3)]) == ["opd"]  # of another version, not another setting
    assert names([run("opd", jobs, sweep={"jobs": jobs}) for jobs in (1, 2)]) == ["opd"]
    warm = [run("opd", seed, model={"student": f"runs/table2/sft-mini-mix-s{seed}/export"}) for seed in (0, 1)]
    assert names(warm) == ["opd"] and len(names([*warm, run("opd", model={"student": "mini-student"})])) == 2


def test_of_two_runs_of_one_cell_the_finished_one_counts() -> None:
    runs = [run("sft", rows=9, finished=False), run("sft"), run("sft", 1), run("sft", rows=2)]
    (arm,) = arms_of(runs, [settings_of(one.config) for one in runs])
    assert duplicates(arm, runs) == {0: 3, 1: 3}


def test_long_curves_keep_their_ends_and_extremes() -> None:
    steps = list(range(5000))
    values: list[float | None] = [float(step % 7) for step in steps]
    values[1234], values[4321], values[777] = 99.0, -99.0, None
    kept, thin = thinned(steps, values)
    assert len(kept) == len(thin) <= POINTS and kept == sorted(set(kept))
    assert (kept[0], kept[-1], thin[kept.index(1234)], thin[kept.index(4321)]) == (0, 4999, 99.0, -99.0)
    assert thinned([1, 2], [1.23456789, None]) == ([1, 2], [1.2346, None])
    flat = [{"step": step, "progress/trained_tokens": 10 * step, "loss/total": 1} for step in range(1, 2001)]
    rows = [row | {"progress/flops": 1e9 * row["step"], "progress/wall_seconds": row["step"] / 2} for row in flat]
    long = Run(Path("a"), {}, {}, rows, (), True)
    assert set(curves_of(long)) == {"loss/total"}
    axes = axes_of(long)
    assert len(axes["step"]) == POINTS + 1 and axes["flops"][-1] == 2e12 and axes["step"][0] == axes["flops"][0] == 0


def test_texts_keep_to_their_budget_and_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_runs(tmp_path, 1, steps=20, items=6, metrics=1)
    runs = find_runs(tmp_path)
    evals = [{suite: found for suite, (found, _) in read_evals(one.path).items()} for one in runs]
    whole = texts.answers(evals, evals[:1])
    assert whole["asked"] == 54 and [len(cell["items"]) for cell in whole["cells"]] == [6] * 9
    monkeypatch.setattr(texts, "ANSWERS_BUDGET", 18_000)
    few = texts.answers(evals, evals[:1])
    assert few["asked"] == 54 and [len(cell["items"]) for cell in few["cells"]] == [2] * 9
    assert few["cells"][0]["items"] == whole["cells"][0]["items"][:2]
    for one in runs:
        if one.algo in ("sft", "kd"):
            continue
        (one.path / "rollouts" / "step-000001.jsonl").unlink()
        for step in (5, 10):
            shutil.copy(one.path / "rollouts" / "step-000020.jsonl", one.path / "rollouts" / f"step-{step:06d}.jsonl")
    assert [one["step"] for one in texts.rollouts(runs)["steps"]] == [5, 10, 20]
    monkeypatch.setattr(texts, "ROLLOUTS_BUDGET", 15_000)
    kept = texts.rollouts(runs)
    assert [one["step"] for one in kept["steps"]] == [5, 20] and kept["saved"] == 3


def test_the_same_runs_make_the_same_bytes_with_no_way_out_of_the_data(tmp_path: Path) -> None:
    write_runs(tmp_path / "runs", 1, steps=20, items=2, metrics=1)
    first, second = tmp_path / "a" / "first.html", tmp_path / "second.html"
    for out in (first, second):
        document.write(tmp_path / "runs", out)
    assert first.read_bytes() == second.read_bytes()
    found = embedded(first)
    assert "</script> & <b>KesDal</b>" in json.dumps(found["answers"])
    assert found["overview"]["title"] == "Runs of runs" and len(found["overview"]["arms"]) == 5


def test_runs_in_any_state_are_on_the_page(tmp_path: Path) -> None:
    """Runs without an evaluation, without a step or with a broken configuration are shown, with their problems."""
    write_runs(tmp_path / "runs", 1, steps=20, items=2, metrics=1)
    bare, empty, broken = (tmp_path / "runs" / f"{algo}-mini-mix-s0" for algo in ("sft", "kd", "opd"))
    shutil.rmtree(bare / "evals")
    (empty / "metrics.jsonl").write_text("")
    (broken / "config.yaml").write_text("{")
    said = document.write(tmp_path / "runs", tmp_path / "report.html")
    assert "5 runs" in said and "marked: 3 of them" in said
    overview = embedded(tmp_path / "report.html")["overview"]
    problems = {one["name"]: one["problems"] for one in overview["runs"] if one["problems"]}
    assert problems["sft-mini-mix-s0"] == ["contains no evaluation"]
    assert problems["kd-mini-mix-s0"] == ["metrics.jsonl contains no step"]
    assert problems["opd-mini-mix-s0"][0].startswith("config.yaml cannot be read")
    rows = {row["label"]: row for row in overview["table"]["rows"]}
    assert rows["sft"]["score"][0] is None and rows["dgrpo"]["score"][0] is not None and rows["unknown"]["cost"]


def test_the_base_may_have_a_folder_of_its_own(tmp_path: Path) -> None:
    """Runs without an evaluation before training are compared with an evaluation folder of their student."""
    write_runs(tmp_path, 2, steps=20, items=4, metrics=1)
    for file in tmp_path.glob("*/evals/*.jsonl"):
        lines = file.read_text().splitlines(keepends=True)
        before = [line for line in lines if line.startswith('{"step": 0,')]
        file.write_text("".join(line for line in lines if line not in before))
    alone = document.data_of(find_runs(tmp_path), tmp_path)
    assert next(row["label"] for row in alone["overview"]["table"]["rows"]) == "sft" and alone["maps"][0]["entries"]
    for name in ("base", "teacher"):
        write_evaluation(tmp_path / name, {}, f"mini-{'student' if name == 'base' else name}")
        (tmp_path / name / "evals").mkdir()
        (tmp_path / name / "evals" / "heldout.jsonl").write_text("".join(before))
    found = document.data_of(find_runs(tmp_path), tmp_path)
    rows = {row["label"]: row for row in found["overview"]["table"]["rows"]}
    assert list(rows)[:3] == ["before training", "teacher", "sft"]
    for row in ("sft", "dgrpo"):
        gain = rows[row]["score"][0][0] - rows["before training"]["score"][0][0]
        assert rows[row]["gain"][0][0] == pytest.approx(gain, abs=1e-4)
        assert rows[row]["gain"][0][5] > 0 and rows[row]["score"][0][5] is None  # what such a difference could be
    assert found["maps"][0]["entries"][0][0][-1][1] == 4
    asked = [by[:2] for item in found["answers"]["cells"][0]["items"] for by in item["by"] if not by[1]]
    assert asked == [[-1, 0]] * 4


def test_gains_are_over_the_same_items_of_the_same_student(tmp_path: Path) -> None:
    """Bases beside the runs, one with half of the items; and a method whose seeds start from different students."""
    for study, asked in (("table1", 1), ("table2", 2)):
        for path in write_runs(tmp_path / study, 2, steps=20, items=4, metrics=1):
            config = (path / "config.yaml").read_text().replace("experiment_name: many", f"experiment_name: {study}")
            if path.name.startswith("kd"):
                config = config.replace("mini-student", f"runs/{study}/sft-mini-mix-s{path.name[-1]}/export")
            (path / "config.yaml").write_text(config)
        records = (
            (tmp_path / study / "sft-mini-mix-s0" / "evals" / "heldout.jsonl").read_text().splitlines(keepends=True)
        )
        before = [line for line in records if line.startswith('{"step": 0,')]
        write_evaluation(tmp_path / study / "base", {}, "mini-student")
        (tmp_path / study / "base" / "evals").mkdir()
        (tmp_path / study / "base" / "evals" / "heldout.jsonl").write_text("".join(before[::asked]))
    found = document.data_of(find_runs(tmp_path), tmp_path)
    rows = {row["label"]: row for row in found["overview"]["table"]["rows"]}
    assert next(iter(rows)) == "before training: table1/base" and "before training: table2/base" in rows
    names = [arm["name"] for arm in found["overview"]["arms"]]
    maps = {name: found["maps"][0]["entries"][1 + place][0][-1] for place, name in enumerate(names)}
    assert maps["sft table1"][1::2] == [8, 8] and maps["sft table2"][1::2] == [8, 4]
    mean, _, gain, _ = maps["sft table1"]
    assert gain == pytest.approx(mean - found["maps"][0]["entries"][0][0][-1][0], abs=1e-4)
    assert rows["sft table1"]["gain"][0] is not None and rows["sft table2"]["gain"][0] is not None
    assert maps["kd table1"][2] is None and set(rows["kd table1"]["gain"]) == {None}


def test_the_command(tmp_path: Path, command: Command) -> None:
    out = ("--out", str(tmp_path / "x.html"))
    done = command(tmp_path, "page", "--runs", str(tmp_path), *out)
    assert done.code == cli.UNUSABLE and not (tmp_path / "x.html").exists()
    assert done.err.startswith(f"error: no runs under {tmp_path}: ") and done.err.count("\n") == 1
    write_runs(tmp_path / "runs", 1, steps=20, items=2, metrics=1)
    done = command(tmp_path, "page", "--runs", str(tmp_path / "runs"), *out)
    assert done.code == 0 and done.out.startswith(f"{tmp_path / 'x.html'}: 5 runs, ")
