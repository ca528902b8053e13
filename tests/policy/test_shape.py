"""Sizes of a model from its config.json, with and without transformers."""

import json
from pathlib import Path

import pytest
from transformers import Gemma4TextConfig

from longctx_rl.policy.shape import DecoderSizes, load_config, sizes_of
from longctx_rl.policy.weights import local_folder


@pytest.mark.parametrize("name", ["mini-student", "mini-teacher"])
def test_a_complete_config_gives_what_transformers_reads(name: str) -> None:
    assert sizes_of(name) == DecoderSizes.of(load_config(name))


def test_what_a_config_leaves_out_is_its_architectures_default(tmp_path: Path) -> None:
    folder = local_folder("mini-student")
    assert folder is not None
    values = json.loads((folder / "config.json").read_text())
    del values["head_dim"]  # 128 for Qwen3, whatever the hidden size
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert sizes_of(str(tmp_path)).attention == 128 * values["num_attention_heads"]


def test_a_broken_config_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=f"{tmp_path}/config.json is not JSON"):
        sizes_of(str(tmp_path))


def test_sizes_that_differ_between_layers(tmp_path: Path) -> None:
    Gemma4TextConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"does not state the sizes of a decoder .*per-layer attribute.*choose"):
        sizes_of(str(tmp_path))
