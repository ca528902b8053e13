"""Divergences against naive loops; estimators and their gradients against enumeration over the drawn token."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from longctx_rl.objective.divergences import anchor_distributions, categorical, sampled, with_tail
from longctx_rl.objective.spec import Direction, Divergence, Estimator
from longctx_rl.types import HiddenSignal, SampledSignal, TopKSignal

DIRECTIONS = [
    Divergence(direction="reverse"),
    Divergence(direction="forward"),
    Divergence(direction="js", js_mixture=0.5),
    Divergence(direction="js", js_mixture=0.1),
    Divergence(direction="js", js_mixture=0.85),
    Divergence(direction="entropy", entropy_scale=2.0),
]


def logits(seed: int, *shape: int) -> Tensor:
    return 2.0 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def distributions(seed: int, *shape: int) -> tuple[Tensor, Tensor]:
    return torch.log_softmax(logits(seed, *shape), -1), torch.log_softmax(logits(seed + 100, *shape), -1)


def naive(p: list[float], q: list[float], divergence: Divergence) -> float:
    def kl(a: list[float], b: list[float]) -> float:
        return sum(x * math.log(x / y) for x, y in zip(a, b, strict=True) if x > 0.0)

    if divergence.direction == "reverse":
        return kl(p, q)
    if divergence.direction == "forward":
        return kl(q, p)
    if divergence.direction == "entropy":
        share = min(1.0, -sum(y * math.log(y) for y in q if y > 0.0) / divergence.entropy_scale)
        return share * kl(q, p) + (1 - share) * kl(p, q)
    m = divergence.js_mixture
    mixture = [m * y + (1 - m) * x for x, y in zip(p, q, strict=True)]
    return m * kl(q, mixture) + (1 - m) * kl(p, mixture)


@pytest.mark.parametrize("divergence", DIRECTIONS, ids=str)
def test_categorical_equals_a_naive_loop(divergence: Divergence) -> None:
    logp, logq = distributions(0, 6, 9)
    expected = [naive(p.exp().tolist(), q.exp().tolist(), divergence) for p, q in zip(logp, logq, strict=True)]
    torch.testing.assert_close(
        categorical(logp, logq, divergence), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-14
    )


@pytest.mark.parametrize("divergence", DIRECTIONS, ids=str)
def test_categorical_gradient_equals_finite_differences(divergence: Divergence) -> None:
    anchor = torch.log_softmax(logits(1, 3, 5), -1)
    student = logits(2, 3, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: categorical(torch.log_softmax(z, -1), anchor, divergence), student)


def test_directions_are_not_each_other() -> None:
    logp, logq = distributions(3, 4, 8)
    reverse, forward = (categorical(logp, logq, Divergence(direction=d)) for d in ("reverse", "forward"))
    assert (reverse - forward).abs().min() > 1e-3
    torch.testing.assert_close(categorical(logq, logp, Divergence(direction="reverse")), forward)


@pytest.mark.parametrize("divergence", DIRECTIONS, ids=str)
def test_equal_distributions_have_divergence_zero_and_gradient_zero(divergence: Divergence) -> None:
    z = logits(4, 5, 7).requires_grad_()
    value = categorical(torch.log_softmax(z, -1), torch.log_softmax(z.detach(), -1), divergence)
    torch.autograd.backward(value.sum())
    assert value.abs().max() < 1e-14
    assert z.grad is not None and z.grad.abs().max() < 1e-14


def test_entropy_mixture_has_both_directions_as_limits() -> None:
    logp, logq = distributions(20, 6, 9)
    for scale, direction in ((1e-9, "forward"), (1e12, "reverse")):
        mixed = categorical(logp, logq, Divergence(direction="entropy", entropy_scale=scale))
        torch.testing.assert_close(mixed, categorical(logp, logq, Divergence(direction=direction)))  # type: ignore[arg-type]
    uniform = torch.full((1, 8), -math.log(8), dtype=torch.float64)
    certain = torch.log_softmax(60.0 * torch.eye(8, dtype=torch.float64)[:1], -1)
    student = torch.log_softmax(logits(21, 1, 8), -1)
    for anchor, direction in ((uniform, "forward"), (certain, "reverse")):
        mixed = categorical(student, anchor, Divergence(direction="entropy", entropy_scale=math.log(8)))
        torch.testing.assert_close(mixed, categorical(student, anchor, Divergence(direction=direction)))  # type: ignore[arg-type]


def top_k_signal(logq: Tensor, k: int) -> TopKSignal:
    best = logq.topk(k)
    return TopKSignal(best.indices, best.values)


def bucketed(logp: Tensor, signal: TopKSignal, divergence: Divergence) -> Tensor:
    pair = anchor_distributions(logp, signal, 1.0)
    assert pair is not None
    return categorical(*pair, divergence)


def test_tail_completes_the_mass_and_leaves_listed_tokens_alone() -> None:
    _, logq = distributions(5, 6, 12)
    listed = logq.topk(4).values
    extended = with_tail(listed)
    torch.testing.assert_close(extended[:, :4], listed, rtol=0, atol=0)
    torch.testing.assert_close(extended.exp().sum(-1), torch.ones(6).double())
    torch.testing.assert_close(extended[:, 4].exp(), 1.0 - listed.exp().sum(-1))


@pytest.mark.parametrize("divergence", DIRECTIONS, ids=str)
@pytest.mark.parametrize("k", [1, 3, 8])
def test_top_k_is_the_divergence_over_k_tokens_and_one_bucket(divergence: Divergence, k: int) -> None:
    logp, logq = distributions(6, 5, 9)
    signal = top_k_signal(logq, k)
    ours = bucketed(logp, signal, divergence)
    for row in range(5):
        ids = signal.ids[row].tolist()
        p, q = ([x[row, i].exp().item() for i in ids] for x in (logp, logq))
        expected = naive([*p, 1 - sum(p)], [*q, 1 - sum(q)], divergence)
        assert ours[row].item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("divergence", [d for d in DIRECTIONS if d.direction != "entropy"], ids=str)
def test_top_k_grows_from_below_to_the_exact_value(divergence: Divergence) -> None:
    logp, logq = distributions(7, 16, 11)
    exact = categorical(logp, logq, divergence)
    values = torch.stack([bucketed(logp, top_k_signal(logq, k), divergence) for k in range(1, 12)])
    assert (values[1:] - values[:-1]).min() > -1e-12
    assert values[0].min() >= 0.0
    assert (values[0] < exact - 1e-3).all()
    torch.testing.assert_close(values[-1], exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("divergence", DIRECTIONS, ids=str)
def test_top_k_of_the_whole_vocabulary_has_the_exact_gradient(divergence: Divergence) -> None:
    anchor = torch.log_softmax(logits(8, 4, 7), -1)
    found = []
    for signal in (None, top_k_signal(anchor, 7)):
        z = logits(9, 4, 7).requires_grad_()
        logp = torch.log_softmax(z, -1)
        value = categorical(logp, anchor, divergence) if signal is None else bucketed(logp, signal, divergence)
        torch.autograd.backward(value.sum())
        found.append(z.grad)
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("divergence", DIRECTIONS, ids=str)
def test_top_k_gradient_contains_the_tail(divergence: Divergence) -> None:
    """Finite differences through the bucket; leaving the tail out or renormalising gives another gradient."""
    anchor = torch.log_softmax(logits(10, 3, 8), -1)
    signal = top_k_signal(anchor, 3)
    student = logits(11, 3, 8).requires_grad_()

    def value(z: Tensor) -> Tensor:
        return bucketed(torch.log_softmax(z, -1), signal, divergence)

    assert torch.autograd.gradcheck(value, student)
    (gradient,) = torch.autograd.grad(value(student).sum(), student)
    unlisted = torch.ones(3, 8, dtype=torch.bool).scatter(1, signal.ids, False)
    assert gradient[unlisted].abs().min() > 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_top_k_of_a_certain_teacher_is_finite(dtype: torch.dtype) -> None:
    anchor = torch.tensor([[0.0, -200.0, -200.0, -200.0]], dtype=dtype)
    z = torch.tensor([[30.0, 0.0, -5.0, 3.0]], dtype=dtype, requires_grad=True)
    for divergence in DIRECTIONS:
        signal = top_k_signal(torch.log_softmax(anchor, -1), 2)
        value = bucketed(torch.log_softmax(z, -1), signal, divergence)
        (gradient,) = torch.autograd.grad(value.sum(), z)
        assert torch.isfinite(value).all()
        assert torch.isfinite(gradient).all()


def test_anchor_temperature_divides_its_logits() -> None:
    generator = torch.Generator().manual_seed(12)
    hidden = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    head = torch.randn(9, 6, generator=generator, dtype=torch.float64)
    logp = torch.log_softmax(logits(13, 4, 9), -1)
    pair = anchor_distributions(logp, HiddenSignal(hidden, head), 0.6)
    assert pair is not None
    expected = torch.log_softmax(torch.einsum("th,vh->tv", hidden, head) / 0.6, -1)
    torch.testing.assert_close(pair[1], expected)


def test_anchor_with_a_larger_vocabulary_is_compared_on_the_shared_rows() -> None:
    generator = torch.Generator().manual_seed(14)
    hidden = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    head = torch.randn(12, 6, generator=generator, dtype=torch.float64)
    pair = anchor_distributions(torch.log_softmax(logits(15, 4, 9), -1), HiddenSignal(hidden, head), 1.0)
    assert pair is not None
    student, anchor = pair
    assert student.shape == anchor.shape == (4, 9)
    torch.testing.assert_close(anchor, torch.log_softmax(hidden @ head[:9].T, -1))


def test_sampled_signal_has_no_distribution() -> None:
    logp, _ = distributions(16, 2, 5)
    assert anchor_distributions(logp, SampledSignal(torch.zeros(2)), 1.0) is None


def expectation(logp: Tensor, logq: Tensor, estimator: Estimator) -> Tensor:
    """Exact mean of the estimate over the token drawn from the student; the draw itself carries no gradient."""
    return (logp.detach().exp() * sampled(logp, logq, estimator)).sum(-1)


def test_sampled_estimators_are_schulmans() -> None:
    logp, logq = torch.tensor([-1.0, -2.0]).double(), torch.tensor([-1.5, -0.5]).double()
    ratio = (logq - logp).exp()  # q / p
    torch.testing.assert_close(sampled(logp, logq, "k1"), -ratio.log())
    torch.testing.assert_close(sampled(logp, logq, "k2"), ratio.log() ** 2 / 2)
    torch.testing.assert_close(sampled(logp, logq, "k3"), ratio - 1 - ratio.log())


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_k1_and_k3_have_the_reverse_kl_as_mean(estimator: Estimator) -> None:
    logp, logq = distributions(17, 6, 7)
    torch.testing.assert_close(
        expectation(logp, logq, estimator), categorical(logp, logq, Divergence(direction="reverse"))
    )


def test_k2_is_biased_and_third_order_close() -> None:
    z, direction = logits(18, 4, 7), logits(19, 4, 7)
    logp = torch.log_softmax(z, -1)
    errors = []
    for step in (0.01, 0.005):
        logq = torch.log_softmax(z + step * direction, -1)
        errors.append((expectation(logp, logq, "k2") - categorical(logp, logq, Divergence(direction="reverse"))).abs())
    assert errors[0].min() > 0.0
    torch.testing.assert_close(errors[0] / errors[1], torch.full((4,), 8.0).double(), rtol=0.1, atol=0)


def expected_gradient(z: Tensor, logq: Tensor, value: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    logp = torch.log_softmax(z, -1)
    return torch.autograd.grad(value(logp, logq).sum(), z)[0]


@pytest.mark.parametrize(
    ("estimator", "direction", "other"), [("k2", "reverse", "forward"), ("k3", "forward", "reverse")]
)
def test_expected_gradient_of_a_sampled_loss(estimator: Estimator, direction: Direction, other: Direction) -> None:
    """As losses, k2 follows the reverse KL's gradient and k3 the forward KL's."""
    z, logq = logits(20, 5, 8).requires_grad_(), torch.log_softmax(logits(21, 5, 8), -1)
    ours = expected_gradient(z, logq, lambda p, q: expectation(p, q, estimator))
    exact = expected_gradient(z, logq, lambda p, q: categorical(p, q, Divergence(direction=direction)))
    wrong = expected_gradient(z, logq, lambda p, q: categorical(p, q, Divergence(direction=other)))
    torch.testing.assert_close(ours, exact, rtol=1e-10, atol=1e-13)
    assert (ours - wrong).abs().max() > 1e-2


def test_k1_as_a_loss_does_not_see_the_anchor() -> None:
    """Per token its gradient is the same for every anchor, and in the mean it is zero: why it is refused as a loss."""
    z = logits(22, 5, 8).requires_grad_()
    found = []
    for seed in (23, 24):
        logq = torch.log_softmax(logits(seed, 5, 8), -1)
        found.append(expected_gradient(z, logq, lambda p, q: sampled(p, q, "k1")[:, 3]))
        mean = expected_gradient(z, logq, lambda p, q: expectation(p, q, "k1"))
        assert mean.abs().max() < 1e-14
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    assert found[0].abs().max() > 0.1
