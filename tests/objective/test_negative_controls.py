"""Two estimators of the divergence to the teacher that look right and do not teach; see docs/algorithms.md."""

import torch
from torch import Tensor

from longctx_rl.objective.divergences import anchor_distributions, categorical
from longctx_rl.objective.spec import Divergence
from longctx_rl.types import TopKSignal

VOCABULARY, K = 12, 3


def logits(seed: int) -> Tensor:
    return torch.randn(1, VOCABULARY, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def signal(logq: Tensor) -> TopKSignal:
    best = logq.topk(K)
    return TopKSignal(best.indices, best.values)


def with_bucket(z: Tensor, listed: TopKSignal) -> Tensor:
    pair = anchor_distributions(torch.log_softmax(z, -1), listed, 1.0)
    assert pair is not None
    return categorical(*pair, Divergence()).sum()


def without_bucket(z: Tensor, listed: TopKSignal) -> Tensor:
    logp = torch.log_softmax(z, -1).gather(-1, listed.ids)
    return (logp.exp() * (logp - listed.logprobs)).sum()


def test_without_the_tails_bucket_descent_moves_mass_off_the_teachers_tokens() -> None:
    """The sum over the list alone is lowest, and negative, for a student that is below the teacher on all of it."""
    listed = signal(torch.log_softmax(logits(0), -1))
    masses = {}
    for name, loss in (("bucket", with_bucket), ("none", without_bucket)):
        z = (3.0 * torch.eye(VOCABULARY, dtype=torch.float64)[listed.ids[0]].sum(0, keepdim=True)).requires_grad_()
        before = torch.softmax(z, -1).gather(-1, listed.ids).sum().item()
        for _ in range(2000):
            (gradient,) = torch.autograd.grad(loss(z, listed), z)
            z = (z - 0.5 * gradient).detach().requires_grad_()
        masses[name] = torch.softmax(z, -1).gather(-1, listed.ids).sum().item()
    teacher = listed.logprobs.exp().sum().item()
    assert before > teacher
    assert abs(masses["bucket"] - teacher) < 1e-3
    assert masses["none"] < 0.6 * teacher
    assert without_bucket(z, listed).item() < -0.05


def test_a_top_k_divergence_in_the_advantage_has_an_expected_gradient_of_zero() -> None:
    """It is the same number whichever token is sampled, so it is a baseline; k1 at the sampled token is not."""
    z = logits(1).requires_grad_()
    logp, logq = torch.log_softmax(z, -1), torch.log_softmax(logits(2), -1)
    divergence = with_bucket(z, signal(logq)).detach()
    assert divergence > 0.05
    p = logp.detach().exp()
    by_token = [torch.autograd.grad(logp[0, token], z, retain_graph=True)[0] for token in range(VOCABULARY)]
    top_k = sum(p[0, token] * divergence * by_token[token] for token in range(VOCABULARY))
    k1 = sum(p[0, token] * (logp - logq).detach()[0, token] * by_token[token] for token in range(VOCABULARY))
    (exact,) = torch.autograd.grad((logp.exp() * (logp - logq)).sum(), z)
    assert isinstance(top_k, Tensor) and isinstance(k1, Tensor)
    assert top_k.abs().max() < 1e-15
    torch.testing.assert_close(k1, exact)
