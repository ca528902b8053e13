"""Model folders that cannot be used are refused, with the cause and the way out; nothing is unpickled."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from longctx_rl.policy.loading import SHIPPED, load_model, load_tokenizer

ADVICE = r"give a folder with config.json, tokenizer.json and whole .safetensors weights"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SHIPPED / "mini-student", tmp_path / "student"))


def refused(folder: Path) -> str:
    with pytest.raises(ValueError, match=ADVICE) as caught:
        load_model(str(folder))
    sentence = str(caught.value)
    assert sentence.startswith(f"{folder} cannot be loaded (") and "\n" not in sentence
    return sentence


def test_truncated_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    refused(folder)


def test_weights_that_would_have_to_be_unpickled(folder: Path) -> None:
    model = load_model(str(folder))
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    refused(folder)


@pytest.mark.parametrize("content", ["{", json.dumps({"model_type": "nothing"}), "{}"])
def test_unusable_config(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    refused(folder)


def test_missing_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=ADVICE) as caught:
        load_tokenizer(str(folder))
    assert "\n" not in str(caught.value)
