"""Checkpoints are complete or absent, and damage is reported."""

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_cases import batch, config, difference, policy, train, weights
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from longctx_rl.engine import Engine, checkpoint, distributed, startup, tensors
from longctx_rl.engine.optimizer import TrainingDiverged

ENGINES = ("local", "zero3")


def build(name: str = "local", **groups: dict[str, Any]) -> Engine:
    module = policy(seed=groups.pop("seed", 0), tied=groups.pop("tied", True))  # type: ignore[arg-type]
    return startup.build(config(engine={"name": name}, **groups), module, total_steps=10)


def save(run_dir: Path, trainer: Engine, step: int, keep: int = 3) -> Path:
    return checkpoint.save_checkpoint(run_dir, step, trainer.save, {"step": step}, keep)


@pytest.mark.parametrize("second", ENGINES)
@pytest.mark.parametrize("first", ENGINES)
def test_each_engine_continues_the_other(tmp_path: Path, first: str, second: str) -> None:
    groups: dict[str, Any] = {"optim": {"lr": 1e-3}}
    trainer = build(first, **groups)
    train(trainer, range(3))
    found = save(tmp_path, trainer, 3)
    norms = train(trainer, range(3, 6))
    resumed = build(second, seed=4, **groups)
    resumed.load(found)
    assert train(resumed, range(3, 6)) == (norms if first == second else pytest.approx(norms, rel=1e-5))
    gap = difference(weights(trainer, tmp_path / "a"), weights(resumed, tmp_path / "b"))
    assert gap == 0.0 if first == second else gap < 1e-6


@pytest.mark.parametrize("name", ENGINES)
def test_bfloat16_resumes_bit_for_bit(tmp_path: Path, name: str) -> None:
    groups: dict[str, Any] = {"model": {"dtype": "bfloat16"}}
    trainer = build(name, **groups)
    train(trainer, range(2))
    found = save(tmp_path, trainer, 2)
    norms = train(trainer, range(2, 4))
    resumed = build(name, seed=4, **groups)
    resumed.load(found)
    assert train(resumed, range(2, 4)) == norms
    assert difference(weights(trainer, tmp_path / "a"), weights(resumed, tmp_path / "b")) == 0.0


@pytest.mark.parametrize("name", ENGINES)
def test_counters_survive(tmp_path: Path, name: str) -> None:
    trainer = build(name, optim={"max_skipped": 2})
    lrs = []
    for factor in (1.0, float("nan")):
        trainer.backward(trainer.forward(batch(0)) * factor, last=True)
        lrs.append(trainer.step().lr)
    found = save(tmp_path, trainer, 2)
    assert json.loads((found / "engine.json").read_text())["progress"] == {
        "step": 2,
        "updates": 1,
        "skipped_in_row": 1,
    }
    resumed = build(name, optim={"max_skipped": 2})
    resumed.load(found)
    resumed.backward(resumed.forward(batch(0)) * float("nan"), last=True)
    with pytest.raises(TrainingDiverged):
        resumed.step()


def test_keeps_the_last_and_removes_the_remains_of_killed_saves(tmp_path: Path) -> None:
    trainer = build()
    assert checkpoint.latest_checkpoint(tmp_path) is None
    leftover = tmp_path / "checkpoints" / ".tmp-step-000007"
    leftover.mkdir(parents=True)
    (leftover / "weights.safetensors").write_bytes(b"half")
    assert checkpoint.latest_checkpoint(tmp_path) is None
    for step in (2, 10, 1_000_000):
        assert save(tmp_path, trainer, step, keep=2) == checkpoint.latest_checkpoint(tmp_path)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-000010", "step-1000000"]
    assert checkpoint.read_trainer_state(tmp_path / "checkpoints" / "step-000010") == {"step": 10}


def test_a_kill_during_the_save_leaves_the_earlier_checkpoint(tmp_path: Path) -> None:
    trainer = build()
    first = save(tmp_path, trainer, 1)

    def killed(directory: Path) -> None:
        trainer.save(directory)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoint.save_checkpoint(tmp_path, 2, killed, {}, keep=1)
    assert checkpoint.latest_checkpoint(tmp_path) == first
    checkpoint.verify(first)
    assert save(tmp_path, trainer, 2, keep=1).name == "step-000002"
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1


def test_checkpoint_of_the_same_step_is_kept_if_intact_and_replaced_if_damaged(tmp_path: Path) -> None:
    trainer = build()
    found = save(tmp_path, trainer, 1)
    before = (found / "manifest.json").stat().st_mtime_ns
    save(tmp_path, trainer, 1)
    assert (found / "manifest.json").stat().st_mtime_ns == before
    (found / "weights.safetensors").unlink()
    save(tmp_path, trainer, 1)
    checkpoint.verify(found)


def test_damage_is_reported_with_the_file(tmp_path: Path) -> None:
    found = save(tmp_path, build(), 1)
    checkpoint.verify(found)
    file = found / "adam_exp_avg.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-10])
    with pytest.raises(ValueError, match=r"adam_exp_avg\.safetensors .*truncated.*remove .*step-000001"):
        checkpoint.verify(found)
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"adam_exp_avg\.safetensors .*checksum.*remove .*step-000001"):
        checkpoint.verify(found)
    file.unlink()
    with pytest.raises(ValueError, match=r"adam_exp_avg\.safetensors .*missing.*remove .*step-000001"):
        checkpoint.verify(found)


def test_other_folders_are_refused(tmp_path: Path) -> None:
    trainer = build()
    with pytest.raises(ValueError, match=rf"{tmp_path}/manifest\.json .*remove {tmp_path}"):
        checkpoint.verify(tmp_path)
    (tmp_path / "manifest.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match=rf"{tmp_path}/manifest\.json .*remove {tmp_path}"):
        checkpoint.verify(tmp_path)
    with pytest.raises(ValueError, match=rf"{tmp_path}/engine.json cannot be read .*choose another"):
        trainer.load(tmp_path)
    found = save(tmp_path, trainer, 1)
    other = startup.build(config(engine={"name": "local"}), policy(width=48), total_steps=10)
    with pytest.raises(ValueError, match=r"another model \(model\.model\..* shape .*choose another checkpoint"):
        other.load(found)
    shutil.copy(found / "manifest.json", found / "weights.safetensors")
    with pytest.raises(ValueError, match=r"weights\.safetensors cannot be read.*choose another checkpoint"):
        trainer.load(found)


@pytest.mark.parametrize("name", ENGINES)
def test_full_disk_is_reported(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = build(name)
    first = save(tmp_path, trainer, 1)
    real, calls = tensors.save_file, 0

    def fails_on_the_second_file(*args: Any, **kwargs: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise tensors.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        real(*args, **kwargs)

    monkeypatch.setattr(tensors, "save_file", fails_on_the_second_file)
    with pytest.raises(ValueError, match=r"No space left on device.*resume=true .*from step-000001$") as caught:
        save(tmp_path, trainer, 2)
    assert isinstance(caught.value.__cause__, OSError) and caught.value.__cause__.errno == errno.ENOSPC
    assert list((tmp_path / "checkpoints").iterdir()) == [first]
    checkpoint.verify(first)
    monkeypatch.undo()
    train(trainer, range(1))
    checkpoint.verify(save(tmp_path, trainer, 2))


def test_large_states_are_sharded(tmp_path: Path) -> None:
    content = {f"t{i}": torch.full((10,), float(i)) for i in range(5)}
    tensors.write_tensors(tmp_path, "weights", content.items(), limit=100)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *(f"weights-0000{i}-of-00003.safetensors" for i in (1, 2, 3)),
        "weights.safetensors.index.json",
    ]
    files = tensors.TensorFiles(tmp_path, "weights")
    assert files.shapes == dict.fromkeys(content, (10,))
    assert all(torch.equal(files.get(name), tensor) for name, tensor in content.items())


def test_random_generators_continue() -> None:
    states = checkpoint.rng_states()
    assert json.loads(json.dumps(states)) == states
    first = torch.rand(3)
    checkpoint.restore_rng(states)
    assert torch.equal(torch.rand(3), first)
    checkpoint.restore_rng([])  # a rank without an entry


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models

    vocabulary = {"<pad>": 0, "<eos>": 1, "<unk>": 2, **{chr(97 + i): 3 + i for i in range(26)}}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>")


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ENGINES)
def test_export_loads_with_transformers(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, name: str, dtype: str, tied: bool
) -> None:
    trainer = build(name, model={"dtype": dtype}, tied=tied)  # type: ignore[arg-type]
    folder = tmp_path / "export"
    for step in range(2):  # the second export replaces the first
        train(trainer, range(step, step + 1))
        trainer.export(folder, tokenizer)
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.dtype == getattr(torch, dtype)
    assert loaded.config.tie_word_embeddings is tied
    with trainer.full_weights() as module, torch.no_grad():
        expected = module.model(batch(0)).logits.float()
    with torch.no_grad():
        logits = loaded(batch(0)).logits.float()
    if name == "zero3" or dtype == "float32":
        assert torch.equal(logits, expected)
    assert torch.allclose(logits, expected, atol=0.05)
    assert AutoTokenizer.from_pretrained(folder).eos_token == "<eos>"
    assert {path.name for path in tmp_path.iterdir()} == {"export"}
    assert distributed.is_main() and distributed.rank() == 0
