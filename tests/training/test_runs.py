"""Whole runs at the smallest size: every method, cold start, resume against uninterrupted, ranks, limits."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from config.composing import composed
from longctx_rl import cli
from longctx_rl.config.model import ArchitectureConfig
from longctx_rl.data.packing import pack
from longctx_rl.data.source import recorded_group
from longctx_rl.engine import distributed, startup
from longctx_rl.policy.loading import fresh_model, load_tokenizer
from longctx_rl.policy.weights import weights_hash
from longctx_rl.report import length_costs
from longctx_rl.report.collect import of_run
from longctx_rl.report.runs import read_run
from longctx_rl.runs.metrics import read_metrics
from longctx_rl.training import loop
from longctx_rl.training.assembly import build_parts

SHAPE = {
    "intermediate_size": 64,
    "num_layers": 2,
    "num_heads": 2,
    "num_kv_heads": 1,
    "head_dim": 16,
    "max_length": 512,
    "rope_theta": 10_000.0,
    "initializer_range": 0.3,
}
TIMED = ("time/", "perf/", "progress/wall_seconds")
"""Metrics that measure the machine, not the run."""


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Overrides that name a student and a wider teacher with random weights."""
    root = tmp_path_factory.mktemp("models")
    tokenizer = load_tokenizer("mini-student")
    for seed, (name, width) in enumerate((("student", 32), ("teacher", 48))):
        fresh_model(ArchitectureConfig(hidden_size=width, **SHAPE), tokenizer, seed).save_pretrained(root / name)  # type: ignore[arg-type]
        tokenizer.save_pretrained(root / name)
    return f"model.student={root / 'student'}", f"model.teacher={root / 'teacher'}"


def smoke(models: tuple[str, ...], root: Path, *overrides: str) -> list[str]:
    return ["+experiment=smoke", *models, f"runs_root={root}", "logging=none", *overrides]


def in_place(arguments: list[str]) -> list[dict[str, Any]]:
    """Train in this process; the rows of metrics.jsonl."""
    config = composed(*arguments, "engine=local")
    assert cli.execute(config, loop.run) == 0
    return read_metrics(Path(config.run_dir) / "metrics.jsonl")  # type: ignore[return-value]


def training_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of steps without what measures the machine."""
    return [
        {name: value for name, value in row.items() if not name.startswith(TIMED)}
        for row in rows
        if "loss/total" in row
    ]


@pytest.mark.parametrize("algo", ["sft", "kd", "grpo", "opd", "dgrpo"])
def test_every_method_trains_two_steps(algo: str, models: tuple[str, ...], tmp_path: Path) -> None:
    rows = in_place([f"+algo={algo}", *smoke(models, tmp_path)])
    steps = training_rows(rows)
    assert [row["step"] for row in steps] == [1, 2]
    assert all(row["loss/total"] is not None and row["grad/norm"] is not None for row in steps)
    (run,) = tmp_path.glob(f"smoke/{algo}-*")
    model = AutoModelForCausalLM.from_pretrained(run / "export")
    assert model.config.hidden_size == 32
    records = [json.loads(line) for line in (run / "evals" / "heldout.jsonl").read_text().splitlines()]
    assert {record["step"] for record in records} == {0, 2}
    result = of_run(read_run(run))
    used = ["student", "teacher"] if algo in ("kd", "opd", "dgrpo") else ["student"]
    folders = {role: Path(setting.partition("=")[2]) for role, setting in zip(used, models, strict=False)}
    weights = {role: weights_hash(folder) for role, folder in folders.items()}
    assert [result.origin[role] for role in ("student", "teacher")] == [weights["student"], weights.get("teacher")]
    spent, computed = result.costs[2], length_costs.cost_at(result, 192)  # all of its prompts are about as long
    assert computed is not None and computed.prompt == pytest.approx(spent["flops"] / spent["prompts"], rel=0.1)
    if algo in ("kd", "opd", "dgrpo"):
        assert steps[0]["teacher/kl_reverse"] > 0 and steps[0]["grad/norm"] > 0


def test_methods_keep_rollouts_of_the_same_prompts(models: tuple[str, ...], tmp_path: Path) -> None:
    """So that they can be read side by side. Each token carries its gap to the teacher where there is one."""
    kept = {}
    for algo in ("grpo", "opd", "dgrpo"):
        in_place([f"+algo={algo}", *smoke(models, tmp_path, "eval=none")])
        (run,) = tmp_path.glob(f"smoke/{algo}-*")
        files = sorted((run / "rollouts").iterdir())
        kept[algo] = [[json.loads(line) for line in file.read_text().splitlines()] for file in files]
    prompts = {
        algo: [[(row["id"], row["prompt_tail"]) for row in rows] for rows in steps] for algo, steps in kept.items()
    }
    assert prompts["grpo"] == prompts["opd"] == prompts["dgrpo"] and len(prompts["grpo"]) == 2
    assert not any("teacher_gap" in row for rows in kept["grpo"] for row in rows)
    for row in (row for algo in ("opd", "dgrpo") for rows in kept[algo] for row in rows):
        assert len(row["teacher_gap"]) == len(row["tokens_text"]) == row["tokens"] > 0
        assert any(row["teacher_gap"])


def test_a_run_starts_from_an_earlier_export(models: tuple[str, ...], tmp_path: Path) -> None:
    in_place(["+algo=sft", *smoke(models, tmp_path, "optim.lr=0.01", "eval=none")])
    (run,) = tmp_path.glob("smoke/sft-*")
    cold = in_place(["+algo=kd", *smoke(models, tmp_path, "eval=none")])
    warm_models = (f"model.student={run / 'export'}", models[1])
    warm = in_place(["+algo=kd", *smoke(warm_models, tmp_path, "eval=none", "experiment_name=warm")])
    assert training_rows(warm)[0]["loss/kd"] != training_rows(cold)[0]["loss/kd"]


def test_without_learning_the_ratio_is_one_and_the_sampler_agrees(models: tuple[str, ...], tmp_path: Path) -> None:
    rows = in_place(["+algo=grpo", *smoke(models, tmp_path, "optim.lr=0", "eval=none", "algo.updates_per_rollout=2")])
    for row in training_rows(rows):
        assert row["policy/ratio_mean"] == pytest.approx(1.0, abs=1e-6)
        assert row["policy/sampler_mismatch"] == pytest.approx(0.0, abs=1e-8)


def test_beta_zero_is_grpo_to_the_bit(tmp_path: Path) -> None:
    """On the shipped student, which is right at times in prompts of 768 tokens: there is an advantage to learn from."""
    settings = smoke((), tmp_path, "eval=none", "rollout.max_new_tokens=96", "data.lengths=[768]")
    grpo = training_rows(in_place(["+algo=grpo", *settings]))
    dgrpo = training_rows(in_place(["+algo=dgrpo", *settings, "algo.weights.kd=0"]))
    assert grpo == dgrpo
    assert grpo[0]["rollout/zero_std_groups"] < 1 and grpo[0]["grad/norm"] > 0


def test_activations_are_recomputed_if_asked_for(models: tuple[str, ...], tmp_path: Path) -> None:
    """A layer whose activations are checkpointed runs a second time in the backward pass."""
    calls = []
    for checkpointing in (False, True):
        setting = f"model.gradient_checkpointing={checkpointing}".lower()
        config = composed("+algo=sft", *smoke(models, tmp_path, "eval=none", setting), "engine=local")
        startup.init(config)
        try:
            parts = build_parts(config)
            group = recorded_group(parts.tokenizer, parts.source.document(0))
            count: list[int] = []
            with parts.engine.full_weights() as policy:
                layer = policy.model.base_model.layers[0]
                layer.self_attn.register_forward_pre_hook(lambda *_, count=count: count.append(1))
            scores = parts.engine.forward(pack([group], parts.engine.device), temperature=1.0)
            parts.engine.backward(scores.logprobs.sum(), last=True)
            calls.append(len(count))
        finally:
            distributed.shutdown()
    assert calls == [1, 2]


def test_a_diverged_run_says_so_in_one_sentence(
    models: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = smoke(models, tmp_path, "eval=none", "optim.lr=1e30", "optim.warmup_steps=0", "budget.steps=6")
    config = composed("+algo=sft", *settings, "optim.max_skipped=2", "engine=local")
    assert cli.execute(config, loop.run) == cli.DIVERGED
    told = capsys.readouterr().err
    assert told.startswith("error: the gradient was infinite or not a number in 2 steps in a row")
    assert "lower optim.lr" in told and "Traceback" not in told
    rows = training_rows(read_metrics(Path(config.run_dir) / "metrics.jsonl"))  # type: ignore[arg-type]
    assert [row["optim/skipped"] for row in rows] == [0, 1]


def test_a_full_disk_says_so_in_one_sentence(
    models: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the one file that is not written by Python: tokenizers reports the system's error in words alone."""
    save = PreTrainedTokenizerBase.save_pretrained

    def onto_a_full_disk(self: Any, folder: Path, **settings: Any) -> None:
        save(self, folder, **settings)
        self.backend_tokenizer.save("/dev/full")

    monkeypatch.setattr(PreTrainedTokenizerBase, "save_pretrained", onto_a_full_disk)
    config = composed("+algo=sft", *smoke(models, tmp_path, "eval=none"), "engine=local")
    assert cli.execute(config, loop.run) == cli.UNUSABLE
    told = capsys.readouterr().err
    assert "could not be exported" in told and "No space left on device" in told and "resume=true" in told
    assert not list(tmp_path.glob("smoke/*/.tmp-*")) and not list(tmp_path.glob("smoke/*/export"))


def test_all_ranks_count_the_seconds_of_the_main_one(
    models: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or one of them would see budget.seconds spent a step before the others, and leave them waiting."""
    broadcast = distributed.broadcast
    monkeypatch.setattr(
        loop.distributed, "broadcast", lambda value: 40.0 if isinstance(value, float) else broadcast(value)
    )
    settings = smoke(models, tmp_path, "eval=none", "budget.steps=9", "budget.seconds=100")
    rows = [row for row in in_place(["+algo=sft", *settings, "optim.warmup_steps=0"]) if "loss/total" in row]
    assert [row["progress/wall_seconds"] for row in rows] == [40.0, 80.0, 120.0]
    rates = [row["optim/lr"] for row in rows]
    assert rates[0] == 1e-3 and rates[2] < 2e-4  # the cosine follows the seconds that are spent


@pytest.mark.parametrize(
    ("file", "sentence"),
    [("weights.safetensors", "was changed after it was written"), ("trainer_state.json", "is truncated")],
)
def test_a_damaged_checkpoint_is_not_continued(
    file: str, sentence: str, models: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["+algo=sft", *smoke(models, tmp_path, "eval=none")]
    in_place(arguments)
    (damaged,) = tmp_path.glob(f"smoke/*/checkpoints/step-000002/{file}")
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content if file.startswith("weights") else content[:-3])
    config = composed(*arguments, "engine=local", "resume=true")
    assert cli.execute(config, loop.run) != 0
    told = capsys.readouterr().err
    assert sentence in told and f"remove {damaged.parent}" in told and "Traceback" not in told


def run_command(arguments: list[str], directory: Path) -> "subprocess.Popen[str]":
    source = str(Path(__file__).parents[2] / "src")
    return subprocess.Popen(
        [sys.executable, "-m", "longctx_rl", *arguments],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_killed_run_resumes_to_the_bit_on_zero3(models: tuple[str, ...], tmp_path: Path) -> None:
    # More steps than can be taken between the first checkpoint and the kill, however late that comes.
    arguments = ["+algo=dgrpo", *smoke(models, tmp_path, "budget.steps=15", "eval=none", "checkpoint.every=2")]
    whole = [*arguments, "experiment_name=whole"]
    uninterrupted = run_command(whole, tmp_path)
    _, stderr = uninterrupted.communicate(timeout=240)
    assert uninterrupted.returncode == 0, stderr
    killed = run_command(arguments, tmp_path)
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        if any(path.name.startswith("step-") for path in tmp_path.glob("smoke/*/checkpoints/*")):
            break
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    resumed = run_command([*arguments, "resume=true"], tmp_path)
    _, stderr = resumed.communicate(timeout=240)
    assert resumed.returncode == 0, stderr
    (first,) = tmp_path.glob("whole/*/metrics.jsonl")
    (second,) = tmp_path.glob("smoke/*/metrics.jsonl")
    assert training_rows(read_metrics(second)) == training_rows(read_metrics(first))  # type: ignore[arg-type]


@pytest.mark.parametrize("unequal", [False, True])
def test_two_ranks_take_the_same_step_as_one(unequal: bool, models: tuple[str, ...], tmp_path: Path) -> None:
    """``unequal``: answers of the shipped student differ in length, so one rank has more pieces to score."""
    settings = (
        "algo.updates_per_rollout=2",
        "model.scoring_chunk=8",
        "rollout.max_new_tokens=64",
        "data.lengths=[768]",
    )
    more = (*settings, "model.gradient_checkpointing=true") if unequal else models
    losses = []
    for ranks in (1, 2):
        overrides = ("eval=none", f"engine.num_processes={ranks}", f"experiment_name=ranks{ranks}", *more)
        run = run_command(["+algo=dgrpo", *smoke((), tmp_path, *overrides)], tmp_path)
        _, stderr = run.communicate(timeout=240)
        assert run.returncode == 0, stderr
        (metrics,) = tmp_path.glob(f"ranks{ranks}/*/metrics.jsonl")
        losses.append(training_rows(read_metrics(metrics)))  # type: ignore[arg-type]
    assert not unequal or any("grad/pg_kd_cosine" in row for row in losses[0])
    for one, two in zip(*losses, strict=True):
        for name in ("loss/total", "loss/kd", "grad/norm", "teacher/kl_reverse", "progress/sampled_tokens"):
            assert two[name] == pytest.approx(one[name], rel=1e-4, abs=1e-7), name
        if "grad/pg_kd_cosine" in one:
            assert two["grad/pg_kd_cosine"] == pytest.approx(one["grad/pg_kd_cosine"], abs=1e-4)
        assert two["progress/trained_tokens"] == one["progress/trained_tokens"]
        assert two["progress/flops"] == one["progress/flops"]
