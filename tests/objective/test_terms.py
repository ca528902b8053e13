"""The objective and its terms on given log-probabilities."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from longctx_rl.objective.aggregation import token_weights
from longctx_rl.objective.spec import Aggregate, Objective
from longctx_rl.objective.terms import LossOutput, objective, policy_gradient
from longctx_rl.types import Denominators, PackedGroups, TokenScores
from objective_specs import method
from packed_builders import token_row

LENS = (3, 1, 5, 2)
TOTAL = sum(LENS)
COUNTS = Denominators(num_sequences=len(LENS), num_tokens=TOTAL)


def values(seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(TOTAL, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scored(logprobs: Tensor, **divergences: Tensor) -> TokenScores:
    return TokenScores(logprobs, torch.zeros_like(logprobs), divergences, {})


def run(
    spec: Objective,
    logprobs: Tensor,
    row: PackedGroups,
    denominators: Denominators = COUNTS,
    *,
    max_length: int = 1,
    **divergences: Tensor,
) -> tuple[LossOutput, Tensor]:
    """Loss and the gradient in the log-probabilities."""
    leaf = logprobs.clone().requires_grad_()
    output = objective(spec, scored(leaf, **divergences), row, denominators, max_length=max_length)
    (gradient,) = torch.autograd.grad(output.loss, leaf)
    return output, gradient


def naive_sum(
    term: Tensor, aggregate: Aggregate, max_length: int = 10, sequences: int = 4, tokens: int = TOTAL
) -> float:
    total, position = 0.0, 0
    for length in LENS:
        for _ in range(length):
            weight = {
                "sequence": 1 / (sequences * length),
                "token": 1 / tokens,
                "constant": 1 / (sequences * max_length),
            }[aggregate]
            total += weight * term[position].item()
            position += 1
    return total


@pytest.mark.parametrize("aggregate", ["sequence", "token", "constant"])
def test_aggregation_equals_a_naive_loop(aggregate: Aggregate) -> None:
    logprobs = values(0)
    spec = method(ce=1.0, aggregate=aggregate)
    output, gradient = run(spec, logprobs, token_row(LENS), max_length=10)
    assert output.loss.item() == pytest.approx(naive_sum(-logprobs, aggregate), rel=1e-6)
    assert gradient.max() < 0.0


@pytest.mark.parametrize("aggregate", ["sequence", "token", "constant"])
def test_denominators_are_the_given_ones_and_not_the_rows(aggregate: Aggregate) -> None:
    logprobs = values(1)
    spec = method(ce=1.0, aggregate=aggregate)
    output, _ = run(spec, logprobs, token_row(LENS), Denominators(num_sequences=12, num_tokens=44), max_length=10)
    expected = naive_sum(-logprobs, aggregate, sequences=12, tokens=44)
    assert output.loss.item() == pytest.approx(expected, rel=1e-6)


def test_a_sequence_without_loss_tokens_counts_as_a_sequence() -> None:
    weights = token_weights(
        torch.tensor([0, 0, 2]),
        torch.tensor([2, 0, 1]),
        aggregate="sequence",
        denominators=Denominators(num_sequences=3, num_tokens=3),
        max_length=1,
    )
    torch.testing.assert_close(weights, torch.tensor([1 / 6, 1 / 6, 1 / 3]))


def test_weights_sum_to_one_over_a_whole_batch() -> None:
    row = token_row(LENS)
    for aggregate in ("sequence", "token"):
        weights = token_weights(
            row.sequence_ids, row.sequence_lens, aggregate=aggregate, denominators=COUNTS, max_length=1
        )
        assert weights.sum().item() == pytest.approx(1.0)


RATIOS = torch.tensor([0.5, 0.79, 0.81, 1.0, 1.19, 1.21, 1.27, 1.29, 2.0], dtype=torch.float64)


@pytest.mark.parametrize("advantage", [1.5, -1.5])
@pytest.mark.parametrize(("low", "high"), [(0.2, 0.2), (0.2, 0.28), (0.1, 0.3)])
def test_clip_removes_the_gradient_exactly_where_it_should(advantage: float, low: float, high: float) -> None:
    logprobs = RATIOS.log().requires_grad_()
    advantages = torch.full_like(RATIOS, advantage)
    spec = method(pg=1.0, clip_low=low, clip_high=high)
    loss, ratio, removed = policy_gradient(logprobs, torch.zeros_like(RATIOS), advantages, spec)
    (gradient,) = torch.autograd.grad(loss.sum(), logprobs)
    torch.testing.assert_close(ratio.detach(), RATIOS)
    for i, r in enumerate(RATIOS.tolist()):
        clipped = r > 1 + high if advantage > 0 else r < 1 - low
        bounded = min(max(r, 1 - low), 1 + high)
        assert loss[i].item() == pytest.approx(-min(r * advantage, bounded * advantage))
        assert removed[i].item() == clipped
        assert gradient[i].item() == pytest.approx(0.0 if clipped else -advantage * r)


def test_clip_higher_keeps_tokens_that_the_symmetric_clip_drops() -> None:
    """DAPO's range [0.8, 1.28]: a ratio of 1.25 still learns from a positive advantage."""
    logprobs, zeros, ones = torch.tensor([1.25]).log().requires_grad_(), torch.zeros(1), torch.ones(1)
    for high, learns in ((0.2, False), (0.28, True)):
        loss = policy_gradient(logprobs, zeros, ones, method(pg=1.0, clip_high=high))[0].sum()
        assert torch.autograd.grad(loss, logprobs)[0].abs().item() == pytest.approx(1.25 if learns else 0.0)


SURROGATES = [(ratio, surrogate) for ratio in ("token", "sequence") for surrogate in ("clip", "cispo")]


@pytest.mark.parametrize(("ratio", "surrogate"), SURROGATES)
def test_every_surrogate_has_grpos_gradient_where_a_rollout_is_used_once(ratio: str, surrogate: str) -> None:
    row = token_row(LENS, advantages=values(40).float())
    grpo = run(method(pg=1.0), values(41), row)[1]
    gradient = run(method(pg=1.0, ratio=ratio, surrogate=surrogate), values(41), row)[1]
    torch.testing.assert_close(gradient, grpo, rtol=1e-12, atol=1e-15)


def test_cispo_weighs_each_tokens_gradient_with_its_capped_ratio() -> None:
    logprobs, old, advantages = values(42, 0.4), values(43, 0.4).float(), values(44).float()
    row = token_row(LENS, advantages=advantages, old_logprobs=old)
    output, gradient = run(method(pg=1.0, surrogate="cispo", aggregate="token"), logprobs, row)
    ratio = (logprobs - old.double()).exp()
    assert 0 < (ratio > 1.2).sum() < TOTAL and (ratio < 0.8).any()
    torch.testing.assert_close(gradient, -ratio.clamp(max=1.2) * advantages.double() / TOTAL, rtol=1e-6, atol=1e-9)
    assert output.sums["policy/clip_frac"].item() == pytest.approx((ratio > 1.2).double().mean().item())


def test_sequence_ratio_is_the_geometric_mean_and_clips_whole_sequences() -> None:
    """GSPO: with an advantage for each sequence, loss and gradient are those of one ratio for each sequence."""
    logprobs, old = values(45, 0.5), values(46, 0.5).float()
    each = torch.tensor([1.0, -0.5, 2.0, -1.5])
    row = token_row(LENS, advantages=torch.repeat_interleave(each, torch.tensor(LENS)), old_logprobs=old)
    output, gradient = run(method(pg=1.0, ratio="sequence"), logprobs, row)
    leaf = logprobs.clone().requires_grad_()
    ratios = torch.stack([gap.mean().exp() for gap in (leaf - old.double()).split(list(LENS))])
    surrogate = torch.minimum(ratios * each, ratios.clamp(0.8, 1.2) * each)
    (expected,) = torch.autograd.grad(-surrogate.mean(), leaf)
    assert output.loss.item() == pytest.approx(-surrogate.mean().item(), rel=1e-6)
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-9)
    assert (expected == 0).any() and (expected != 0).any()


def test_sequence_ratio_gives_each_token_its_own_advantage() -> None:
    """GSPO-token: a token's gradient has its own advantage, not the mean of its sequence's."""
    logprobs, old, advantages = values(47, 0.05), values(48, 0.05).float(), values(49).float()
    row = token_row(LENS, advantages=advantages, old_logprobs=old)
    _, gradient = run(method(pg=1.0, ratio="sequence", aggregate="token"), logprobs, row)
    means = [gap.mean() for gap in (logprobs - old.double()).split(list(LENS))]
    shared = torch.repeat_interleave(torch.stack(means).exp(), torch.tensor(LENS))
    torch.testing.assert_close(gradient, -shared * advantages.double() / TOTAL, rtol=1e-6, atol=1e-9)


def test_unlikely_tokens_get_a_constant_negative_advantage() -> None:
    logprobs = torch.linspace(-4.0, -0.1, TOTAL, dtype=torch.float64)
    unlikely = logprobs.exp() < 0.3
    spec = method(unlikely=0.7, unlikely_below=0.3, aggregate="token")
    output, gradient = run(spec, logprobs, token_row(LENS))
    assert 0 < unlikely.sum() < TOTAL
    torch.testing.assert_close(gradient, 0.7 * unlikely.double() / TOTAL)
    assert output.sums["policy/unlikely_frac"].item() == pytest.approx(unlikely.double().mean().item())
    row = token_row(LENS, advantages=values(50).float())
    both = run(method(pg=1.0, unlikely=0.7, unlikely_below=0.3, aggregate="token"), logprobs, row)[1]
    torch.testing.assert_close(both, run(method(pg=1.0, aggregate="token"), logprobs, row)[1] + gradient)


def test_first_update_has_ratio_one_and_the_plain_policy_gradient() -> None:
    advantages = values(2).float()
    row = token_row(LENS, advantages=advantages)
    output, gradient = run(method(pg=1.0, aggregate="token"), values(3), row)
    torch.testing.assert_close(gradient, -advantages.double() / TOTAL, rtol=1e-6, atol=0)
    assert output.sums["policy/ratio_mean"].item() == pytest.approx(1.0)
    assert output.maxima["policy/ratio_max"].item() == 1.0
    assert output.sums["policy/clip_frac"].item() == 0.0


def test_later_updates_use_the_recorded_old_logprobs() -> None:
    logprobs, old, advantages = values(4, 0.3), values(5, 0.3), values(6).float()
    row = token_row(LENS, advantages=advantages, old_logprobs=old.float())
    output, _ = run(method(pg=1.0, aggregate="token"), logprobs, row)
    ratio = (logprobs - old.float().double()).exp()
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
    assert output.loss.item() == pytest.approx(-surrogate.mean().item(), rel=1e-6)
    clipped = ((advantages > 0) & (ratio > 1.2)) | ((advantages < 0) & (ratio < 0.8))
    assert 0 < clipped.sum() < TOTAL
    assert output.sums["policy/clip_frac"].item() == pytest.approx(clipped.double().mean().item(), rel=1e-6)


@pytest.mark.parametrize("cap", [0.5, 2.0, 1e9])
def test_truncated_importance_weights(cap: float) -> None:
    """Each token's policy gradient is multiplied by min(old / sampler, cap), which is not differentiated."""
    logprobs, old, drawn, advantages = values(7, 0.1), values(8, 0.1), values(9, 1.5).float(), values(10).float()
    row = token_row(LENS, advantages=advantages, old_logprobs=old.float(), sampler_logprobs=drawn)
    plain, weighted = (run(method(pg=1.0, importance_cap=c, aggregate="token"), logprobs, row)[1] for c in (None, cap))
    importance = (old.float().double() - drawn.double()).exp()
    assert cap > 1e8 or (importance > cap).any()
    torch.testing.assert_close(weighted, plain * importance.clamp(max=cap))


def test_sequences_far_from_the_sampler_are_masked() -> None:
    """The geometric mean of a sequence's ratios decides, against a loop over sequences."""
    logprobs, drawn, advantages = values(14, 0.1), values(15, 0.1).float(), values(16).float()
    row = token_row(LENS, advantages=advantages, sampler_logprobs=drawn)
    gap = logprobs - drawn.double()
    means = [float(part.mean()) for part in gap.split(list(LENS))]
    mask = math.exp(sorted(map(abs, means))[len(LENS) // 2 - 1] + 1e-9)
    kept = torch.cat(
        [torch.full((size,), float(abs(mean) <= math.log(mask))) for size, mean in zip(LENS, means, strict=True)]
    )
    assert 0 < kept.sum() < len(kept)
    plain = run(method(pg=1.0, aggregate="token"), logprobs, row)[1]
    output, masked = run(method(pg=1.0, importance_mask=mask, aggregate="token"), logprobs, row)
    torch.testing.assert_close(masked, plain * kept)
    assert float(output.sums["policy/importance_masked_frac"]) == pytest.approx(1 - float(kept.mean()))
    unmasked = run(method(pg=1.0, importance_mask=1e9, aggregate="token"), logprobs, row)[1]
    assert torch.equal(unmasked, plain)
    same = replace(row, sampler_logprobs=logprobs)
    both = method(pg=1.0, importance_mask=1.0001, importance_cap=3.0, aggregate="token")
    output, exact = run(both, logprobs, same)
    assert torch.equal(exact, run(method(pg=1.0, aggregate="token"), logprobs, same)[1])
    assert output.sums["policy/importance_masked_frac"] == output.sums["policy/importance_capped_frac"] == 0.0


def test_importance_weights_leave_the_other_terms_alone() -> None:
    logprobs = values(11)
    row = token_row(LENS, sampler_logprobs=values(12).float())
    kd = values(13).square().requires_grad_()
    losses = [
        objective(spec, scored(logprobs, kd=kd), row, COUNTS, max_length=1).loss
        for spec in (method(pg=1.0, ce=0.3, kd=0.5, importance_cap=cap) for cap in (None, 0.1))
    ]
    assert losses[0].item() == losses[1].item()


def test_importance_weights_without_sampler_logprobs_are_an_error() -> None:
    with pytest.raises(AssertionError, match="sampler"):
        run(method(pg=1.0, importance_cap=2.0), values(14), token_row(LENS))


def test_sampler_mismatch_is_k3_of_the_sampler_and_the_policy_before_the_update() -> None:
    old, drawn = values(15, 0.2), values(16, 0.2).float()
    row = token_row(LENS, old_logprobs=old.float(), sampler_logprobs=drawn)
    output, _ = run(method(pg=1.0), values(17), row)
    gap = old.float().double() - drawn.double()
    expected = (gap.exp() - 1 - gap).mean().item()
    assert output.sums["policy/sampler_mismatch"].item() == pytest.approx(expected, rel=1e-6)
    same, _ = run(method(ce=1.0), drawn.double(), replace(row, old_logprobs=None))
    assert same.sums["policy/sampler_mismatch"].item() == 0.0


def test_terms_add_with_their_coefficients() -> None:
    logprobs, kd, ref = values(18), values(19).square(), values(20).square()
    row = token_row(LENS, advantages=values(21).float())
    total, _ = run(method(ce=0.7, pg=1.3, kd=0.5, ref=0.04), logprobs, row, kd=kd, ref=ref)
    parts = {
        "ce": (0.7, -logprobs),
        "kd": (0.5, kd),
        "ref": (0.04, ref),
        "pg": (1.0, -1.3 * row.advantages),
    }
    expected = sum(weight * naive_sum(term, "sequence") for weight, term in parts.values())
    assert total.loss.item() == pytest.approx(expected, rel=1e-6)
    for name, (_, term) in parts.items():
        assert total.sums[f"loss/{name}"].item() == pytest.approx(naive_sum(term, "sequence"), rel=1e-6)
    assert total.sums["loss/total"].item() == total.loss.item()


@pytest.mark.parametrize("anchor", ["kd", "ref"])
def test_divergence_in_the_advantage_is_subtracted_and_not_differentiated(anchor: str) -> None:
    logprobs, gap = values(22), values(23)
    row = token_row(LENS, advantages=values(24).float())
    spec = method(pg=1.0, aggregate="token", in_advantage=anchor, **{anchor: 0.5})
    leaf = gap.clone().requires_grad_()
    output = objective(spec, scored(logprobs.clone().requires_grad_(), **{anchor: leaf}), row, COUNTS, max_length=1)
    assert torch.autograd.grad(output.loss, leaf, allow_unused=True)[0] is None
    _, gradient = run(spec, logprobs, row, COUNTS, **{anchor: gap})
    torch.testing.assert_close(gradient, -(row.advantages.double() - 0.5 * gap) / TOTAL, rtol=1e-6, atol=1e-9)
    assert output.sums[f"loss/{anchor}"].item() == pytest.approx(gap.mean().item(), rel=1e-6)


@pytest.mark.parametrize("anchor", ["kd", "ref"])
def test_divergence_in_the_advantage_is_that_of_the_policy_that_drew_the_tokens(anchor: str) -> None:
    """On later updates k1 stays log old - log anchor, and is not clipped away by what was learned since."""
    logprobs, old, anchored = values(25, 0.05), values(26, 0.05), values(27)
    row = token_row(LENS, advantages=values(28).float(), old_logprobs=old.float())
    spec = method(pg=2.0, aggregate="token", in_advantage=anchor, **{anchor: 0.5})
    _, gradient = run(spec, logprobs, row, COUNTS, **{anchor: logprobs - anchored})
    drawn = old.float().double()
    ratio, advantages = (logprobs - drawn).exp(), 2.0 * row.advantages.double() - 0.5 * (drawn - anchored)
    assert ((ratio > 0.8) & (ratio < 1.2)).all()
    torch.testing.assert_close(gradient, -ratio * advantages / TOTAL, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    "spec",
    [
        method(ce=1.0),
        method(pg=1.0, kd=0.5, importance_cap=2.0),
        method(kd=1.0, in_advantage="kd"),
        method(pg=1.0, ref=0.1, aggregate="constant"),
        method(kd=1.0, aggregate="token"),
        method(pg=1.0, ratio="sequence", surrogate="cispo"),
        method(unlikely=1.0),
        method(),
    ],
    ids=str,
)
def test_a_row_without_loss_tokens_adds_zero_and_still_reaches_the_scores(spec: Objective) -> None:
    leaf = torch.zeros(0, dtype=torch.float64, requires_grad=True)
    output = objective(spec, scored(leaf, kd=leaf * 1.0, ref=leaf * 1.0), token_row(()), COUNTS, max_length=1)
    assert output.loss.item() == 0.0
    assert all(value.item() == 0.0 for value in output.sums.values())
    torch.autograd.backward(output.loss)
    assert leaf.grad is not None
