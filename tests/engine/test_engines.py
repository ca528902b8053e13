"""Both engines compute the same, however a step is split into micro-batches."""

import dataclasses
import itertools
import math
from pathlib import Path

import pytest
import torch
from engine_cases import VOCABULARY, Policy, batch, config, difference, policy, train, weights

from longctx_rl.engine import Engine, StepOutcome, optimizer, startup
from longctx_rl.engine.optimizer import TrainingDiverged, learning_rate

ENGINES = ("local", "zero3")


def build(name: str, module: Policy | None = None, **groups: dict[str, object]) -> Engine:
    return startup.build(config(engine={"name": name}, **groups), module or policy(), total_steps=10)


@pytest.mark.parametrize("max_grad_norm", [0.05, 100.0], ids=["clipped", "unclipped"])
@pytest.mark.parametrize("tied", [True, False])
def test_zero3_equals_local(tmp_path: Path, tied: bool, max_grad_norm: float) -> None:
    results = {}
    for name in ENGINES:
        trainer = build(name, policy(tied=tied), optim={"max_grad_norm": max_grad_norm, "lr": 1e-3})
        results[name] = train(trainer, range(5)), weights(trainer, tmp_path / name)
    norms = [results[name][0] for name in ENGINES]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)
    assert max(norms[0]) > 0.05
    assert difference(results["local"][1], results["zero3"][1]) < 1e-6


@pytest.mark.parametrize(("name", "offload"), [("local", False), ("zero3", False), ("zero3", True)])
def test_gradient_can_be_read_between_passes(name: str, offload: bool) -> None:
    """After the first pass it is the gradient of that pass; after the second, the sum, which the step uses too."""
    settings = config(engine={"name": name, "offload_optimizer": offload}, optim={"max_grad_norm": 100.0})
    trainer = startup.build(settings, policy(), total_steps=10)
    first, second = ([batch(i), batch(i + 1)] for i in (0, 2))
    read = []
    for rows in (first, second):
        for index, row in enumerate(rows):
            trainer.backward(trainer.forward(row) / 44, last=index == 1)
        read.append(trainer.gradient())
    outcome = trainer.step()
    for gradient, rows in zip(read, (first, first + second), strict=True):
        alone = policy()
        torch.autograd.backward([alone(row) / 44 for row in rows])
        expected = torch.cat([parameter.grad.flatten() for parameter in alone.parameters()])  # type: ignore[union-attr]
        assert torch.allclose(gradient, expected, rtol=1e-4, atol=1e-6)
    assert outcome.grad_norm == pytest.approx(read[1].norm().item(), rel=1e-5)


def test_zero3_with_activation_checkpointing_equals_local(tmp_path: Path) -> None:
    results = []
    for name in ENGINES:
        module = policy()
        module.model.train()
        if name == "zero3":
            module.model.activation_checkpointing_enable({"use_reentrant": False})
        trainer = build(name, module, optim={"lr": 1e-3})
        train(trainer, range(4))
        results.append(weights(trainer, tmp_path / name))
    assert difference(*results) < 1e-6


def test_offloaded_optimizer_equals_local(tmp_path: Path) -> None:
    results = []
    for name, offload in (("local", False), ("zero3", True)):
        module = policy(tied=False)
        groups: dict[str, dict[str, object]] = {"optim": {"lr": 1e-3}}
        settings = config(engine={"name": name, "offload_optimizer": offload}, **groups)
        trainer = startup.build(settings, module, total_steps=10)
        train(trainer, range(2))
        trainer.backward(trainer.forward(batch(0)) * math.nan, last=True)
        assert trainer.step().skipped
        train(trainer, range(2, 4))
        stored = weights(trainer, tmp_path / name)
        resumed = startup.build(settings, policy(tied=False, seed=4), total_steps=10)
        resumed.load(tmp_path / name)
        assert train(resumed, range(4, 6)) == train(trainer, range(4, 6))
        results.append(stored)
    assert difference(*results) < 1e-6


@pytest.mark.parametrize("name", ENGINES)
def test_accumulation_does_not_change_the_step(tmp_path: Path, name: str) -> None:
    results = []
    for micro_batches, rows in ((1, 4), (4, 1), (2, 2)):
        trainer = build(name, optim={"lr": 1e-3})
        norms = train(trainer, range(3), micro_batches, rows)
        results.append((norms, weights(trainer, tmp_path / f"{micro_batches}")))
    for norms, stored in results[1:]:
        assert norms == pytest.approx(results[0][0], rel=1e-5)
        assert difference(stored, results[0][1]) < 1e-6


@pytest.mark.parametrize("name", ENGINES)
def test_number_of_micro_batches_may_change_from_step_to_step(name: str) -> None:
    trainer = build(name)
    norms = [train(trainer, range(step, step + 1), count)[0] for step, count in enumerate((1, 3, 2))]
    assert all(0 < norm < 100 for norm in norms)


@pytest.mark.parametrize("name", ENGINES)
def test_gradient_is_the_sum_of_losses(name: str) -> None:
    module = policy()
    rows = [batch(1), batch(2)]
    sum(module(row) for row in rows).backward()
    expected = torch.nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None])
    trainer = build(name)
    for index, row in enumerate(rows):
        trainer.backward(trainer.forward(row), last=index == 1)
    assert trainer.step().grad_norm == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("name", ENGINES)
def test_learning_rate_of_zero_changes_nothing(tmp_path: Path, name: str) -> None:
    trainer = build(name, optim={"lr": 0.0})
    before = weights(trainer, tmp_path / "before")
    train(trainer, range(2))
    after = weights(trainer, tmp_path / "after")
    assert all(torch.equal(before[key], after[key]) for key in before if key.startswith("weights"))


def test_bfloat16_trains_with_float32_masters(tmp_path: Path) -> None:
    for name in ENGINES:
        trainer = build(name, model={"dtype": "bfloat16"}, optim={"lr": 3e-3, "warmup_steps": 0})
        losses = []
        for _ in range(12):
            loss = trainer.forward(batch(0)) / 11
            trainer.backward(loss, last=True)
            assert not trainer.step().skipped
            losses.append(loss.item())
        assert losses[-1] < losses[0] - 0.5
        stored = weights(trainer, tmp_path / name)
        assert all(tensor.dtype == torch.float32 for tensor in stored.values())
        fine = [t for key, t in stored.items() if key.startswith("weights")]
        assert any((t != t.bfloat16().float()).any() for t in fine), "masters are more precise than bfloat16"
        with trainer.full_weights() as module:
            out = module.model.generate(batch(0), max_new_tokens=3, min_new_tokens=3, do_sample=False)
        assert out.shape == (1, 15)


def test_rotary_frequencies_stay_float32_in_bfloat16() -> None:
    expected = policy().model.model.rotary_emb.inv_freq
    for name in ENGINES:
        module = policy()
        trainer = build(name, module, model={"dtype": "bfloat16"})
        frozen = policy(width=48, seed=3)
        trainer.freeze(frozen)
        for model in (module.model, frozen.model):
            assert torch.equal(model.model.rotary_emb.inv_freq, expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ENGINES)
def test_frozen_scorer_of_another_width_between_training_steps(name: str, dtype: str) -> None:
    trainer = build(name, model={"dtype": dtype})
    teacher_module = policy(width=48, seed=3)
    reference = policy(width=48, seed=3).to(getattr(torch, dtype))
    teacher = trainer.freeze(teacher_module)
    with torch.no_grad():
        expected = reference(batch(0))
    for step in range(3):
        with torch.no_grad():
            score = teacher(batch(0))
        assert float(score) == pytest.approx(float(expected), rel=1e-5 if dtype == "float32" else 1e-2)
        train(trainer, range(step, step + 1))
    head = trainer.full_parameter(teacher_module.model.get_output_embeddings().weight)
    assert head.shape == (VOCABULARY, 48) and head.dtype == getattr(torch, dtype) and not head.requires_grad
    assert torch.equal(head, reference.model.get_output_embeddings().weight)


@pytest.mark.parametrize("name", ENGINES)
def test_gradient_that_is_not_finite_is_skipped_then_ends_the_run(tmp_path: Path, name: str) -> None:
    trainer = build(name, optim={"max_skipped": 2})
    train(trainer, range(2))
    before = weights(trainer, tmp_path / "before")

    def bad_step(factor: float) -> StepOutcome:
        trainer.backward(trainer.forward(batch(0)), last=False)
        trainer.backward(trainer.forward(batch(1)) * factor, last=True)
        return trainer.step()

    outcome = bad_step(math.nan)
    assert outcome.skipped and outcome.grad_norm == math.inf
    after = weights(trainer, tmp_path / "after")
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert train(trainer, range(5, 6))[0] < math.inf  # a finite step resets the count
    assert bad_step(math.inf).skipped
    with pytest.raises(TrainingDiverged, match=r"2 .*in a row.*lower optim\.lr or optim\.max_grad_norm"):
        bad_step(math.nan)


def test_skipped_step_leaves_no_trace_in_the_next(tmp_path: Path) -> None:
    results = []
    for name in ENGINES:
        trainer = build(name, optim={"lr": 1e-3})
        train(trainer, range(2))
        trainer.backward(trainer.forward(batch(0)) * math.nan, last=True)
        trainer.step()
        train(trainer, range(2, 4))
        results.append(weights(trainer, tmp_path / name))
    assert difference(*results) < 1e-6


@pytest.mark.parametrize("gather_weights", [True, False])
def test_generation_then_training(tmp_path: Path, gather_weights: bool) -> None:
    results = []
    for name in ENGINES:
        trainer = build(name, optim={"lr": 1e-3}, rollout={"gather_weights": gather_weights})
        assert trainer.synced_gpus is False  # one rank
        train(trainer, range(1))
        samples = []
        for step in range(1, 3):
            with trainer.full_weights() as module, torch.no_grad():
                samples.append(module.model.generate(batch(9, rows=2), max_new_tokens=6, do_sample=False))
            train(trainer, range(step, step + 1))
        results.append((samples, weights(trainer, tmp_path / name)))
    assert all(torch.equal(left, right) for left, right in zip(results[0][0], results[1][0], strict=True))
    assert difference(results[0][1], results[1][1]) < 1e-6


def test_weight_decay_is_for_matrices_only() -> None:
    groups = optimizer.parameter_groups(policy(tied=True), weight_decay=0.1)
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert all(p.ndim == 2 for p in groups[0]["params"]) and all(p.ndim == 1 for p in groups[1]["params"])
    assert len({id(p) for g in groups for p in g["params"]}) == len(list(policy(tied=True).parameters()))


def test_learning_rate_schedule() -> None:
    optim = dataclasses.replace(config().optim, lr=1.0, warmup_steps=4, min_lr_ratio=0.1, schedule="cosine")
    rates = [learning_rate(optim, step, total_steps=14) for step in range(20)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[9] == pytest.approx(0.55)
    assert rates[14:] == pytest.approx([0.1] * 6)
    assert all(left >= right for left, right in itertools.pairwise(rates[4:]))
    for step, spent, rate in ((2, 0.9, 0.75), (4, 0.5, 0.55), (9, 0.2, 0.55), (4, 1.0, 0.1), (4, 1.7, 0.1)):
        assert learning_rate(optim, step, 14, spent) == pytest.approx(rate)  # the budget that is further along counts
    constant = dataclasses.replace(optim, schedule="constant", warmup_steps=0)
    assert {learning_rate(constant, step, 14) for step in range(20)} == {1.0}


@pytest.mark.parametrize(("name", "variables"), [("local", {"RANK": "0", "WORLD_SIZE": "2"}), ("zero3", {"RANK": "3"})])
def test_ranks_of_another_launcher_are_refused(
    name: str, variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in variables.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(ValueError, match=r"WORLD_SIZE=\d.*set engine\.num_processes"):
        startup.init(config(engine={"name": name}))


def test_missing_package_is_reported_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    from longctx_rl.engine import zero3

    monkeypatch.setattr(zero3.importlib.util, "find_spec", lambda package: None)
    with pytest.raises(ValueError, match=r"engine=zero3 .*pip install deepspeed, or set engine=local"):
        zero3.check_requirements()


def test_cuda_without_a_gpu_is_reported_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"engine\.device=cuda.*set engine\.device=cpu"):
        startup.build(config(engine={"name": "local", "device": "cuda"}), policy(), 1)
