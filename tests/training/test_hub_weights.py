"""A run notes the weights of Hub models, and a resumed one notices that the local cache has others by now."""

import json
from pathlib import Path

import pytest

import hub_cache
from config.composing import composed
from longctx_rl import cli
from longctx_rl.config.model import ArchitectureConfig
from longctx_rl.launch.rank import execute
from longctx_rl.policy.loading import fresh_model, load_tokenizer
from longctx_rl.policy.weights import weights_hash

SHAPE = ArchitectureConfig(
    hidden_size=32, intermediate_size=64, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=16, max_length=512,
    rope_theta=10_000.0, initializer_range=0.3,
)  # fmt: skip


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_resumed_run_with_other_weights_in_the_hub_cache_is_refused(
    role: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cache, tokenizer = tmp_path / "cache", load_tokenizer("mini-student")
    hub_cache.use(cache, monkeypatch)
    for seed in range(3):
        fresh_model(SHAPE, tokenizer, seed).save_pretrained(tmp_path / str(seed), max_shard_size="10KB")
        tokenizer.save_pretrained(tmp_path / str(seed))
    hub_cache.download(cache, "owner/student", tmp_path / "0", "a" * 40)
    hub_cache.download(cache, "owner/teacher", tmp_path / "1", "b" * 40)
    arguments = [
        "+algo=kd", "+experiment=smoke", "eval=none", "logging=none", "engine=local", f"runs_root={tmp_path / 'runs'}",
        "model.student=owner/student", "model.teacher=owner/teacher",
    ]  # fmt: skip
    config = composed(*arguments, "budget.steps=1")
    assert execute(config) == 0
    noted = json.loads(Path(config.run_dir, "environment.json").read_text())["weights"]
    assert noted == {"student": weights_hash(tmp_path / "0"), "teacher": weights_hash(tmp_path / "1")}
    hub_cache.download(cache, f"owner/{role}", tmp_path / "2", "c" * 40)
    resumed = composed(*arguments, "budget.steps=2", "resume=true")
    assert execute(resumed) == cli.UNUSABLE
    assert f"the {role} of {config.run_dir} has different weights" in capsys.readouterr().err
