"""One rank, two ranks and new processes continue each other's training. Two ranks run once for all tests."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from engine_cases import difference, policy, stored, train, weights
from run_ranks import WIDTH, build, ranks, resume
from safetensors.torch import load_file, save_file

from longctx_rl.engine import checkpoint
from rank_processes import run_ranks


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The results of two ranks, and those of one rank for comparison."""
    root = tmp_path_factory.mktemp("ranks")
    trainer = build()
    norms = train(trainer, range(3))
    weights(trainer, root / "one" / "checkpoint")
    norms += train(trainer, range(3, 6))
    weights(trainer, root / "one" / "done")
    policy(WIDTH).model.save_pretrained(root / "student")
    policy(48, seed=3).model.save_pretrained(root / "teacher")
    damage(root)
    run_ranks(ranks, root)
    return root, {**json.loads((root / "facts.json").read_text()), "one_norms": norms}


def damage(root: Path) -> None:
    """Write the student with other names, with another shape, and with a broken number in the second rank's shard."""
    weights = load_file(root / "student" / "model.safetensors")
    embedding, norm = "model.embed_tokens.weight", "model.norm.weight"
    broken = weights[embedding].clone()
    broken[-1, -1] = math.nan
    for name, changed in {
        "renamed": {key.replace("model.", "model.text."): value for key, value in weights.items()},
        "reshaped": weights | {norm: weights[norm][:-1]},
        "not finite": weights | {embedding: broken},
    }.items():
        shutil.copytree(root / "student", root / name)
        save_file(changed, root / name / "model.safetensors")


def test_two_ranks_equal_one(two: tuple[Path, dict[str, Any]]) -> None:
    root, facts = two
    assert facts["norms"] == pytest.approx(facts["one_norms"], rel=1e-5)
    assert difference(stored(root / "two"), stored(root / "one" / "done")) < 1e-6


def test_two_ranks_resume_bit_for_bit(two: tuple[Path, dict[str, Any]]) -> None:
    root, _ = two
    assert difference(stored(root / "two-resumed"), stored(root / "two")) == 0.0


def test_one_rank_checkpoint_continues_on_two(two: tuple[Path, dict[str, Any]]) -> None:
    root, _ = two
    assert difference(stored(root / "one-then-two"), stored(root / "one" / "done")) < 1e-6


@pytest.mark.parametrize("name", ["local", "zero3"])
def test_two_rank_checkpoint_continues_on_one(two: tuple[Path, dict[str, Any]], tmp_path: Path, name: str) -> None:
    root, _ = two
    found = checkpoint.latest_checkpoint(root)
    assert found is not None and found.name == "step-000003"
    checkpoint.verify(found)
    assert len(checkpoint.read_trainer_state(found)["rng"]) == 2
    trainer = build(policy(WIDTH, seed=5), engine={"name": name})
    trainer.load(found)
    train(trainer, range(3, 6))
    assert difference(weights(trainer, tmp_path), stored(root / "two")) < 1e-6


def test_sharded_weights_equal_resident_ones(two: tuple[Path, dict[str, Any]]) -> None:
    root, _ = two
    assert difference(stored(root / "sharded-on"), stored(root / "two")) < 1e-6
    assert difference(stored(root / "sharded-on"), stored(root / "sharded-loaded")) == 0.0


def test_weights_that_are_refused_in_shards(two: tuple[Path, dict[str, Any]]) -> None:
    models = two[1]["models"]
    assert models["student"] == ["", ""]
    for name, problem in (
        ("renamed", "lacks lm_head.weight"),
        ("reshaped", "[32] instead of [33]"),
        ("not finite", "values in model.embed_tokens.weight that are not finite"),
    ):
        assert all(problem in sentence for sentence in models[name])


def test_weights_are_gathered_once_to_sample_and_not_for_a_replicated_teacher(
    two: tuple[Path, dict[str, Any]],
) -> None:
    gathers = two[1]["gathers"]
    assert gathers["replicated teacher"] == 0 < gathers["sharded teacher"]
    assert gathers["sampling 8 tokens"] == gathers["sampling 2 tokens"] > 0


def test_generation_with_and_without_gathered_weights(two: tuple[Path, dict[str, Any]]) -> None:
    _, facts = two
    gathered, synced = facts["samples"]
    assert gathered == synced
    assert [len(row) for row in gathered] == [15, 18] and gathered[1][:15] == gathered[0]


def test_parts_of_the_gradient_are_the_whole(two: tuple[Path, dict[str, Any]]) -> None:
    parts, whole = two[1]["gradient"]
    assert parts == pytest.approx(whole, rel=1e-5) and whole > 0


def test_gradient_that_is_not_finite_on_one_rank_is_skipped_on_all(two: tuple[Path, dict[str, Any]]) -> None:
    assert two[1]["skipped"] == [True, True]


def test_bfloat16_trains_on_two_ranks(two: tuple[Path, dict[str, Any]]) -> None:
    losses = two[1]["bfloat16"]
    assert losses[-1] < losses[0] - 0.25


def test_full_disk_on_the_main_rank_is_reported_on_all(two: tuple[Path, dict[str, Any]]) -> None:
    root, facts = two
    assert len(facts["disk_full"]) == 2
    assert all("No space left on device" in sentence for sentence in facts["disk_full"])
    assert [path.name for path in (root / "checkpoints").iterdir()] == ["step-000003"]


def test_collectives(two: tuple[Path, dict[str, Any]]) -> None:
    assert two[1]["collectives"] == {
        "gather": [0, "x", 1, "x"],
        "sum": {"both": 3.0, "only0": 2.0, "only1": 2.0},
        "max": {"both": 2.0},
        "broadcast": {"rank": 0},
        "flag": False,
        "any": True,
        "rng": 2,
    }


def test_new_process_resumes_bit_for_bit(tmp_path: Path) -> None:
    uninterrupted = {}
    for name in ("local", "zero3"):
        trainer = build(engine={"name": name})
        train(trainer, range(3))
        weights(trainer, tmp_path / name / "checkpoint")
        uninterrupted[name] = train(trainer, range(3, 6)), weights(trainer, tmp_path / name / "done")
    run_ranks(resume, tmp_path, ranks=1)
    assert (tmp_path / "stdout").read_text() == ""
    for name, (norms, tensors) in uninterrupted.items():
        assert json.loads((tmp_path / name / "resumed.json").read_text()) == norms
        assert difference(stored(tmp_path / name / "resumed"), tensors) == 0.0
