"""One hash of a model's weights: of the files that transformers loads, wherever they are and however they are split."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import hub_cache
from longctx_rl.policy.loading import load_model
from longctx_rl.policy.weights import SHIPPED, config_hash, locate, weights_hash
from packed_builders import tiny_model

NAME = "owner/tiny"
COMMIT = "0" * 39 + "1"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_model(dtype=torch.float32).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def sharded(folder: Path, into: Path, dtype: torch.dtype = torch.float32) -> Path:
    load_model(str(folder)).to(dtype).save_pretrained(into, max_shard_size="4KB")  # type: ignore[arg-type]
    assert len(list(into.glob("*.safetensors"))) > 1
    return into


def flip_last_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def hash_of(parameters: list[tuple[str, Tensor]]) -> str:
    """From the definition: names and bytes, sorted by name."""
    digest = hashlib.blake2b(digest_size=16)
    for name, parameter in sorted(parameters):
        digest.update(name.encode())
        digest.update(parameter.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("name", ["mini-student", "mini-teacher"])
def test_a_float32_checkpoint_has_the_hash_of_the_loaded_parameters(name: str) -> None:
    assert weights_hash(name) == weights_hash(SHIPPED / name) == hash_of(list(load_model(name).named_parameters()))


def test_shards_and_a_single_file_have_the_same_hash(folder: Path, tmp_path: Path) -> None:
    shards = sharded(folder, tmp_path / "shards")
    assert weights_hash(str(shards)) == weights_hash(str(folder)) is not None
    assert weights_hash(str(sharded(folder, tmp_path / "half", torch.bfloat16))) != weights_hash(str(folder))
    flip_last_byte(sorted(shards.glob("*.safetensors"))[-1])
    assert weights_hash(str(shards)) != weights_hash(str(folder))


def test_only_files_that_transformers_loads_count(folder: Path, tmp_path: Path) -> None:
    """``model.safetensors`` before the shards of an index, and those before anything else in the folder."""
    before = weights_hash(str(folder))
    for file in sharded(folder, tmp_path / "shards").iterdir():
        if file.name != "config.json":
            shutil.copy(file, folder)
    shutil.copy(folder / "model.safetensors", folder / "optimizer.safetensors")
    for file in [*folder.glob("model-*.safetensors"), folder / "optimizer.safetensors"]:
        flip_last_byte(file)
    assert weights_hash(str(folder)) == before
    assert torch.equal(
        *(load_model(str(place)).get_input_embeddings().weight for place in (folder, tmp_path / "shards"))
    )
    (folder / "model.safetensors").unlink()
    assert weights_hash(str(folder)) not in (before, None)
    changed = weights_hash(str(folder))
    flip_last_byte(folder / "optimizer.safetensors")
    assert weights_hash(str(folder)) == changed


def test_a_hub_model_is_read_from_the_snapshot_of_main(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_cache.use(tmp_path / "cache", monkeypatch)
    assert weights_hash(NAME) is config_hash(NAME) is None
    hub_cache.download(tmp_path / "cache", NAME, sharded(folder, tmp_path / "shards"), COMMIT)
    assert weights_hash(NAME) == weights_hash(str(folder))
    assert config_hash(NAME) == config_hash(str(tmp_path / "shards")) is not None
    assert hash_of(list(load_model(NAME).named_parameters())) == weights_hash(NAME)
    newer = hub_cache.download(tmp_path / "cache", NAME, folder, COMMIT[::-1])
    flip_last_byte(newer / "model.safetensors")
    assert weights_hash(NAME) == weights_hash(str(newer)) != weights_hash(str(folder))


def test_incomplete_weights_have_no_hash(folder: Path, tmp_path: Path) -> None:
    shards = sharded(folder, tmp_path / "shards")
    next(shards.glob("*.safetensors")).unlink()
    assert weights_hash(str(shards)) is None
    (folder / "model.safetensors").unlink()
    assert weights_hash(str(folder)) is weights_hash(tmp_path / "nothing") is None


def test_a_truncated_file_is_refused(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ValueError, match=rf"{file}.*ends before its last tensor.*copy or download the model again"):
        weights_hash(str(folder))


def test_a_changed_config_has_another_hash(folder: Path) -> None:
    weights, config = weights_hash(str(folder)), config_hash(str(folder))
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | {"rms_norm_eps": 1e-5}))
    assert weights_hash(str(folder)) == weights and config_hash(str(folder)) not in (config, None)


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "no-such-model", "a/b/c"])
def test_names_of_nothing_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name}.*give a directory, a Hub id \(owner/name\), mini-student"):
        locate(name)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"{tmp_path}.*config\.json.*give the export/ folder of a run"):
        locate(str(tmp_path))


@pytest.mark.parametrize("module", ["weights", "shape"])
def test_reports_can_use_it_without_torch(module: str) -> None:
    code = f"import sys, longctx_rl.policy.{module}; sys.exit(bool({{'torch', 'transformers'}} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
