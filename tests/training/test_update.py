"""One optimizer step over prepared rows: the angle between policy gradient and teacher."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from longctx_rl.engine import distributed, startup
from longctx_rl.objective.spec import Objective
from longctx_rl.objective.terms import objective
from longctx_rl.policy.loading import load_model
from longctx_rl.training.assembly import build_parts
from longctx_rl.training.groups import sampled_groups, with_teacher_gaps
from longctx_rl.training.parts import Parts
from longctx_rl.training.state import Stopwatch
from longctx_rl.training.step import PreparedRow, global_count, prepare, update
from longctx_rl.types import Denominators, RolloutGroup
from objective_specs import method
from small_runs import smoke


def gradient_of(parts: Parts, rows: list[PreparedRow], spec: Objective, denominators: Denominators) -> Tensor:
    """Gradient by torch alone, flat, in float64."""
    with parts.engine.full_weights() as policy:
        parameters = list(policy.parameters())
    total = [torch.zeros_like(parameter, dtype=torch.float64) for parameter in parameters]
    for row in rows:
        scores = parts.engine.forward(row.packed, temperature=1.0, anchors=row.anchors)
        loss = objective(spec, scores, row.packed, denominators, max_length=1).loss
        total = [a + b.double() for a, b in zip(total, torch.autograd.grad(loss, parameters), strict=True)]
    return torch.cat([gradient.flatten() for gradient in total])


def gaps_one_by_one(groups: list[RolloutGroup]) -> list[tuple[float, ...]]:
    """log p(student) - log p(teacher) of each token by two plain models, one completion at a time, [C] each."""
    student, teacher = load_model("mini-student"), load_model("mini-teacher")
    gaps = []
    for group in groups:
        for one in group.completions:
            ids = torch.tensor([group.prompt_ids + one.token_ids])
            place = torch.tensor(one.token_ids)[:, None]
            with torch.no_grad():
                logits = [m(ids).logits[0, len(group.prompt_ids) - 1 : -1] for m in (student, teacher)]
            ours, theirs = (torch.log_softmax(x.float(), -1).gather(-1, place)[:, 0] for x in logits)
            gaps.append(tuple((ours - theirs).tolist()))
    return gaps


@pytest.mark.parametrize("ce", [0.0, pytest.param(0.3, marks=pytest.mark.slow)])
def test_cosine_of_policy_gradient_and_teacher(ce: float, tmp_path: Path) -> None:
    """On the shipped pair. The step and the other metrics are those of a step that measures nothing."""
    config = smoke(
        tmp_path,
        "+algo=dgrpo",
        "rollout.max_new_tokens=64",
        "data.lengths=[768]",  # where student and teacher disagree
        "batch.micro_batch_tokens=1280",
        "optim.lr=0",
        f"algo.weights.ce={ce}",
    )
    startup.init(config)
    try:
        parts, watch = build_parts(config), Stopwatch()
        groups = sampled_groups(parts, 0, 0, watch).groups
        denominators = global_count(groups)
        rows = prepare(parts, groups, watch)
        assert len(rows) == 2
        apart = gaps_one_by_one(groups)
        pg = gradient_of(parts, rows, method(pg=1.0), denominators)
        kd = gradient_of(parts, rows, method(kd=0.5), denominators)
        expected = nn.functional.cosine_similarity(pg, kd, dim=0).item()
        assert pg.norm() > 0 and abs(expected) < 0.99
        whole = gradient_of(parts, rows, config.algo, denominators)
        (measured, metrics, gaps), (_, plain, plain_gaps) = (
            update(parts, rows, denominators, watch, compare_terms=compare) for compare in (True, False)
        )
    finally:
        distributed.shutdown()
    assert metrics.pop("grad/pg_kd_cosine") == pytest.approx(expected, abs=1e-4)
    assert metrics == pytest.approx(plain, rel=1e-5, abs=1e-7)
    assert gaps is not None and plain_gaps is not None and torch.equal(gaps, plain_gaps)
    assert gaps.mean().item() == pytest.approx(-metrics["teacher/logprob_gap"], rel=1e-5)
    (kept,) = with_teacher_gaps(groups, gaps, 1)
    assert [one.teacher_gap for one in kept.completions] == [pytest.approx(gap, abs=1e-4) for gap in apart[:8]]
    assert max(map(max, apart)) > 0.1
    assert measured.grad_norm == pytest.approx(whole.norm().item(), rel=1e-5)
