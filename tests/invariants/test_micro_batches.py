"""A step's gradient does not depend on how its groups are split into rows, nor on how rows are accumulated."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from invariants.method_cases import MAX_LENGTH, METHODS, SAMPLED, TEMPERATURE, Teacher
from longctx_rl.data.packing import count, empty_row, pack, plan_rows
from longctx_rl.objective.spec import Objective
from longctx_rl.objective.terms import objective
from longctx_rl.policy.policy import Policy
from longctx_rl.types import Denominators, RolloutGroup
from packed_builders import CPU, gradients, relative_difference, tiny_model


def step(
    groups: list[RolloutGroup], spec: Objective, rows: list[list[int]], denominators: Denominators, *, chunk: int = 7
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Return gradients and summed metrics of one step over ``rows`` of groups; an empty list is an empty row."""
    policy, teacher = Policy(tiny_model(0), chunk=chunk), Teacher()
    sums: dict[str, float] = {}
    for row in rows:
        packed = pack([groups[index] for index in row], CPU) if row else empty_row(CPU)
        scores = policy(packed, temperature=TEMPERATURE, anchors=teacher.anchors(spec, packed))
        output = objective(spec, scores, packed, denominators, max_length=MAX_LENGTH)
        torch.autograd.backward(output.loss)
        for name, value in output.sums.items():
            sums[name] = sums.get(name, 0.0) + value.item()
    return gradients(policy), sums


@pytest.mark.parametrize("aggregate", ["sequence", "token", "constant"])
@pytest.mark.parametrize("method", METHODS)
def test_gradients_and_metrics_do_not_depend_on_the_rows(method: str, aggregate: str) -> None:
    groups, spec = METHODS[method]
    spec = replace(spec, aggregate=aggregate)
    denominators = count(groups)
    reference, expected = step(groups, spec, [[0, 1, 2, 3]], denominators)
    plans = [plan_rows(groups, budget) for budget in (1, 30, 40)]
    assert len({len(plan) for plan in plans}) > 1
    for rows in [*plans, [[3, 1], [], [0], [2]]]:
        found, sums = step(groups, spec, rows, denominators)
        assert relative_difference(found, reference) < 1e-6  # weights and advantages of a row are float32
        assert sums == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_chunk_size_does_not_change_the_gradient() -> None:
    groups, spec = METHODS["dgrpo"]
    found = [step(groups, spec, [[0, 1], [2, 3]], count(groups), chunk=c)[0] for c in (1, 1000)]
    assert relative_difference(found[0], found[1]) < 1e-12


def test_local_denominators_would_change_it() -> None:
    """The error if each row is divided by its own counts and rows are averaged."""
    groups, spec = METHODS["dgrpo"]
    spec = replace(spec, aggregate="token")
    whole, _ = step(groups, spec, [[0, 1, 2, 3]], count(groups))
    rows = [[0], [1, 2, 3]]
    local: dict[str, Tensor] = {}
    for row in rows:
        part = [groups[index] for index in row]
        for name, gradient in step(part, spec, [list(range(len(part)))], count(part))[0].items():
            local[name] = local.get(name, torch.zeros_like(gradient)) + gradient / len(rows)
    assert relative_difference(local, whole) > 0.05


def test_every_plan_keeps_all_groups_in_order_within_the_budget() -> None:
    for budget in range(1, 80):
        rows = plan_rows(SAMPLED, budget)
        assert [index for row in rows for index in row] == list(range(len(SAMPLED)))
        for row in rows:
            assert len(row) == 1 or sum(SAMPLED[index].num_tokens for index in row) <= budget


def test_counts_add_over_groups() -> None:
    whole = count(SAMPLED)
    parts = [count([one]) for one in SAMPLED]
    assert whole == Denominators(sum(p.num_sequences for p in parts), sum(p.num_tokens for p in parts))
    row = pack(SAMPLED, CPU)
    assert (whole.num_sequences, whole.num_tokens) == (row.num_sequences, row.num_loss_tokens)
    assert torch.equal(row.sequence_lens, torch.bincount(row.sequence_ids, minlength=row.num_sequences))
