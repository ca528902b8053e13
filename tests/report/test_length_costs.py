"""Cost by context length: the runs' own counter at each length, against numbers worked out by hand."""

from dataclasses import replace
from typing import Any

import pytest

from longctx_rl.report import figures, length_costs
from longctx_rl.report.results import CellScores, Result

SIZES = {"body_parameters": 1000, "head_parameters": 100, "num_layers": 2, "attention_width": 8}


def run(*, seed: int = 0, flops: float = 234_600.0, teacher: bool = False, **config: Any) -> Result:
    """10 prompts with an answer of 5 tokens each; evaluated at 20 tokens, and at natural length."""
    settings = {
        "algo.source": "dataset",
        "algo.group_size": 1,
        "algo.updates_per_rollout": 1,
        "data.questions_per_document": 1,
        "data.lengths": [10, 10, 40],
        "data.longblocks": None,
    }
    trained = 10 * 5 * config.get("algo.group_size", 1) * config.get("algo.updates_per_rollout", 1)
    return Result(
        name=f"run-{seed}",
        algo="sft",
        seed=seed,
        config=settings | config,
        origin={"models": {"student": SIZES, **({"kd": SIZES} if teacher else {})}},
        costs={7: {"prompts": 10, "trained_tokens": trained, "flops": 10 * flops}},
        cells={("code", "short", length): CellScores(scores={7: {"a": 1.0}}, cut={}) for length in (0, 20)},
    )


def test_recorded_answers_are_read_forward_and_backward() -> None:
    # 15 tokens, 120 pairs of query and key, 5 scored; three forwards.
    forward = 2 * 1000 * 15 + 4 * 2 * 8 * 120 + 2 * 100 * 5
    assert length_costs.cost_at(run(), 10) == length_costs.PromptCost(3 * forward, 3 * forward / 5)


@pytest.mark.parametrize(("updates", "passes"), [(1, 3 + 1), (2, 6 + 1 + 1)])
def test_sampled_answers_are_drawn_too_and_read_by_the_teacher(updates: int, passes: int) -> None:
    settings = {"algo.source": "policy", "algo.group_size": 4, "algo.updates_per_rollout": updates}
    # The prompt once, 30 tokens, 315 pairs, 20 scored.
    forward = 2 * 1000 * 30 + 4 * 2 * 8 * 315 + 2 * 100 * 20
    cost = length_costs.cost_at(run(teacher=True, **settings), 10)
    assert cost == length_costs.PromptCost((passes + 1) * forward, (passes + 1) * forward / (20 * updates))


def test_prompts_that_were_dropped_have_no_known_length() -> None:
    assert length_costs.cost_at(run(**{"algo.draws": 2}), 10) is None


def test_the_table_has_every_length_and_says_how_well_it_fits() -> None:
    table = length_costs.table({"sft": [run(), run(seed=1)], "older": [replace(run(), origin={})]})
    assert table is not None
    assert table.columns == ("", "10", "20", "40", "recorded / computed")
    (prompt, prompts), (token, tokens) = table.rows
    assert (prompt, token) == ("sft, per prompt", "sft, per trained token")
    assert (prompts[0], prompts[2], tokens[0]) == ("1.16e+05", "4.72e+05", "2.32e+04")
    assert prompts[-1] == "1.000"  # (2 x 116,040 + 471,720) / 3
    assert length_costs.table({"older": [replace(run(), origin={})]}) is None
    several = run(**{"data.questions_per_document": 2})
    assert length_costs.cost_at(several, 10) is None


def test_short_prompts_count_by_their_share() -> None:
    settings = {"data.lengths": [40], "data.short.share": 0.25, "data.short.lengths": [10]}
    table = length_costs.table({"sft": [run(flops=0.75 * 471_720 + 0.25 * 116_040, **settings)]})
    assert table is not None and table.columns[1:-1] == ("10", "20", "40")
    assert table.rows[0][1][-1] == "1.000"
    unknown = length_costs.table({"sft": [run(**{**settings, "data.short.lengths": [0, 10]})]})
    assert unknown is not None and unknown.rows[0][1][-1] == "\N{EN DASH}"


def test_prompts_of_a_data_set_have_lengths_of_their_own() -> None:
    table = length_costs.table({"sft": [run(**{"data.longblocks.path": "rows"})]})
    assert table is not None and table.columns[1:-1] == ("20",) and table.rows[0][1][-1] == "\N{EN DASH}"


def test_the_figure_draws_what_the_table_says() -> None:
    figure = figures.length_cost_figure({"sft": [run()], "older": [replace(run(), origin={})]})
    prompt, token = figure.axes
    assert [list(line.get_xdata()) for line in prompt.lines if line.get_label() == "sft"] == [[10, 20, 40]]
    assert next(line.get_ydata()[0] for line in token.lines) == pytest.approx(23_208)
