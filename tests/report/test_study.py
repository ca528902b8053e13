"""Estimates against numbers worked out by hand or by ``stats`` directly."""

from dataclasses import replace

import numpy as np
import pytest

from longctx_rl.report.readings import Weights, equal_cost
from longctx_rl.report.results import CellScores, Result
from longctx_rl.report.study import (
    CODE_LONG,
    CODE_SHORT,
    COLUMNS,
    Value,
    base_of,
    difference,
    level,
    methods_of,
    transfer,
    with_holm,
)
from longctx_rl.stats import Estimate, contrast
from report.small_study import BASE, BASE_LONG, BASE_SHORT, LONG, RUNS, SHORT, result

RETENTION = next(column for column in COLUMNS if column.key == "retention")


def test_a_level_is_the_contrast_of_one_arm_at_the_longest_length() -> None:
    value = level(RUNS, CODE_LONG)
    expected = contrast([np.array(LONG, float)]).estimate
    assert value is not None and value.estimate.value == 0.5 and (value.runs, value.families) == (2, 6)
    assert value.estimate.high == min(1.0, expected.high) and value.estimate.low == max(0.0, expected.low)


def test_answers_at_different_lengths_are_not_compared() -> None:
    longer = replace(BASE, cells={("code", "bury", 2048): BASE.cells["code", "bury", 1024]} | BASE.cells)
    assert difference(RUNS, [BASE], CODE_LONG) is not None
    assert difference(RUNS, [longer], CODE_LONG) is None and transfer(RUNS, [longer]) is None
    assert difference(RUNS, [longer], CODE_SHORT) == difference(RUNS, [BASE], CODE_SHORT)


def test_gains_are_over_the_base_and_transfer_is_the_difference_of_differences() -> None:
    long, short = difference(RUNS, [BASE], CODE_LONG), difference(RUNS, [BASE], CODE_SHORT)
    both = transfer(RUNS, [BASE])
    assert long is not None and short is not None and both is not None
    assert long.estimate.value == pytest.approx(3 / 6 - 1 / 6)
    assert short.estimate.value == pytest.approx(3.5 / 6 - 4 / 6)
    assert both.estimate.value == pytest.approx(long.estimate.value - short.estimate.value)
    arms = [np.array(LONG, float) - SHORT, -(np.array([BASE_LONG], float) - [BASE_SHORT])]
    expected = contrast(arms, reach=2.0)
    assert both.p_value == pytest.approx(expected.p_value) and both.detectable == expected.minimum_detectable


def test_retention_is_the_share_of_short_passes_that_are_passed_long() -> None:
    value = level(RUNS, RETENTION)
    assert value is not None and value.estimate.value == pytest.approx(5 / 7)  # 3 of 4 and 2 of 3
    nothing = result("base", BASE_LONG, [0] * 6)
    assert level([nothing], RETENTION) is None


def test_one_run_has_no_interval_and_fixed_weights_have_one() -> None:
    alone, base = difference(RUNS[:1], [BASE], CODE_LONG), level([BASE], CODE_LONG)
    assert alone is not None and np.isnan(alone.estimate.low) and alone.p_value is None
    assert base is not None and base.estimate.low < base.estimate.value < base.estimate.high


def test_runs_are_compared_on_the_families_that_all_of_them_answered() -> None:
    short_run = result("grpo-1", [0, 0, 0], [1, 1, 1], 1, step=10)
    value = difference([RUNS[0], short_run], [BASE], CODE_LONG)
    assert value is not None and value.families == 3
    assert value.estimate.value == pytest.approx((2 / 3 + 0) / 2)
    without = Result(name="grpo-2", algo="grpo", seed=2)
    kept = difference([*RUNS, without], [BASE], CODE_LONG)
    assert kept is not None and kept.runs == 2
    assert level([without], CODE_LONG) is None


def priced(name: str, costs: dict[int, dict[str, float]], scores: dict[int, list[float]] | None = None) -> Result:
    return Result(
        name=name,
        algo=name.partition("-")[0],
        seed=int(name.rpartition("-")[2]),
        costs=costs,
        cells={
            ("code", task, 1024 if task == "bury" else 0): CellScores(
                scores={
                    step: {f"f{i}": float(one) for i, one in enumerate((scores or {}).get(step, [0, 1]))}
                    for step in costs
                },
                cut={},
            )
            for task in ("bury", "short")
        },
    )


def test_equal_cost_reads_runs_where_they_have_spent_what_the_cheapest_method_spends() -> None:
    cheap = [priced(f"grpo-{seed}", {0: {"flops": 0}, 10: {"flops": end}}) for seed, end in enumerate((90.0, 110.0))]
    dear = priced("sft-0", {0: {"flops": 0}, 5: {"flops": 90}, 7: {"flops": 130}, 10: {"flops": 300}})
    near = priced("kd-0", {0: {"flops": 0}, 10: {"flops": 104}})
    limit, spent, reading = equal_cost({"grpo": cheap, "sft": [dear], "kd": [near]}, "flops")
    assert limit == 100.0 and spent["sft-0"] == {0: 0, 5: 90, 7: 130, 10: 300}
    assert reading(cheap[0]) == {10: 1.0} and reading(near) == {10: 1.0} and reading(BASE) == {0: 1.0}
    assert reading(dear) == pytest.approx({5: 0.75, 7: 0.25})
    assert reading(cheap[1]) == pytest.approx({0: 1 - 100 / 110, 10: 100 / 110})
    late = priced("sft-1", {5: {"flops": 150}, 10: {"flops": 300}})
    assert equal_cost({"grpo": cheap, "sft": [late]}, "flops")[2](late) is None, "not evaluated before"
    with pytest.raises(ValueError, match=r"no run has recorded wall_seconds .*: choose another of"):
        equal_cost({"grpo": cheap}, "wall_seconds")


def test_seconds_are_those_of_a_methods_median_run() -> None:
    """One run of three had to share its machine."""
    ends = [{"wall_seconds": seconds, "trained_tokens": 100} for seconds in (50.0, 60.0, 500.0)]
    runs = [priced(f"grpo-{seed}", {0: dict.fromkeys(end, 0.0), 10: end}) for seed, end in enumerate(ends)]
    limit, spent, _ = equal_cost({"grpo": runs}, "wall_seconds")
    assert limit == pytest.approx(60.0) and spent["grpo-2"] == pytest.approx({0: 0.0, 10: 60.0})


def test_scores_between_two_evaluations_are_interpolated() -> None:
    """Over families that both asked; what is kept of short code is counted at each of them."""
    costs = {0: {"flops": 0.0}, 4: {"flops": 4.0}, 8: {"flops": 8.0}}
    run = priced("sft-0", costs, {4: [0, 1, 1, 0], 8: [1, 1, 0, 0, 1]})

    def reading(result: Result) -> Weights:
        return {4: 0.75, 8: 0.25}

    value = level([run], CODE_LONG, reading)
    assert value is not None and value.families == 4
    assert value.estimate.value == pytest.approx((0.25 + 1 + 0.75 + 0) / 4)
    kept = level([run], RETENTION, reading)
    assert kept is not None and kept.estimate.value == pytest.approx(1.0), "long and short have the same scores"


def test_stars_follow_holm_and_the_further_condition() -> None:
    def value(p_value: float | None) -> Value:
        return Value(Estimate(0.1, 0.0, 0.2), 3, 10, p_value)

    found = with_holm({"a": value(0.01), "b": value(0.03), "c": None, "d": value(None)})
    a, b, d = found["a"], found["b"], found["d"]
    assert a is not None and a.starred and a.p_value == pytest.approx(0.02)
    assert b is not None and b.starred and b.p_value == pytest.approx(0.03)
    assert found["c"] is None and d is not None and not d.starred
    refused = with_holm({"a": value(0.01)}, also=lambda row: row != "a")["a"]
    assert refused is not None and not refused.starred


def test_methods_come_in_the_order_of_tables_and_step_0_stands_for_a_missing_base() -> None:
    started = result("sft-0", BASE_LONG, BASE_SHORT, 0, step=0)
    assert list(methods_of([*RUNS, BASE, started, result("mine-0", LONG[0], SHORT[0], 0)])) == ["sft", "grpo", "mine"]
    base = base_of([*RUNS, started])
    assert base is not None and (base.name, base.trained) == ("step 0 of sft-0", False)
    assert base_of([started, BASE]) is BASE and base_of(RUNS) is None
