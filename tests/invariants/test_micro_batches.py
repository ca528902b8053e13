"""A step's gradient does not depend on how its groups are split into rows, nor on how rows are accumulated."""

import pytest
import torch
from torch import Tensor

from longctx_rl.data.packing import count, empty_row, pack, plan_rows
from longctx_rl.objective.divergences import Divergence
from longctx_rl.objective.terms import Objective, objective
from longctx_rl.policy.frozen import FrozenScorer
from longctx_rl.policy.policy import Policy
from longctx_rl.policy.scoring import Anchor
from longctx_rl.types import Denominators, RolloutGroup
from packed_builders import CPU, gradients, group, head_weight, relative_difference, tiny_model

SAMPLED = [
    group(prompt, lens, seed, advantages=True, sampler=True, masked=seed % 2 == 0)
    for seed, (prompt, lens) in enumerate([(5, (4, 9, 2)), (11, (1, 3, 3)), (3, (7, 8, 1)), (8, (2, 2, 12))])
]
RECORDED = [group(prompt, (length,), seed) for seed, (prompt, length) in enumerate([(5, 9), (11, 1), (3, 4), (8, 6)])]
EXACT, FORWARD = Divergence(), Divergence("forward")
K1 = Divergence("reverse", "k1", placement="advantage")

METHODS = {
    "sft": (RECORDED, Objective(ce=1.0), {}),
    "kd": (RECORDED, Objective(kd=1.0, ce=0.2), {"kd": FORWARD}),
    "grpo": (SAMPLED, Objective(pg=1.0, ref=0.04, importance_cap=1.5), {"ref": Divergence("reverse", "k3")}),
    "opd": (SAMPLED, Objective(kd=1.0), {"kd": EXACT}),
    "dgrpo": (SAMPLED, Objective(pg=1.0, kd=0.5), {"kd": EXACT}),
    "dgrpo-topk": (SAMPLED, Objective(pg=1.0, kd=0.5), {"kd": Divergence("js", "topk", top_k=5)}),
    "dgrpo-k1": (SAMPLED, Objective(pg=1.0, kd=0.5, kd_in_advantage=True), {"kd": K1}),
}


def step(
    groups: list[RolloutGroup],
    spec: Objective,
    divergences: dict[str, Divergence],
    rows: list[list[int]],
    denominators: Denominators,
    *,
    chunk: int = 7,
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Gradients and summed metrics of one step over ``rows`` of groups; an empty list is an empty row."""
    policy, teacher = Policy(tiny_model(0), chunk=chunk), tiny_model(1)
    head = head_weight(teacher)
    scorer = FrozenScorer(teacher, chunk=chunk).freeze()
    sums: dict[str, float] = {}
    for row in rows:
        packed = pack([groups[index] for index in row], CPU) if row else empty_row(CPU)
        anchors = {
            name: Anchor(
                divergence,
                scorer(packed, estimator=divergence.estimator, temperature=0.9, top_k=divergence.top_k, head=head),
            )
            for name, divergence in divergences.items()
        }
        scores = policy(packed, temperature=0.9, anchors=anchors)
        output = objective(spec, scores, packed, denominators)
        torch.autograd.backward(output.loss)
        for name, value in output.sums.items():
            sums[name] = sums.get(name, 0.0) + value.item()
    return gradients(policy), sums


@pytest.mark.parametrize("aggregate", ["sequence", "token", "constant"])
@pytest.mark.parametrize("method", METHODS)
def test_gradients_and_metrics_do_not_depend_on_the_rows(method: str, aggregate: str) -> None:
    groups, template, divergences = METHODS[method]
    spec = Objective(
        **{field: getattr(template, field) for field in template.__slots__} | {"aggregate": aggregate, "max_length": 16}
    )
    denominators = count(groups)
    reference, expected = step(groups, spec, divergences, [[0, 1, 2, 3]], denominators)
    plans = [plan_rows(groups, budget) for budget in (1, 30, 40)]
    assert len({len(plan) for plan in plans}) > 1
    for rows in [*plans, [[3, 1], [], [0], [2]]]:
        found, sums = step(groups, spec, divergences, rows, denominators)
        assert relative_difference(found, reference) < 1e-6  # weights and advantages of a row are float32
        assert sums == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_chunk_size_does_not_change_the_gradient() -> None:
    groups, spec, divergences = METHODS["dgrpo"]
    found = [step(groups, spec, divergences, [[0, 1], [2, 3]], count(groups), chunk=c)[0] for c in (1, 1000)]
    assert relative_difference(found[0], found[1]) < 1e-12


def test_local_denominators_would_change_it() -> None:
    """What goes wrong when each row is divided by its own counts and rows are averaged."""
    groups, spec, divergences = METHODS["dgrpo"]
    spec = Objective(pg=spec.pg, kd=spec.kd, aggregate="token")
    whole, _ = step(groups, spec, divergences, [[0, 1, 2, 3]], count(groups))
    rows = [[0], [1, 2, 3]]
    local: dict[str, Tensor] = {}
    for row in rows:
        part = [groups[index] for index in row]
        for name, gradient in step(part, spec, divergences, [list(range(len(part)))], count(part))[0].items():
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
