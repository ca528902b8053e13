"""Tables: the same numbers as Markdown, CSV and LaTeX, and tables of whole experiments."""

import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest

from longctx_rl.report import ablation, comparison, descriptions
from longctx_rl.report.collect import collect
from longctx_rl.report.experiment import Experiment, open_experiment
from longctx_rl.report.readings import last_step
from longctx_rl.report.results import COSTS, CellScores, Result, read_all
from longctx_rl.report.study import COLUMNS, Value, difference
from longctx_rl.report.tables import MINUS, Table, comma_separated, latex, markdown, percent, shown
from longctx_rl.stats import Estimate
from report.small_study import BASE, RUNS

NAN = float("nan")
BASE_CELLS = {cell: CellScores(scores={10: scores.scores[0]}, cut={}) for cell, scores in BASE.cells.items()}
SURE = Value(Estimate(-0.0523, -0.1, -0.0046), 3, 40, 0.01, 0.07, starred=True)
ALONE = Value(Estimate(0.25, NAN, NAN), 1, 40)
TABLE = Table("t", "5 % of it.", ("", "a_b", "c"), (("x & y", (SURE, ALONE)), ("z", (None, "text"))), signed=True)


def test_the_same_numbers_in_three_forms() -> None:
    assert markdown(TABLE).splitlines() == [
        "|  | a_b | c |",
        "| --- | ---: | ---: |",
        "| x & y | \N{MINUS SIGN}5.2 [\N{MINUS SIGN}10.0, \N{MINUS SIGN}0.5]* | +25.0 (one run) |",
        "| z | \N{EN DASH} | text |",
        "",
        "5 % of it.",
    ]
    rows = list(csv.DictReader(io.StringIO(comma_separated(TABLE))))
    assert [rows[0][key] for key in ("row", "column", "value", "low", "high")] == [
        "x & y",
        "a_b",
        "-0.0523",
        "-0.1",
        "-0.0046",
    ]
    assert (rows[0]["p_holm"], rows[0]["detectable"], rows[0]["star"]) == ("0.01", "0.07", "yes")
    assert (rows[1]["value"], rows[1]["low"], rows[1]["runs"], rows[3]["value"]) == ("0.25", "", "1", "text")
    assert latex(TABLE).splitlines()[1:6] == [
        r"\begin{tabular}{lrr}",
        r"\toprule",
        r" & a\_b & c \\",
        r"\midrule",
        r"x \& y & $-$5.2 [$-$10.0, $-$0.5]* & +25.0 (one run) \\",
    ]


def test_nothing_is_minus_zero() -> None:
    below = [percent(-0.0001), percent(-0.0001, True), percent(0.0, True), percent(-1e-12, True)]
    assert below == [f"{MINUS}0.0", f"{MINUS}0.0", "+0.0", "+0.0"]


def test_the_tables_of_a_comparison_show_what_the_study_says() -> None:
    tables = {table.name: table for table in comparison.tables_of([*RUNS, BASE])}
    assert list(tables) == ["levels", "gains", "transfer", "scaling", "costs", "runs"]
    gains = dict(tables["gains"].rows)["grpo"]
    raw = difference(RUNS, [BASE], comparison.CODE_LONG)
    assert raw is not None
    assert tables["gains"].columns[2] == "code long" and gains[0] == "2"
    assert isinstance(gains[1], Value) and gains[1].estimate == raw.estimate
    assert [row for row, _ in tables["levels"].rows] == ["base", "grpo"]
    assert next(row for row, _ in tables["scaling"].rows) == "code / bury / 512"


def test_each_method_is_compared_with_each_other_one() -> None:
    other = [replace(run, name=f"opd-{run.seed}", algo="opd", cells=BASE_CELLS) for run in RUNS]
    tables = {table.name: table for table in comparison.tables_of([*RUNS, *other, BASE])}
    (row, entries), _ = tables["pairs"].rows
    raw = difference(other, RUNS, comparison.CODE_LONG)
    assert row == "opd \N{MINUS SIGN} grpo" and raw is not None
    assert tables["pairs"].columns[1::3] == ("code long", "code, long minus short")
    code = entries[0]
    assert isinstance(code, Value) and code.estimate == raw.estimate and raw.estimate.value == pytest.approx(-2 / 6)


def test_the_summary_has_the_numbers_of_the_other_tables(experiment: Experiment, grid: Path) -> None:
    collect(experiment, grid)
    tables = {table.name: table for table in comparison.tables_of(read_all(experiment.results))}
    summary = tables["summary"]
    assert summary.columns[2:4] == ("long reasoning", "long reasoning, equal trained tokens")
    place = tables["gains"].columns.index("long reasoning") - 1
    for row, entries in summary.rows[:-1]:
        assert entries[1] == dict(tables["gains"].rows)[row][place]
        assert entries[2] == dict(tables["equal_trained_tokens"].rows)[row][place]
        assert entries[-4:] == dict(tables["transfer"].rows)[row][-4:]
        assert isinstance(entries[1], Value) and isinstance(entries[2], Value)
        assert (entries[1].families, entries[2].families) == (20, 10), "grpo is read where it was asked 10"


def test_dynamics_are_of_the_first_and_the_last_tenth() -> None:
    """Of what was recorded: a metric that is measured every few steps has three points at least in each."""
    entropy: list[float | None] = [1.0, 3.0, 2.0, 2.0, *[9.0] * 32, None, *[5.0] * 4]
    cosine: list[float | None] = [None, 0.1, None, 0.2, None, 0.3, None, None, 0.7, None, 0.8, 0.9, None]
    runs = [replace(run, curves={"policy/entropy": entropy, "grad/pg_kd_cosine": cosine}) for run in RUNS]
    table = descriptions.dynamics({"grpo": runs})
    assert table is not None and table.columns[1] == "entropy, nats"
    assert table.rows == (("grpo", ("2 \N{RIGHTWARDS ARROW} 5 \N{PLUS-MINUS SIGN} 0", "0.2 → 0.8 ± 0")),)
    assert descriptions.dynamics({"grpo": RUNS}) is None


def test_costs_name_the_short_prompts_too() -> None:
    settings = {"data.lengths": [512], "data.short.share": 0.1, "data.short.lengths": [0]}
    spent = dict.fromkeys((*COSTS, "prompts", "sampled_tokens"), 1.0)
    runs = [replace(run, config=run.config | settings, costs={last_step(run) or 0: spent}) for run in RUNS]
    tables = {table.name: table for table in comparison.tables_of([*runs, BASE])}
    assert dict(tables["costs"].rows)["grpo"][-1] == "[512]; 10.0 % [0]"


def test_transfer_has_a_star_only_where_long_code_was_gained() -> None:
    families = [f"f{index}" for index in range(60)]

    def run(name: str, long: int, short: int, seed: int | None, step: int) -> Result:
        def cell(right: int) -> CellScores:
            return CellScores(scores={step: {f: float(i < right) for i, f in enumerate(families)}}, cut={})

        cells = {("code", "bury", 1024): cell(long), ("code", "short", 0): cell(short)}
        return Result(name=name, algo=name.split("-")[0], seed=seed, cells=cells)

    base = run("base", 20, 50, None, 0)
    forgetting = [run(f"sft-{seed}", 20, 10 + seed, seed, 5) for seed in range(3)]
    gaining = [run(f"opd-{seed}", 50 + seed, 50, seed, 5) for seed in range(3)]
    table = comparison.transfers({"sft": forgetting, "opd": gaining}, base)
    entries = {row: values[-1] for row, values in table.rows}
    forgot, gained = entries["sft"], entries["opd"]
    assert isinstance(forgot, Value) and isinstance(gained, Value)
    assert forgot.estimate.low > 0 and (forgot.p_value or 1) < 0.05 and not forgot.starred
    assert gained.starred and "*" in shown(gained)


def test_rewards_are_compared_seed_by_seed() -> None:
    def runs(algo: str, shift: float, zigzag: float) -> list[Result]:
        curves = [[0.1 * seed + shift + (zigzag if point % 2 else 0.0) for point in range(40)] for seed in range(3)]
        return [
            replace(RUNS[0], name=f"{algo}-{seed}", algo=algo, seed=seed, curves={"rollout/reward_mean": [*curve]})
            for seed, curve in enumerate(curves)
        ]

    table = descriptions.rewards({"sft": RUNS, "grpo": runs("grpo", 0.2, 0.2), "opd": runs("opd", 0.4, 0.1)})
    rough = (0.1**2 / 2) ** 0.5 - (0.2**2 / 2) ** 0.5
    expected = ("3", "0.150 [0.150, 0.150]", f"{rough:.3f} [{rough:.3f}, {rough:.3f}]".replace("-", MINUS))
    assert table is not None and table.rows == ((f"opd {MINUS} grpo", expected),)
    assert descriptions.rewards({"sft": RUNS, "grpo": runs("grpo", 0.2, 0.2)}) is None


def test_slopes_are_of_code_on_longreason_through_no_gain() -> None:
    def run(name: str, reasoning: int, long: int, short: int, seed: int | None) -> Result:
        def cell(right: int) -> CellScores:
            scores = {f"f{index}": float(index < right) for index in range(40)}
            half = {f"f{index}": float(index < (right + 10) // 2) for index in range(40)}
            return CellScores(scores={0: scores} if seed is None else {5: half, 10: scores}, cut={})

        rights = {("longreason", "context", 1024): reasoning, ("code", "bury", 1024): long, ("code", "short", 0): short}
        return Result(name=name, algo="opd", seed=seed, cells={place: cell(n) for place, n in rights.items()})

    base = run("base", 10, 10, 10, None)
    runs = [run("opd-0", 30, 20, 10, 0), run("opd-1", 20, 20, 6, 1)]  # slopes 1/2 and 1; 0 and -2/5
    table = descriptions.slopes({"opd": runs}, base)
    assert table is not None and table.rows == (
        ("opd", ("2", "0.75 [-2.43, 3.93]".replace("-", MINUS), "-0.20 [-2.74, 2.34]".replace("-", MINUS))),
    )
    assert descriptions.slopes({"opd": [run("opd-0", 10, 20, 10, 0)]}, base) is None  # LongReason never moved


def test_axes_are_read_and_compared_with_their_default(tmp_path: Path) -> None:
    (tmp_path / "axes.yaml").write_text(
        "default: {algo.weights.kd: 0.5, model.student: mini}\n"
        "axes:\n  beta: {0: {algo.weights.kd: 0.0}, 0.5: }\n  start: {none: , warm: {model.student: sft}}\n"
    )
    experiment = open_experiment(tmp_path)

    def run(kd: float, student: str, seed: int, right: int) -> Result:
        scores = {10: {f"f{index}": float(index < right) for index in range(8)}}
        return Result(
            name=f"{kd}-{student}-{seed}",
            algo="dgrpo",
            seed=seed,
            config={"algo.weights.kd": kd, "model.student": student},
            cells={("code", "short", 0): CellScores(scores=scores, cut={})},
        )

    cells = ((0.0, "mini", 2), (0.5, "mini", 4), (0.5, "sft", 6))
    runs = [run(kd, student, seed, right) for kd, student, right in cells for seed in (0, 1)]
    tables = {table.name: table for table in ablation.tables_of(experiment, runs)}
    assert list(tables) == ["beta", "beta_differences", "start", "start_differences", "costs", "runs"]
    levels = [(row, shown(entries[1])[:4]) for row, entries in tables["beta"].rows]
    assert levels == [("0", "25.0"), ("0.5 (default)", "50.0")]
    (row, entries), _ = tables["start_differences"].rows
    assert row == "warm" and shown(entries[1], True).startswith("+25.0")
    odd = run(0.0, "sft", 0, 1)  # two keys away from the default
    (*_, listed) = ablation.tables_of(experiment, [*runs, odd])
    marked = {row for row, entries in listed.rows if entries[-1] == "matches no level of axes.yaml"}
    assert listed.name == "runs" and marked == {odd.name}


def equivalence_study(tmp_path: Path, margin: float) -> Experiment:
    (tmp_path / "axes.yaml").write_text(
        "default: {algo.kd.view: evidence}\naxes:\n  view: {evidence: , document: {algo.kd.view: document}}\n"
        f"equivalence: {{axis: view, level: document, column: code short, margin: {margin}}}\n"
    )
    return open_experiment(tmp_path)


def test_equivalence_is_two_one_sided_tests_within_the_margin(tmp_path: Path) -> None:
    """The same runs are equivalent within a wide margin, not within a narrow one, and the interval is that of 90 %."""

    def run(view: str, seed: int) -> Result:
        right = 200 + 3 * seed + 4 * (view == "evidence")
        scores = {10: {f"f{index}": float(index * 7 % 400 < right) for index in range(400)}}
        config = {"algo.kd.view": view}
        cells = {("code", "short", 0): CellScores(scores=scores, cut={})}
        return Result(name=f"{view}-{seed}", algo="opsd", seed=seed, config=config, cells=cells)

    runs = [run(view, seed) for view in ("evidence", "document") for seed in range(4)]
    verdicts = {}
    for margin in (0.2, 0.02):
        tables = {table.name: table for table in ablation.tables_of(equivalence_study(tmp_path, margin), runs)}
        ((row, entries),) = tables["equivalence"].rows
        assert row == f"evidence {MINUS} document" and entries[:2] == ("4", "4")
        verdicts[margin] = entries[-1]
    value = entries[2]
    column = next(column for column in COLUMNS if column.title == "code short")
    wider = difference(runs[:4], runs[4:], column)
    assert isinstance(value, Value) and wider is not None
    assert value.estimate.value == pytest.approx(0.01)
    assert wider.estimate.low < value.estimate.low < value.estimate.high < wider.estimate.high
    assert 0.02 < value.estimate.high < 0.2
    assert verdicts == {0.2: "equivalent", 0.02: "equivalence not shown"}


def test_an_equivalence_with_a_level_that_does_not_exist_is_one_sentence(tmp_path: Path) -> None:
    equivalence_study(tmp_path, 0.05)
    path = tmp_path / "axes.yaml"
    path.write_text(path.read_text().replace("level: document", "level: nothing"))
    with pytest.raises(ValueError, match="equivalence compares nothing with the default level of view: name a level"):
        open_experiment(tmp_path)


def test_a_metric_before_training_is_ranked_against_the_gain(tmp_path: Path) -> None:
    """The rank correlation of scipy's independent example; levels that share their runs count once."""
    (tmp_path / "axes.yaml").write_text(
        "default: {view: a, teacher: initial}\n"
        "axes:\n  view: {a: , b: {view: b}, c: {view: c}, d: {view: d}}\n"
        "  teacher: {initial: , policy: {teacher: policy}}\n"
        "prediction: {metric: view/score_gap, column: code short, axes: [view, teacher]}\n"
    )
    experiment = open_experiment(tmp_path)

    def run(view: str, gap: float | None, right: int, teacher: str = "initial") -> Result:
        scores = {step: {f"f{index}": float(index < right * step) for index in range(10)} for step in (0, 1)}
        config = {"view": view, "teacher": teacher, "model.student": "mini"}
        cells = {("code", "short", 0): CellScores(scores=scores, cut={})}
        before = {} if gap is None else {"view/score_gap": gap}
        return Result(name=f"{view}-{teacher}", algo="opsd", seed=0, config=config, before=before, cells=cells)

    runs = [run("a", 0.1, 2), run("b", 0.2, 4), run("c", -0.3, 3), run("d", None, 9), run("a", 0.3, 5, "policy")]
    tables = {table.name: table for table in ablation.tables_of(experiment, runs)}
    rows = dict(tables["prediction"].rows)
    assert list(rows) == ["view a", "view b", "view c", "teacher policy"]
    assert [shown(entry, True) for entry in rows["view c"]] == [f"{MINUS}30.0", "+30.0 (one run)"]
    assert (
        "over the 4 rows: +0.80" in tables["prediction"].caption
    )  # 1 - 6 (1 + 1) / (4 (16 - 1)): ranks 2 3 1 4, 1 3 2 4
    few = {table.name for table in ablation.tables_of(experiment, runs[:2])}
    assert "prediction" not in few


def test_a_prediction_of_an_unknown_column_or_axis_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "axes.yaml"
    text = "default: {view: a}\naxes: {view: {a: }}\nprediction: {metric: m, column: code short, axes: [view]}\n"
    path.write_text(text.replace("code short", "nothing"))
    with pytest.raises(ValueError, match="there is no column nothing: choose from long reasoning"):
        open_experiment(tmp_path)
    path.write_text(text.replace("[view]", "[nothing]"))
    with pytest.raises(ValueError, match="prediction names the axis nothing: choose from view"):
        open_experiment(tmp_path)


def test_levels_are_read_at_equal_cost_where_runs_were_evaluated_during_training(tmp_path: Path) -> None:
    experiment = equivalence_study(tmp_path, 0.05)

    def run(view: str, seed: int, steps: tuple[int, ...]) -> Result:
        scores = {step: {f"f{index}": float(index < step // 10) for index in range(8)} for step in steps}
        price = 2.0 if view == "evidence" else 1.0
        other = ("trained_tokens", "wall_seconds", "prompts", "sampled_tokens")
        costs = {step: dict.fromkeys(other, 1.0 * step) | {"flops": price * step} for step in steps}
        cells = {("code", "short", 0): CellScores(scores=scores, cut={})}
        return Result(
            name=f"{view}-{seed}", algo="opsd", seed=seed, config={"algo.kd.view": view}, costs=costs, cells=cells
        )

    base = Result(
        name="base", algo="base", seed=None,
        cells={("code", "short", 0): CellScores(scores={0: {f"f{index}": 0.0 for index in range(8)}}, cut={})},
    )  # fmt: skip
    runs = [run(view, seed, (20, 40, 60)) for view in ("evidence", "document") for seed in (0, 1)]
    tables = {table.name: table for table in ablation.tables_of(experiment, [base, *runs])}
    (_, evidence), (_, document), _ = tables["view_equal_flops"].rows
    gains = [entry.estimate.value for entry in (evidence[1], document[1]) if isinstance(entry, Value)]
    assert gains == [pytest.approx(3 / 8), pytest.approx(6 / 8)]  # at 60 FLOPs: between steps 20 and 40, and at 60
    at_end = [run(view, seed, (60,)) for view in ("evidence", "document") for seed in (0, 1)]
    assert "view_equal_flops" not in {table.name for table in ablation.tables_of(experiment, [base, *at_end])}


def test_axes_that_cannot_be_used_are_one_sentence(tmp_path: Path) -> None:
    for name, file in (("study", "tables.md"), ("bench", "README.md")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).touch()
    with pytest.raises(ValueError, match=r"nothing .*: create it, or choose one of study$"):
        open_experiment(tmp_path / "nothing")
    (tmp_path / "axes.yaml").write_text("axes: {}")
    with pytest.raises(ValueError, match=r"axes\.yaml is invalid .*: give `default:` and `axes:`"):
        open_experiment(tmp_path)
    (tmp_path / "axes.yaml").write_text("default: {}\naxes: {lr: {1: {optim.lr: 1}}}")
    with pytest.raises(ValueError, match=r"lr, level 1 sets optim\.lr: give it a value under default:"):
        open_experiment(tmp_path)


def test_an_experiment_without_axes_varies_the_method(tmp_path: Path) -> None:
    assert open_experiment(tmp_path) == Experiment(tmp_path)
