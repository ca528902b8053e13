"""Chunked scoring against the full distribution, and the memory it must not take."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from longctx_rl.data.packing import pack
from longctx_rl.objective.divergences import anchor_distributions, categorical, sampled
from longctx_rl.objective.spec import Divergence
from longctx_rl.policy.frozen import FrozenScorer
from longctx_rl.policy.policy import Policy
from longctx_rl.policy.scoring import Anchor
from longctx_rl.types import PackedGroups, SampledSignal, TeacherSignal, TopKSignal
from packed_builders import CPU, VOCABULARY, gradients, group, head_weight, relative_difference, tiny_model

TEMPERATURE = 1.3
ROW = pack([group(9, [4, 7, 2], 1), group(3, [5], 2)], CPU)

DIVERGENCES = [
    Divergence(direction="reverse", estimator="exact"),
    Divergence(direction="forward", estimator="exact"),
    Divergence(direction="js", estimator="exact", js_mixture=0.3),
    Divergence(direction="reverse", estimator="topk", top_k=6),
    Divergence(direction="forward", estimator="topk", top_k=6),
    Divergence(direction="js", estimator="topk", top_k=6),
    Divergence(direction="reverse", estimator="k1", placement="advantage"),
    Divergence(direction="reverse", estimator="k2"),
    Divergence(direction="reverse", estimator="k3"),
]
every_divergence = pytest.mark.parametrize(
    "divergence", DIVERGENCES, ids=lambda d: f"{d.direction}-{d.estimator}-{d.placement}"
)


def teacher_signal(divergence: Divergence, row: PackedGroups, seed: int = 7, chunk: int = 4) -> TeacherSignal:
    teacher = tiny_model(seed, hidden_size=24, num_hidden_layers=1)
    head = head_weight(teacher)
    signal: TeacherSignal = FrozenScorer(teacher, chunk=chunk).freeze()(
        row, estimator=divergence.estimator, temperature=TEMPERATURE, top_k=divergence.top_k, head=head
    )
    return signal


def mixed(columns: list[Tensor]) -> Tensor:
    """A sum in which every token of every column has a weight of its own."""
    weights = torch.linspace(0.0, 9.0, sum(column.numel() for column in columns), dtype=columns[0].dtype).cos()
    return (weights * torch.cat(columns)).sum()


def full(policy: Policy, row: PackedGroups, divergence: Divergence, signal: TeacherSignal) -> tuple[Tensor, ...]:
    """Log-probabilities, entropy and divergence from [T, V] at once."""
    logits = policy.head(policy.hidden(row)) / TEMPERATURE
    logp = torch.log_softmax(logits, -1)
    logprobs = logp.gather(-1, row.target_ids[:, None])[:, 0]
    if isinstance(signal, SampledSignal):
        value = sampled(logprobs, signal.logprobs, divergence.estimator)
    else:
        pair = anchor_distributions(logp, signal, TEMPERATURE)
        assert pair is not None
        value = categorical(*pair, divergence)
    return logprobs, -(logp.exp() * logp).sum(-1), value


@every_divergence
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("chunk", [1, 5, 18, 100])
def test_chunked_equals_full_in_values_and_gradients(divergence: Divergence, tied: bool, chunk: int) -> None:
    signal, other = teacher_signal(divergence, ROW), teacher_signal(divergence, ROW, 8)
    model = tiny_model(tie_word_embeddings=tied)
    policy = Policy(model, chunk=chunk)
    logprobs, entropy, kd = full(policy, ROW, divergence, signal)
    ref = full(policy, ROW, divergence, other)[2]
    torch.autograd.backward(mixed([logprobs, kd, ref]))
    expected = gradients(model)

    anchors = {"kd": Anchor(divergence, signal), "ref": Anchor(divergence, other)}
    scores = policy(ROW, temperature=TEMPERATURE, anchors=anchors)
    torch.testing.assert_close(scores.logprobs, logprobs)
    torch.testing.assert_close(scores.entropy, entropy)
    torch.testing.assert_close(scores.divergences["kd"], kd)
    torch.testing.assert_close(scores.divergences["ref"], ref)
    assert not scores.entropy.requires_grad
    torch.autograd.backward(mixed([scores.logprobs, scores.divergences["kd"], scores.divergences["ref"]]))
    assert relative_difference(gradients(model), expected) < 1e-12


def test_scores_without_anchors_have_no_divergence() -> None:
    scores = Policy(tiny_model(), chunk=5)(ROW, temperature=1.0)
    assert not scores.divergences and not scores.diagnostics


def test_the_reference_alone_has_no_diagnostics() -> None:
    anchor = Anchor(Divergence(), teacher_signal(Divergence(), ROW))
    scores = Policy(tiny_model(), chunk=5)(ROW, temperature=1.0, anchors={"ref": anchor})
    assert scores.divergences.keys() == {"ref"} and not scores.diagnostics


@every_divergence
def test_diagnostics_of_the_teacher(divergence: Divergence) -> None:
    signal = teacher_signal(divergence, ROW)
    teacher = teacher_signal(Divergence(direction="reverse", estimator="topk", top_k=VOCABULARY), ROW)
    policy = Policy(tiny_model(), chunk=5)
    with torch.no_grad():
        other = Anchor(divergence, teacher_signal(divergence, ROW, 8))
        scores = policy(ROW, temperature=TEMPERATURE, anchors={"kd": Anchor(divergence, signal), "ref": other})
        logp = torch.log_softmax(policy.head(policy.hidden(ROW)) / TEMPERATURE, -1)
    assert isinstance(teacher, TopKSignal)
    logq = torch.zeros_like(logp).scatter(-1, teacher.ids, teacher.logprobs)
    gap = logq.gather(-1, ROW.target_ids[:, None])[:, 0] - scores.logprobs
    found = scores.diagnostics
    if divergence.estimator in ("k1", "k2", "k3"):
        assert found.keys() == {"kl_reverse", "logprob_gap"}
        torch.testing.assert_close(found["kl_reverse"], gap.exp() - 1 - gap)
        torch.testing.assert_close(found["logprob_gap"], gap)
        return
    assert found.keys() == {"kl_reverse", "kl_forward", "agree_top1", "entropy", "logprob_gap"}
    torch.testing.assert_close(found["agree_top1"], (logp.argmax(-1) == logq.argmax(-1)).double())
    reverse, forward = ((a.exp() * (a - b)).sum(-1) for a, b in ((logp, logq), (logq, logp)))
    if divergence.estimator == "exact":
        torch.testing.assert_close(found["kl_reverse"], reverse)
        torch.testing.assert_close(found["kl_forward"], forward)
        torch.testing.assert_close(found["logprob_gap"], gap)
        torch.testing.assert_close(found["entropy"], -(logq.exp() * logq).sum(-1))
    else:
        assert isinstance(signal, TopKSignal)
        assert (found["entropy"] < -(logq.exp() * logq).sum(-1)).all()  # the unlisted tokens are one outcome
        assert (found["kl_reverse"] < reverse).all() and (found["kl_forward"] < forward).all()
        assert (found["logprob_gap"] >= gap - 1e-12).all()
        listed = (signal.ids == ROW.target_ids[:, None]).any(-1)
        assert listed.any() and not listed.all()
        torch.testing.assert_close(found["logprob_gap"][listed], gap[listed])


class Widest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The most entries of any tensor, made by any operation of forward or backward, that spans the vocabulary."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.vocabulary = vocabulary
        self.entries = 0

    def __torch_dispatch__(
        self, func: Callable[..., object], types: object, args: Any = (), kwargs: Any = None
    ) -> object:
        output = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor) and leaf.dim() > 1 and self.vocabulary in leaf.shape[-2:]:
                self.entries = max(self.entries, leaf.numel())
        return output


VOCABULARY_WIDE = 211
LONG_ROW = pack([group(5, [30, 40, 50], 3), group(5, [25, 15], 4)], CPU)


@every_divergence
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_no_tensor_of_all_tokens_and_the_vocabulary(divergence: Divergence, tied: bool) -> None:
    """Forward and backward of policy and teacher; the weights themselves are narrower than a chunk is long."""
    chunk = 32
    assert LONG_ROW.num_loss_tokens > 4 * chunk
    options: dict[str, Any] = {"vocab_size": VOCABULARY_WIDE, "tie_word_embeddings": tied}
    policy, teacher = Policy(tiny_model(0, **options), chunk=chunk), tiny_model(1, **options)
    head = head_weight(teacher)
    with Widest(VOCABULARY_WIDE) as widest:
        scorer = FrozenScorer(teacher, chunk=chunk).freeze()
        signal = scorer(LONG_ROW, estimator=divergence.estimator, temperature=1.0, top_k=divergence.top_k, head=head)
        scores = policy(LONG_ROW, temperature=1.0, anchors={"kd": Anchor(divergence, signal)})
        torch.autograd.backward(mixed([scores.logprobs, scores.divergences["kd"]]))
    assert widest.entries == chunk * VOCABULARY_WIDE


def test_that_check_sees_a_full_projection() -> None:
    policy = Policy(tiny_model(vocab_size=VOCABULARY_WIDE), chunk=1000)
    with Widest(VOCABULARY_WIDE) as widest:
        torch.autograd.backward(policy(LONG_ROW, temperature=1.0).logprobs.sum())
    assert widest.entries == LONG_ROW.num_loss_tokens * VOCABULARY_WIDE


def test_nothing_vocabulary_wide_is_kept_for_backward() -> None:
    """A graph that kept every chunk would hold [T, V] in pieces."""
    kept: list[int] = []

    def pack_hook(tensor: Tensor) -> Tensor:
        if tensor.dim() > 1 and tensor.shape[-1] == VOCABULARY_WIDE:
            kept.append(tensor.numel())
        return tensor

    divergence = Divergence()
    options: dict[str, Any] = {"vocab_size": VOCABULARY_WIDE}
    teacher = tiny_model(1, **options)
    head = head_weight(teacher)
    signal = FrozenScorer(teacher, chunk=32).freeze()(LONG_ROW, estimator="exact", temperature=1.0, top_k=1, head=head)
    policy = Policy(tiny_model(0, **options), chunk=32)
    with torch.autograd.graph.saved_tensors_hooks(pack_hook, lambda tensor: tensor):
        policy(LONG_ROW, temperature=1.0, anchors={"kd": Anchor(divergence, signal)})
    assert sum(kept) == 0


def test_scores_are_float32_when_the_model_is_bfloat16() -> None:
    model = tiny_model(dtype=torch.bfloat16)
    scores = Policy(model, chunk=5)(ROW, temperature=1.0)
    assert scores.logprobs.dtype == scores.entropy.dtype == torch.float32
    expected = tiny_model(dtype=torch.bfloat16)
    nn.Module.to(expected, torch.float32)
    torch.testing.assert_close(
        scores.logprobs, Policy(expected, chunk=5)(ROW, temperature=1.0).logprobs, rtol=0.1, atol=0.2
    )
