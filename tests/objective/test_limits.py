"""The limits that make five methods one objective, from hidden states to gradients."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from longctx_rl.objective.spec import Divergence, Objective, Weights
from longctx_rl.objective.terms import objective
from longctx_rl.policy.scoring import Anchor, score_tokens
from longctx_rl.types import (
    Denominators,
    HiddenSignal,
    PackedGroups,
    SampledSignal,
    TeacherSignal,
    TokenScores,
    TopKSignal,
)
from objective_specs import method
from packed_builders import token_row

LENS = (3, 1, 4)
TOTAL, WIDTH, VOCABULARY, K = sum(LENS), 6, 11, 4
COUNTS = Denominators(num_sequences=len(LENS), num_tokens=TOTAL)
TEMPERATURE = 0.7


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


HIDDEN, HEAD = normal(0, TOTAL, WIDTH), normal(1, VOCABULARY, WIDTH)
TARGETS = torch.randint(VOCABULARY, (TOTAL,), generator=torch.Generator().manual_seed(2))
ADVANTAGES = normal(3, TOTAL).float()
TEACHER = (normal(4, TOTAL, 5), normal(5, VOCABULARY, 5))
OTHER_TEACHER = (normal(6, TOTAL, 5), normal(7, VOCABULARY, 5))
STUDENT = (HIDDEN, HEAD)

DIVERGENCES = [
    Divergence(direction="reverse", estimator="exact"),
    Divergence(direction="forward", estimator="exact"),
    Divergence(direction="js", estimator="exact"),
    Divergence(direction="entropy", estimator="exact"),
    Divergence(direction="reverse", estimator="topk", top_k=K),
    Divergence(direction="forward", estimator="topk", top_k=K),
    Divergence(direction="js", estimator="topk", top_k=K),
    Divergence(direction="entropy", estimator="topk", top_k=K),
    Divergence(direction="reverse", estimator="k1", placement="advantage"),
    Divergence(direction="reverse", estimator="k2"),
    Divergence(direction="reverse", estimator="k3"),
]
every_divergence = pytest.mark.parametrize(
    "divergence", DIVERGENCES, ids=lambda d: f"{d.direction}-{d.estimator}-{d.placement}"
)
anchor_names = pytest.mark.parametrize("name", ["kd", "ref"])


def signal_of(model: tuple[Tensor, Tensor], divergence: Divergence) -> TeacherSignal:
    hidden, head = model
    if divergence.estimator == "exact":
        return HiddenSignal(hidden, head)
    logq = torch.log_softmax(hidden @ head.T / TEMPERATURE, -1)
    if divergence.estimator == "topk":
        best = logq.topk(divergence.top_k)
        return TopKSignal(best.indices, best.values)
    return SampledSignal(logq.gather(-1, TARGETS[:, None])[:, 0])


def gradient(
    spec: Objective,
    anchors: dict[str, Anchor] | None = None,
    row: PackedGroups | None = None,
    *,
    dtype: torch.dtype = torch.float64,
    chunk: int = 3,
) -> Tensor:
    """Gradient of the objective in hidden states and head, in one vector."""
    hidden, head = HIDDEN.to(dtype).clone().requires_grad_(), nn.Linear(WIDTH, VOCABULARY, bias=False, dtype=dtype)
    head.weight.data.copy_(HEAD)
    scores = score_tokens(head, hidden, TARGETS, temperature=TEMPERATURE, chunk=chunk, anchors=anchors or {})
    row = token_row(LENS, advantages=ADVANTAGES) if row is None else row
    torch.autograd.backward(objective(spec, scores, row, COUNTS, max_length=1).loss)
    assert hidden.grad is not None and head.weight.grad is not None
    return torch.cat([hidden.grad.flatten(), head.weight.grad.flatten()])


def spec_of(divergence: Divergence, name: str = "kd", weight: float = 1.0, pg: float = 0.0) -> Objective:
    options: dict[str, Any] = {name: divergence}
    return Objective(weights=Weights(pg=pg, **{name: weight}), **options)


def anchored(model: tuple[Tensor, Tensor], divergence: Divergence, name: str = "kd") -> dict[str, Anchor]:
    return {name: Anchor(divergence, signal_of(model, divergence))}


@anchor_names
@every_divergence
def test_changing_the_teacher_changes_the_gradient(divergence: Divergence, name: str) -> None:
    spec = spec_of(divergence, name)
    first, second = (gradient(spec, anchored(model, divergence, name)) for model in (TEACHER, OTHER_TEACHER))
    assert (first - second).abs().max() > 0.01 * first.abs().max() > 0.0


@anchor_names
@every_divergence
def test_teacher_equal_to_student_gives_no_gradient(divergence: Divergence, name: str) -> None:
    reference = gradient(spec_of(divergence, name), anchored(TEACHER, divergence, name)).abs().max()
    found = gradient(spec_of(divergence, name), anchored(STUDENT, divergence, name)).abs().max()
    assert found < 1e-13 * reference


@every_divergence
def test_the_expected_gradient_is_the_exact_divergences(divergence: Divergence) -> None:
    """Of the whole objective, in the mean over a token drawn from the student; k3 follows the forward KL."""
    z = (HIDDEN[:1] @ HEAD.T).requires_grad_()
    anchor = TEACHER[0][:1] @ TEACHER[1].T
    logq = torch.log_softmax(anchor, -1)
    total = torch.zeros_like(z)
    for token, p in enumerate(torch.softmax(z.detach(), -1)[0]):
        signal: TeacherSignal
        if divergence.estimator == "exact":
            signal = HiddenSignal(anchor, torch.eye(VOCABULARY, dtype=torch.float64))
        elif divergence.estimator == "topk":
            best = logq.topk(VOCABULARY)
            signal = TopKSignal(best.indices, best.values)
        else:
            signal = SampledSignal(logq[:, token])
        anchors = {"kd": Anchor(divergence, signal)}
        scores = score_tokens(nn.Identity(), z, torch.tensor([token]), temperature=1.0, chunk=8, anchors=anchors)
        output = objective(spec_of(divergence), scores, token_row((1,)), Denominators(1, 1), max_length=1)
        total += p * torch.autograd.grad(output.loss, z)[0]

    logp = torch.log_softmax(z, -1)
    share = (-(logq.exp() * logq).sum()).clamp(max=1.0)
    logm = torch.logaddexp(logp, logq) - torch.tensor(2.0, dtype=torch.float64).log()
    exact = {
        "reverse": (logp.exp() * (logp - logq)).sum(),
        "forward": (logq.exp() * (logq - logp)).sum(),
        "entropy": share * (logq.exp() * (logq - logp)).sum() + (1 - share) * (logp.exp() * (logp - logq)).sum(),
        "js": 0.5 * ((logp.exp() * (logp - logm)).sum() + (logq.exp() * (logq - logm)).sum()),
    }["forward" if divergence.estimator == "k3" else divergence.direction]
    torch.testing.assert_close(total, torch.autograd.grad(exact, z)[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_beta_zero_is_grpo_to_the_bit(dtype: torch.dtype) -> None:
    divergence = Divergence()
    grpo = gradient(method(pg=1.0), dtype=dtype)
    dgrpo = gradient(method(pg=1.0, kd=0.0), anchored(TEACHER, divergence), dtype=dtype)
    assert torch.equal(grpo, dgrpo)
    assert not torch.equal(grpo, gradient(method(pg=1.0, kd=1e-3), anchored(TEACHER, divergence), dtype=dtype))


@every_divergence
@pytest.mark.parametrize("beta", [0.5, 0.3])
def test_equal_rewards_leave_opd_scaled_by_beta(divergence: Divergence, beta: float) -> None:
    row = token_row(LENS)
    dgrpo = gradient(spec_of(divergence, weight=beta, pg=1.0), anchored(TEACHER, divergence), row)
    opd = gradient(spec_of(divergence, weight=1.0), anchored(TEACHER, divergence), row)
    torch.testing.assert_close(dgrpo, beta * opd, rtol=1e-12, atol=1e-15)


def test_dgrpo_is_the_sum_of_grpo_and_beta_opd() -> None:
    divergence = Divergence()
    dgrpo = gradient(method(pg=1.0, kd=0.5), anchored(TEACHER, divergence))
    grpo, opd = gradient(method(pg=1.0)), gradient(method(kd=1.0), anchored(TEACHER, divergence))
    torch.testing.assert_close(dgrpo, grpo + 0.5 * opd, rtol=1e-12, atol=1e-15)


def test_forward_kl_to_a_certain_teacher_is_cross_entropy() -> None:
    """KD on the recorded token alone is SFT."""
    certain = (300.0 * torch.nn.functional.one_hot(TARGETS, VOCABULARY).double(), torch.eye(VOCABULARY).double())
    kd = gradient(method(kd=1.0), anchored(certain, Divergence(direction="forward")))
    torch.testing.assert_close(kd, gradient(method(ce=1.0)), rtol=1e-9, atol=1e-12)


@every_divergence
def test_temperature_enters_student_and_anchor(divergence: Divergence) -> None:
    """Dividing both models' heads by the temperature is the same as passing it."""
    signal = signal_of(TEACHER, divergence)
    head = nn.Linear(WIDTH, VOCABULARY, bias=False, dtype=torch.float64)

    def scored(temperature: float, scale: float, signal: TeacherSignal) -> TokenScores:
        head.weight.data.copy_(HEAD * scale)
        anchors = {"kd": Anchor(divergence, signal)}
        return score_tokens(head, HIDDEN, TARGETS, temperature=temperature, chunk=3, anchors=anchors)

    # The log-probabilities of the other signals were taken at the temperature.
    scaled = signal._replace(head=signal.head / TEMPERATURE) if isinstance(signal, HiddenSignal) else signal
    ours, expected = scored(TEMPERATURE, 1.0, signal), scored(1.0, 1 / TEMPERATURE, scaled)
    torch.testing.assert_close(ours.logprobs, expected.logprobs)
    torch.testing.assert_close(ours.entropy, expected.entropy)
    torch.testing.assert_close(ours.divergences["kd"], expected.divergences["kd"])
    for name, values in expected.diagnostics.items():
        torch.testing.assert_close(ours.diagnostics[name], values)
    cold = scored(1.0, 1.0, signal)
    assert (cold.divergences["kd"] - ours.divergences["kd"]).abs().max() > 1e-3
