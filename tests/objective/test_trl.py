"""Losses, gradients, advantages and importance weights against TRL's own code, on the same tensors.

TRL keeps them inside trainer methods. These tests call the methods themselves, on trainers that hold only what the
methods read; nothing of TRL is retyped here.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from trl.trainer.grpo_trainer import GRPOTrainer

from longctx_rl.objective.advantages import group_advantages
from longctx_rl.objective.divergences import categorical, sampled
from longctx_rl.objective.spec import Aggregate, Divergence, Objective
from longctx_rl.objective.terms import objective
from longctx_rl.policy.scoring import Anchor, score_tokens
from longctx_rl.types import Denominators, HiddenSignal, TokenScores
from objective_specs import method
from packed_builders import token_row

LENS = (4, 1, 6, 3)
LONGEST, TOTAL = max(LENS), sum(LENS)
MAX_LENGTH = 9
MASK = (torch.arange(LONGEST)[None] < torch.tensor(LENS)[:, None]).long()  # [S, LONGEST]
COUNTS = Denominators(num_sequences=len(LENS), num_tokens=TOTAL)


class Accelerator(SimpleNamespace):
    """One process."""

    device, num_processes, process_index, sync_gradients = torch.device("cpu"), 1, 0, True

    def gather(self, tensor: Tensor) -> Tensor:
        return tensor

    gather_for_metrics = gather

    def reduce(self, tensor: Tensor, reduction: str) -> Tensor:
        return tensor


class Trainer(GRPOTrainer):
    """A GRPOTrainer whose log-probabilities, completions and rewards are given; its formulas are untouched."""

    logps: Tensor

    def __init__(self, **settings: object) -> None:
        defaults = {
            "accelerator": Accelerator(),
            "aux_loss_enabled": False,
            "beta": 0.0,
            "chat_template_kwargs": {},
            "current_gradient_accumulation_steps": 1,
            "environment_factories": None,
            "environments": None,
            "epsilon_high": 0.2,
            "epsilon_low": 0.2,
            "eos_token_ids": [0],
            "importance_sampling_level": "token",
            "log_multimodal": False,
            "mask_truncated_completions": False,
            "max_completion_length": MAX_LENGTH,
            "model": SimpleNamespace(training=True),
            "multi_objective_aggregation": "sum_then_normalize",
            "num_generations": 4,
            "num_iterations": 1,
            "off_policy_mask_threshold": None,
            "pad_to_multiple_of": None,
            "ref_model": None,
            "reward_func_names": ["reward"],
            "reward_weights": torch.ones(1),
            "scale_rewards": "group",
            "tools": None,
            "top_entropy_quantile": 1.0,
            "use_vllm": False,
            "vllm_importance_sampling_clip_max": None,
            "vllm_importance_sampling_clip_min": None,
            "vllm_importance_sampling_correction": False,
            "vllm_importance_sampling_mode": "token_truncate",
            "_entropy_bonus_enabled": False,
            "_is_vlm": False,
            "_logs": defaultdict(lambda: defaultdict(list)) | {"prompt": [], "completion": [], "advantages": []},
            "_metrics": defaultdict(lambda: defaultdict(list)),
            "_pending_extra_logs": defaultdict(list),
            "_pending_metrics": defaultdict(list),
            "_tokenizer": SimpleNamespace(pad_token_id=0),
            "args": SimpleNamespace(
                delta=None,
                gradient_accumulation_steps=1,
                gradient_checkpointing_kwargs=None,
                per_device_train_batch_size=4,
                steps_per_generation=1,
                use_bias_correction_kl=False,
            ),
        }
        self.__dict__.update(defaults | settings)

    def _get_per_token_logps_and_entropies(
        self, model: object, *_: object, **__: object
    ) -> tuple[Tensor, Tensor, None]:
        return self.logps, torch.zeros_like(self.logps), None


@dataclass
class Case:
    """The same tokens in TRL's padded [S, LONGEST] layout and in ours, [T]."""

    logps: Tensor
    old: Tensor
    ref: Tensor
    drawn: Tensor
    advantages: Tensor  # [S]

    @classmethod
    def make(cls, seed: int) -> "Case":
        generator = torch.Generator().manual_seed(seed)

        def normal(scale: float, *shape: int) -> Tensor:
            # Rounded to float32, which packed rows hold.
            return (scale * torch.randn(*shape, generator=generator)).double()

        old = -2.0 + normal(0.5, len(LENS), LONGEST)
        return cls(
            logps=old + normal(0.3, len(LENS), LONGEST),
            old=old,
            ref=old + normal(0.4, len(LENS), LONGEST),
            drawn=old + normal(0.5, len(LENS), LONGEST),
            advantages=normal(1.0, len(LENS)),
        )

    def trl(self, *, first_update: bool, importance: Tensor | None, **settings: object) -> tuple[Tensor, Tensor]:
        leaf = self.logps.clone().requires_grad_()
        trainer = Trainer(logps=leaf, use_vllm=importance is not None, **settings)
        trainer.vllm_importance_sampling_correction = importance is not None
        inputs = {
            "prompt_ids": torch.zeros(len(LENS), 2).long(),
            "prompt_mask": torch.ones(len(LENS), 2).long(),
            "completion_ids": torch.zeros_like(MASK),
            "completion_mask": MASK,
            "advantages": self.advantages,
            "ref_per_token_logps": self.ref,
            "num_items_in_batch": MASK.sum(),
            "importance_sampling_ratio": importance,
        }
        if not first_update:
            inputs["old_per_token_logps"] = self.old
        loss = trainer._compute_loss(trainer.model, inputs)  # type: ignore[no-untyped-call]
        (gradient,) = torch.autograd.grad(loss, leaf)
        return loss.detach(), gradient[MASK.bool()]

    def ours(self, spec: Objective, *, first_update: bool) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        flat = MASK.bool()
        leaf = self.logps[flat].clone().requires_grad_()
        ref = sampled(leaf, self.ref[flat], "k3")
        row = token_row(
            LENS,
            advantages=torch.repeat_interleave(self.advantages, torch.tensor(LENS)).float(),
            sampler_logprobs=self.drawn[flat],
            old_logprobs=None if first_update else self.old[flat],
        )
        scores = TokenScores(leaf, torch.zeros_like(leaf), {"ref": ref}, {})
        output = objective(spec, scores, row, COUNTS, max_length=MAX_LENGTH)
        (gradient,) = torch.autograd.grad(output.loss, leaf)
        return output.loss.detach(), gradient, output.sums


@pytest.mark.parametrize("first_update", [True, False], ids=["first", "later"])
@pytest.mark.parametrize("cap", [None, 1.3])
@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize("high", [0.2, 0.28])
@pytest.mark.parametrize(
    ("loss_type", "aggregate"),
    [("grpo", "sequence"), ("bnpo", "token"), ("dapo", "token"), ("dr_grpo", "constant")],
)
def test_loss_and_gradient_equal_trls(
    loss_type: str, aggregate: Aggregate, high: float, beta: float, cap: float | None, first_update: bool
) -> None:
    case = Case.make(0)
    before = case.logps if first_update else case.old
    importance = None if cap is None else (before - case.drawn).exp().clamp(max=cap)
    settings = {"loss_type": loss_type, "beta": beta, "epsilon_high": high}
    loss, gradient = case.trl(first_update=first_update, importance=importance, **settings)
    spec = method(pg=1.0, ref=beta, aggregate=aggregate, clip_high=high, importance_cap=cap)
    our_loss, our_gradient, _ = case.ours(spec, first_update=first_update)
    torch.testing.assert_close(our_loss, loss, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(our_gradient, gradient, rtol=1e-6, atol=1e-9)
    assert gradient.abs().max() > 1e-3


@pytest.mark.parametrize("first_update", [True, False], ids=["first", "later"])
def test_cispo_and_sequence_ratios_equal_trls(first_update: bool) -> None:
    case = Case.make(2)
    for settings, spec in (
        # TRL gives the cap of the ratio itself.
        (
            {"loss_type": "cispo", "epsilon_high": 1.25},
            method(pg=1.0, surrogate="cispo", aggregate="token", clip_high=0.25),
        ),
        ({"loss_type": "grpo", "importance_sampling_level": "sequence"}, method(pg=1.0, ratio="sequence")),
    ):
        loss, gradient = case.trl(first_update=first_update, importance=None, **settings)
        our_loss, our_gradient, _ = case.ours(spec, first_update=first_update)
        torch.testing.assert_close(our_loss, loss, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(our_gradient, gradient, rtol=1e-6, atol=1e-9)


def test_clipped_fraction_equals_trls() -> None:
    case = Case.make(1)
    trainer = Trainer(logps=case.logps, loss_type="grpo", epsilon_high=0.28)
    inputs = {
        "prompt_ids": MASK,
        "prompt_mask": MASK,
        "completion_ids": MASK,
        "completion_mask": MASK,
        "advantages": case.advantages,
        "old_per_token_logps": case.old,
    }
    trainer._compute_loss(trainer.model, inputs)  # type: ignore[no-untyped-call]
    (expected,) = trainer._metrics["train"]["clip_ratio/region_mean"]
    sums = case.ours(method(pg=1.0, clip_high=0.28), first_update=False)[2]
    assert 0.0 < expected < 1.0
    assert sums["policy/clip_frac"].item() == pytest.approx(expected, rel=1e-6)


class Sampling(Trainer):
    """Completions, sampler log-probabilities and rewards are given; TRL computes advantages and weights."""

    case: Case
    rewards: Tensor

    def _generate(self, prompts: list[str]) -> tuple[object, ...]:
        completions = [[1] * length for length in LENS]
        drawn = [row[:length].tolist() for row, length in zip(self.case.drawn, LENS, strict=True)]
        return [[1, 2]] * len(LENS), completions, None, completions, drawn, {}, None, None

    def _calculate_rewards(self, *_: object) -> Tensor:
        rewards: Tensor = self.rewards
        return rewards[:, None]


def trl_rollout(
    rewards: tuple[float, ...], case: "Case", monkeypatch: pytest.MonkeyPatch, **settings: object
) -> dict[str, Tensor]:
    from trl.trainer import grpo_trainer

    monkeypatch.setattr(grpo_trainer, "gather_object", lambda value: value)
    monkeypatch.setattr(grpo_trainer, "disable_gradient_checkpointing", lambda *_: torch.no_grad())
    trainer = Sampling(logps=case.old, rewards=torch.tensor(rewards, dtype=torch.float64), case=case, **settings)
    output: dict[str, Tensor] = trainer._generate_and_score_completions([{"prompt": "p"}] * len(LENS))
    return output


@pytest.mark.parametrize("rewards", [(1.0, 0.0, 0.5, 0.0), (0.1 * 3,) * 4, (3.0, -1.0, 2.5, 2.5)])
@pytest.mark.parametrize("normalize_std", [True, False])
def test_advantages_equal_trls(
    rewards: tuple[float, ...], normalize_std: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    scale = "group" if normalize_std else "none"
    expected = trl_rollout(rewards, Case.make(2), monkeypatch, scale_rewards=scale)["advantages"]
    ours = group_advantages(rewards, baseline="mean", normalize_std=normalize_std)
    assert ours == pytest.approx(expected.tolist(), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("cap", [1.2, 3.0])
def test_truncated_importance_weights_equal_trls(cap: float, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case.make(3)
    output = trl_rollout(
        (1.0, 0.0, 0.5, 0.0),
        case,
        monkeypatch,
        use_vllm=True,
        vllm_importance_sampling_correction=True,
        vllm_importance_sampling_clip_max=cap,
    )
    expected = output["importance_sampling_ratio"][MASK.bool()]
    plain, weighted = (
        case.ours(method(pg=1.0, importance_cap=c, aggregate="token"), first_update=False)[1] for c in (None, cap)
    )
    learning = plain != 0.0
    torch.testing.assert_close(
        (weighted / plain)[learning], expected[learning].double(), rtol=1e-5, atol=0, check_dtype=False
    )
    assert (expected == cap).any()
    assert (expected < cap).any()


@pytest.mark.parametrize(
    ("divergence", "beta"),
    [
        (Divergence(direction="forward"), 0.0),
        (Divergence(direction="reverse"), 1.0),
        (Divergence(direction="js", js_mixture=0.5), 0.5),
        (Divergence(direction="js", js_mixture=0.1), 0.1),
    ],
    ids=str,
)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_divergences_equal_trls_generalised_jsd(divergence: Divergence, beta: float, temperature: float) -> None:
    from trl.experimental.gkd import GKDTrainer

    generator = torch.Generator().manual_seed(4)
    student = torch.randn(2, 5, 13, generator=generator, dtype=torch.float64)
    teacher = 2.0 * torch.randn(2, 5, 13, generator=generator, dtype=torch.float64)
    found = []
    for ours in (True, False):
        leaf = student.clone().requires_grad_()
        if ours:
            logp, logq = (torch.log_softmax(x / temperature, -1) for x in (leaf, teacher))
            loss = categorical(logp, logq, divergence).sum()
        else:
            jsd: Callable[..., Tensor] = GKDTrainer.generalized_jsd_loss
            loss = jsd(leaf, teacher, beta=beta, temperature=temperature, reduction="sum")
        found.append((loss.detach(), torch.autograd.grad(loss, leaf)[0]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize(
    ("divergence", "beta"),
    [
        (Divergence(direction="forward"), 0.0),
        (Divergence(direction="reverse"), 1.0),
        (Divergence(direction="js", js_mixture=0.3), 0.3),
    ],
    ids=str,
)
def test_chunked_distillation_equals_trls(divergence: Divergence, beta: float) -> None:
    """From hidden states of two widths to the gradients of hidden states and head, at a temperature, in float32."""
    from trl.trainer.distillation_trainer import _chunked_divergence_loss

    generator = torch.Generator().manual_seed(5)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    hidden, weight, teacher_hidden, teacher_weight = normal(7, 6), normal(17, 6), normal(7, 9), normal(17, 9)
    found = []
    for ours in (True, False):
        leaf, head = hidden.clone().requires_grad_(), nn.Linear(6, 17, bias=False)
        head.weight.data.copy_(weight)
        if ours:
            anchors = {"kd": Anchor(divergence, HiddenSignal(teacher_hidden, teacher_weight))}
            targets = torch.zeros(7, dtype=torch.int64)
            scores = score_tokens(head, leaf, targets, temperature=0.8, chunk=2, anchors=anchors)
            loss, entropy = scores.divergences["kd"].sum() / 11, scores.entropy.sum()
        else:
            loss, entropy, _ = _chunked_divergence_loss(
                leaf[None],
                teacher_hidden[None],
                head.weight,
                teacher_weight,
                torch.ones(1, 7),
                beta,
                num_items_in_batch=11,
                temperature=0.8,
            )
        torch.autograd.backward(loss)
        found.append((loss.detach(), entropy.detach(), leaf.grad, head.weight.grad))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)


def test_logprobs_and_entropy_equal_trls() -> None:
    from trl.trainer.utils import entropy_from_logits, selective_log_softmax

    generator = torch.Generator().manual_seed(6)
    logits = torch.randn(8, 13, generator=generator, dtype=torch.float64)
    targets = torch.randint(13, (8,), generator=generator)
    scores = score_tokens(nn.Identity(), logits, targets, temperature=0.7, chunk=3, anchors={})
    torch.testing.assert_close(scores.logprobs, selective_log_softmax(logits / 0.7, targets))
    torch.testing.assert_close(scores.entropy, entropy_from_logits(logits / 0.7))
