"""What the tests run in other processes: ``resume`` on one rank, ``ranks`` on two."""

import json
import math
import os
from pathlib import Path
from typing import Any

import torch
from engine_cases import Policy, batch, config, policy, train, weights
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from longctx_rl.engine import Engine, checkpoint, distributed, startup, zero3
from longctx_rl.policy.loading import load_model

WIDTH = 33
"""Odd, so that shards of two ranks are padded."""


def build(module: Policy | None = None, **groups: dict[str, Any]) -> Engine:
    groups["optim"] = {"lr": 1e-3, **groups.get("optim", {})}
    return startup.build(config(**groups), module or policy(WIDTH), total_steps=10)


def resume(root: Path) -> None:
    """Continue each engine's checkpoint from step 3 to step 6, without a compiler in reach. Prints to ``stdout``."""
    os.environ["PATH"] = "/nonexistent"
    with (root / "stdout").open("w") as printed:
        os.dup2(printed.fileno(), 1)
    for name in ("local", "zero3"):
        startup.init(config(engine={"name": name}))
        trainer = build(policy(WIDTH, seed=5), engine={"name": name})
        trainer.load(root / name / "checkpoint")
        norms = train(trainer, range(3, 6))
        weights(trainer, root / name / "resumed")
        (root / name / "resumed.json").write_text(json.dumps(norms))
    distributed.shutdown()


def ranks(root: Path) -> None:
    """Run all checks on two ranks. Values for the tests are written to ``facts.json``."""
    startup.init(config(engine={"num_processes": 2}))
    facts: dict[str, Any] = {"collectives": collectives()}
    facts["norms"] = training(root)
    training_resumed(root)
    facts["gradient"] = gradient_in_parts()
    facts["skipped"] = not_finite_on_one_rank()
    facts["samples"] = [generation(gather) for gather in (True, False)]
    facts["gathers"] = sharded_weights(root)
    facts["models"] = {name: loaded(root / name) for name in ("student", "renamed", "reshaped", "not finite")}
    facts["bfloat16"] = bfloat16()
    facts["disk_full"] = disk_full(root)
    if distributed.is_main():
        (root / "facts.json").write_text(json.dumps(facts))
    distributed.shutdown()


def collectives() -> dict[str, Any]:
    rank = distributed.rank()
    return {
        "gather": distributed.gather([rank, "x"]),
        "sum": distributed.all_reduce_sum({"both": rank + 1.0, f"only{rank}": 2.0}),
        "max": distributed.all_reduce_max({"both": rank + 1.0}),
        "broadcast": distributed.broadcast({"rank": rank}),
        "flag": distributed.broadcast_flag(rank == 1),
        "any": distributed.any_rank(rank == 1),
        "rng": len(checkpoint.rng_states()),
    }


def training(root: Path) -> list[float]:
    """Train six steps with a checkpoint after three; then train three steps from a checkpoint of one rank."""
    trainer = build()
    norms = train(trainer, range(3), micro_batches=2)
    checkpoint.save_checkpoint(root, 3, trainer.save, {"rng": checkpoint.rng_states()}, keep=1)
    norms += train(trainer, range(3, 6), micro_batches=2)
    weights(trainer, root / "two")
    trainer = build(policy(WIDTH, seed=5))
    trainer.load(root / "one" / "checkpoint")
    train(trainer, range(3, 6), micro_batches=2)
    weights(trainer, root / "one-then-two")
    return norms


def training_resumed(root: Path) -> None:
    """Continue the checkpoint of two ranks on two ranks."""
    found = checkpoint.latest_checkpoint(root)
    assert found is not None
    checkpoint.verify(found)
    trainer = build(policy(WIDTH, seed=5))
    trainer.load(found)
    train(trainer, range(3, 6), micro_batches=2)
    weights(trainer, root / "two-resumed")


def gradient_in_parts() -> list[float]:
    """Return the norm of the gradient, computed from the ranks' parts and as reported by the step."""
    trainer = build()
    trainer.backward(trainer.forward(batch(distributed.rank())) / 22, last=True)
    squared = distributed.all_reduce_sum({"gradient": trainer.gradient().square().sum().item()})["gradient"]
    return [math.sqrt(squared), trainer.step().grad_norm]


def not_finite_on_one_rank() -> list[bool]:
    trainer = build()
    factor = math.nan if distributed.rank() == 1 else 1.0
    trainer.backward(trainer.forward(batch(0)) * factor, last=True)
    return distributed.gather([trainer.step().skipped])


def generation(gather_weights: bool) -> list[list[int]]:
    """Generate different lengths on each rank, then train."""
    trainer = build(rollout={"gather_weights": gather_weights})
    assert trainer.synced_gpus is not gather_weights
    train(trainer, range(1), micro_batches=2)
    with trainer.full_weights() as module, torch.no_grad():
        limit = 3 + 3 * distributed.rank()
        out = module.model.generate(
            batch(9), max_new_tokens=limit, min_new_tokens=limit, do_sample=False, synced_gpus=trainer.synced_gpus
        )
    assert math.isfinite(train(trainer, range(1, 2), micro_batches=2)[0])
    return distributed.gather([out[0].tolist()])


class Gathers(TorchDispatchMode):
    """Counts all-gathers of weights while entered."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += "allgather" in str(func)
        return func(*args, **(kwargs or {}))


def sharded_weights(root: Path) -> dict[str, int]:
    """Train like a large model: sharded on loading, nothing resident, with a frozen scorer of another width."""
    zero3.SMALL_MODEL_NUMEL = zero3.RESIDENT_NUMEL = 0
    with startup.loading(config()):
        student = AutoModelForCausalLM.from_pretrained(root / "student")
        teacher = Policy(AutoModelForCausalLM.from_pretrained(root / "teacher"))
    assert student.model.embed_tokens.weight.shape == (0,)
    assert AutoModelForCausalLM.from_pretrained(root / "student").model.embed_tokens.weight.shape == (64, WIDTH)
    trainer = build(Policy(student))
    frozen = trainer.freeze(teacher)
    whole = Policy(AutoModelForCausalLM.from_pretrained(root / "teacher"))
    for step in range(3):
        with torch.no_grad():
            assert torch.allclose(frozen(batch(step)), whole(batch(step)), rtol=1e-5)
        train(trainer, range(step, step + 1), micro_batches=2)
    head = trainer.full_parameter(teacher.model.get_output_embeddings().weight)
    assert torch.equal(head, whole.model.get_output_embeddings().weight)
    gathers = {}
    for name, scorer in (("sharded", frozen), ("replicated", trainer.freeze(whole))):
        with Gathers() as seen, torch.no_grad():
            scorer(batch(0))
        gathers[f"{name} teacher"] = seen.count
    for length in (2, 8):
        with Gathers() as seen, trainer.full_weights() as module, torch.no_grad():
            module.model.generate(batch(9), max_new_tokens=length, min_new_tokens=length, do_sample=False)
        gathers[f"sampling {length} tokens"] = seen.count
    trainer.save(_fresh(root / "sharded"))
    again = build(policy(WIDTH, seed=5))
    again.load(root / "sharded")
    for each, name in ((trainer, "sharded-on"), (again, "sharded-loaded")):
        train(each, range(3, 6), micro_batches=2)
        weights(each, root / name)
    zero3.SMALL_MODEL_NUMEL, zero3.RESIDENT_NUMEL = 20_000_000, 100_000
    return gathers


def loaded(folder: Path) -> list[str]:
    """Load a model in shards, and return each rank's reason for refusing it; empty: it loaded."""
    with startup.loading(config()):
        try:
            model = load_model(str(folder))
        except ValueError as error:
            return distributed.gather([str(error)])
    assert model.model.embed_tokens.weight.shape == (0,)
    return distributed.gather([""])


def bfloat16() -> list[float]:
    trainer = build(model={"dtype": "bfloat16"}, optim={"lr": 3e-3, "warmup_steps": 0})
    losses = []
    for _ in range(12):
        loss = trainer.forward(batch(0)) / 22
        trainer.backward(loss, last=True)
        trainer.step()
        losses.append(loss.item())
    return losses


def disk_full(root: Path) -> list[str]:
    """Fail on the main rank with a full disk: every rank gets the message and none waits for another."""

    def write(directory: Path) -> None:
        def fail() -> None:
            raise OSError(28, "No space left on device")

        distributed.on_main(fail)

    try:
        checkpoint.save_checkpoint(root, 9, write, {}, keep=1)
    except ValueError as error:
        return distributed.gather([str(error)])
    raise AssertionError("the failure was not reported")


def _fresh(directory: Path) -> Path:
    distributed.on_main(lambda: directory.mkdir())
    return directory
