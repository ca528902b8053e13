"""A run records the weights of Hub models, and a resumed run detects that the local cache holds different ones."""

import json
from pathlib import Path

import pytest

import hub_cache
from longctx_rl import cli
from longctx_rl.launch import rank
from longctx_rl.policy.weights import weights_hash
from small_runs import save_model, smoke, train


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_resumed_run_with_other_weights_in_the_hub_cache_is_refused(
    role: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "cache"
    hub_cache.use(cache, monkeypatch)
    saved = [save_model(tmp_path / str(seed), 32, seed, max_shard_size="10KB") for seed in range(3)]
    hub_cache.download(cache, "owner/student", saved[0], "a" * 40)
    hub_cache.download(cache, "owner/teacher", saved[1], "b" * 40)
    settings = ("+algo=kd", "eval=none", "model.student=owner/student", "model.teacher=owner/teacher")
    config = smoke(tmp_path / "runs", *settings, "budget.steps=1")
    train(config)
    noted = json.loads(Path(config.run_dir, "environment.json").read_text())["weights"]
    assert noted == {"student": weights_hash(saved[0]), "teacher": weights_hash(saved[1])}
    hub_cache.download(cache, f"owner/{role}", saved[2], "c" * 40)
    resumed = smoke(tmp_path / "runs", *settings, "budget.steps=2", "resume=true")
    assert rank.execute(resumed) == cli.UNUSABLE
    assert f"the {role} of {config.run_dir} " in capsys.readouterr().err
