"""YaRN stretches a loaded model as its paper says, and the sizes of the Hub's models are those of their cards."""

import math
import shutil
from pathlib import Path
from typing import NoReturn

import pytest
import torch

from longctx_rl.config.model import YarnConfig
from longctx_rl.policy.loading import load_model, load_tokenizer
from longctx_rl.policy.shape import KNOWN
from longctx_rl.policy.weights import SHIPPED, explained
from longctx_rl.rollout.agreement import check_samples
from longctx_rl.rollout.hf import HFSampler


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SHIPPED / "mini-student", tmp_path / "student"))


def test_yarn_slows_the_slow_rotations(folder: Path, tmp_path: Path) -> None:
    """YaRN (arXiv 2309.00071): fast rotations stay, slow ones become ``factor`` times slower, logits are sharpened."""
    yarn = YarnConfig(factor=4.0, original_context=4096)
    plain, long = load_model(str(folder)), load_model(str(folder), yarn)
    before, after = (model.base_model.rotary_emb for model in (plain, long))
    ratio = before.inv_freq / after.inv_freq
    assert ratio[0] == pytest.approx(1.0) and ratio[-1] == pytest.approx(4.0)
    assert after.attention_scaling == pytest.approx(0.1 * math.log(4.0) + 1.0)
    assert long.config.max_position_embeddings == 16_384
    long.save_pretrained(tmp_path / "export")
    for again in (load_model(str(tmp_path / "export")), load_model(str(tmp_path / "export"), yarn)):
        assert torch.equal(again.base_model.rotary_emb.inv_freq, after.inv_freq)
    with pytest.raises(ValueError, match=r"rope_type=yarn.*set model\.yarn=null"):
        load_model(str(tmp_path / "export"), YarnConfig(factor=2.0, original_context=4096))
    with pytest.raises(ValueError, match=r"4096.*2048: set model\.yarn=null"):
        load_model(str(folder), YarnConfig(factor=2.0, original_context=1024))


@pytest.mark.parametrize(
    ("name", "billions", "without_embedding"),
    [
        ("Qwen/Qwen3-0.6B", 0.6, 0.44),
        ("Qwen/Qwen3-1.7B", 1.7, 1.4),
        ("Qwen/Qwen3-4B", 4.0, 3.6),
        ("Qwen/Qwen3-32B", 32.8, 31.2),
    ],
)
def test_known_sizes_are_those_of_the_model_cards(name: str, billions: float, without_embedding: float) -> None:
    known = KNOWN[name]
    assert known.parameters / 1e9 == pytest.approx(billions, rel=0.03)
    assert known.layers * known.layer_parameters / 1e9 == pytest.approx(without_embedding, rel=0.03)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_too_little_memory_is_not_a_damaged_model(
    error: Exception, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> NoReturn:
        raise error

    with pytest.raises(type(error)) as raised, explained("student", str(folder)):
        fail()
    assert raised.value is error
    monkeypatch.setattr(HFSampler, "sample", fail)
    with pytest.raises(type(error)) as raised:
        check_samples(load_model(str(folder)), load_tokenizer(str(folder)))
    assert raised.value is error
