"""Whole runs at the smallest size: every method, cold start, resume against uninterrupted, ranks, limits."""

import gc
import json
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from command_processes import finish, start
from longctx_rl import cli
from longctx_rl.data.packing import pack
from longctx_rl.data.source import recorded_group
from longctx_rl.engine import distributed, startup
from longctx_rl.launch import rank
from longctx_rl.policy.weights import weights_hash
from longctx_rl.report import length_costs
from longctx_rl.report.collect import of_run
from longctx_rl.report.runs import read_run
from longctx_rl.training import loop
from longctx_rl.training.assembly import build_parts
from rank_processes import run_ranks
from small_runs import WIDTHS, assert_same_steps, rows_of, smoke, step_rows, train

Models = tuple[str, str]


@pytest.fixture(scope="module")
def finished(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Directories of finished runs by method, each of which is trained when it is first needed."""
    root = tmp_path_factory.mktemp("finished")

    @cache
    def run(algo: str) -> Path:
        config = smoke(root, f"+algo={algo}", *models)
        train(config)
        return Path(config.run_dir)

    return run


@pytest.fixture
def few_objects() -> Iterator[None]:
    """DeepSpeed collects garbage whenever it builds an engine: half a second over all imported modules."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.parametrize("algo", ["sft", "kd", "grpo", "opd", "dgrpo"])
def test_every_method_trains_two_steps(algo: str, models: Models, finished: Callable[[str], Path]) -> None:
    run = finished(algo)
    steps = step_rows(rows_of(run))
    assert [row["step"] for row in steps] == [1, 2]
    assert all(row["loss/total"] is not None and row["grad/norm"] is not None for row in steps)
    model = AutoModelForCausalLM.from_pretrained(run / "export")
    assert model.config.hidden_size == WIDTHS["student"]
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


def test_methods_keep_rollouts_of_the_same_prompts(finished: Callable[[str], Path]) -> None:
    """So that they can be read side by side. Each token carries its gap to the teacher if there is one."""
    kept = {}
    for algo in ("grpo", "opd", "dgrpo"):
        files = sorted((finished(algo) / "rollouts").iterdir())
        kept[algo] = [[json.loads(line) for line in file.read_text().splitlines()] for file in files]
    prompts = {
        algo: [[(row["id"], row["prompt_tail"]) for row in rows] for rows in steps] for algo, steps in kept.items()
    }
    assert prompts["grpo"] == prompts["opd"] == prompts["dgrpo"] and len(prompts["grpo"]) == 2
    assert not any("teacher_gap" in row for rows in kept["grpo"] for row in rows)
    for row in (row for algo in ("opd", "dgrpo") for rows in kept[algo] for row in rows):
        assert len(row["teacher_gap"]) == len(row["tokens_text"]) == row["tokens"] > 0
        assert any(row["teacher_gap"])


def test_a_run_starts_from_an_earlier_export(models: Models, finished: Callable[[str], Path], tmp_path: Path) -> None:
    student = f"model.student={finished('sft') / 'export'}"
    warm = train(smoke(tmp_path, "+algo=kd", student, models[1], "eval=none", "budget.steps=1"))
    assert step_rows(warm)[0]["loss/kd"] != step_rows(rows_of(finished("kd")))[0]["loss/kd"]


def test_without_learning_the_ratio_is_one_and_the_sampler_agrees(models: Models, tmp_path: Path) -> None:
    rows = train(smoke(tmp_path, "+algo=grpo", *models, "optim.lr=0", "eval=none", "algo.updates_per_rollout=2"))
    for row in step_rows(rows):
        assert row["policy/ratio_mean"] == pytest.approx(1.0, abs=1e-6)
        assert row["policy/sampler_mismatch"] == pytest.approx(0.0, abs=1e-8)


def test_beta_zero_is_grpo_to_the_bit(tmp_path: Path) -> None:
    """On the shipped student, which is right at times in prompts of 768 tokens: there is an advantage to learn from."""
    settings = ("eval=none", "rollout.max_new_tokens=96", "data.lengths=[768]")
    grpo = step_rows(train(smoke(tmp_path, "+algo=grpo", *settings)))
    dgrpo = step_rows(train(smoke(tmp_path, "+algo=dgrpo", *settings, "algo.weights.kd=0")))
    assert grpo == dgrpo
    assert grpo[0]["rollout/zero_std_groups"] < 1 and grpo[0]["grad/norm"] > 0


def test_activations_are_recomputed_if_configured(models: Models, tmp_path: Path) -> None:
    """A layer whose activations are checkpointed runs a second time in the backward pass."""
    calls = []
    for checkpointing in (False, True):
        setting = f"model.gradient_checkpointing={checkpointing}".lower()
        config = smoke(tmp_path, "+algo=sft", *models, "eval=none", setting)
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
    models: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limits = ("optim.lr=1e30", "optim.warmup_steps=0", "budget.steps=6", "optim.max_skipped=2")
    config = smoke(tmp_path, "+algo=sft", *models, "eval=none", *limits)
    assert rank.execute(config) == cli.DIVERGED
    stderr = capsys.readouterr().err
    assert stderr.startswith("error: ") and "2 steps in a row" in stderr
    assert "lower optim.lr" in stderr and "Traceback" not in stderr
    assert [row["optim/skipped"] for row in step_rows(rows_of(Path(config.run_dir)))] == [0, 1]


def test_a_full_disk_says_so_in_one_sentence(
    models: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the one file that is not written by Python: tokenizers reports the system's error only in words."""
    save = PreTrainedTokenizerBase.save_pretrained

    def onto_a_full_disk(self: Any, folder: Path, **settings: Any) -> None:
        save(self, folder, **settings)
        self.backend_tokenizer.save("/dev/full")

    monkeypatch.setattr(PreTrainedTokenizerBase, "save_pretrained", onto_a_full_disk)
    assert rank.execute(smoke(tmp_path, "+algo=sft", *models, "eval=none")) == cli.UNUSABLE
    stderr = capsys.readouterr().err
    assert "could not be exported" in stderr and "No space left on device" in stderr and "resume=true" in stderr
    assert not list(tmp_path.glob("smoke/*/.tmp-*")) and not list(tmp_path.glob("smoke/*/export"))


def test_all_ranks_count_the_seconds_of_the_main_one(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or one of them would see budget.seconds spent a step before the others, and leave them waiting."""
    broadcast = distributed.broadcast
    monkeypatch.setattr(
        loop.distributed, "broadcast", lambda value: 40.0 if isinstance(value, float) else broadcast(value)
    )
    budget = ("budget.steps=9", "budget.seconds=100", "optim.warmup_steps=0")
    rows = train(smoke(tmp_path, "+algo=sft", *models, "eval=none", *budget))
    rows = [row for row in rows if "loss/total" in row]
    assert [row["progress/wall_seconds"] for row in rows] == [40.0, 80.0, 120.0]
    rates = [row["optim/lr"] for row in rows]
    assert rates[0] == 1e-3 and rates[2] < 2e-4  # the cosine follows the seconds that are spent


@pytest.mark.parametrize(
    ("file", "problem"),
    [("weights.safetensors", "checksum"), ("trainer_state.json", "is truncated")],
)
def test_a_damaged_checkpoint_is_not_continued(
    file: str,
    problem: str,
    models: Models,
    finished: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = replace(smoke(tmp_path, "+algo=sft", *models), resume=True)
    shutil.copytree(finished("sft"), config.run_dir)
    damaged = Path(config.run_dir) / "checkpoints" / "step-000002" / file
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content if file.startswith("weights") else content[:-3])
    assert rank.execute(config) != 0
    stderr = capsys.readouterr().err
    assert problem in stderr and f"remove {damaged.parent}" in stderr and "Traceback" not in stderr


ZERO3 = ("+algo=dgrpo", "engine=zero3", "eval=none", "checkpoint.every=2")


@pytest.mark.usefixtures("few_objects")
def test_a_run_resumes_to_the_bit_on_zero3(models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the checkpoint of step 2, as if the run had ended in step 4."""
    config = smoke(tmp_path, *ZERO3, *models, "budget.steps=4")
    train_step = loop.train_step

    def until_the_third(parts: Any, state: Any, recorder: Any) -> None:
        if state.step == 3:
            raise ZeroDivisionError
        train_step(parts, state, recorder)

    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(loop, "train_step", until_the_third)
        train(config)
    assert [path.name for path in (Path(config.run_dir) / "checkpoints").iterdir()] == ["step-000002"]
    resumed = train(replace(config, resume=True))
    uninterrupted = train(smoke(tmp_path, *ZERO3, *models, "budget.steps=4", "experiment_name=uninterrupted"))
    assert step_rows(resumed) == step_rows(uninterrupted) and len(step_rows(resumed)) == 4


@pytest.mark.slow
def test_a_killed_process_resumes_to_the_bit_on_zero3(models: Models, tmp_path: Path) -> None:
    # More steps than can be taken between the first checkpoint and the kill, however late it comes.
    arguments = ["+experiment=smoke", "logging=none", *ZERO3, *models, f"runs_root={tmp_path}", "budget.steps=15"]
    code, _, stderr = finish(start([*arguments, "experiment_name=whole"], tmp_path))
    assert code == 0, stderr
    killed = start(arguments, tmp_path)
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        if any(path.name.startswith("step-") for path in tmp_path.glob("smoke/*/checkpoints/*")):
            break
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    code, _, stderr = finish(start([*arguments, "resume=true"], tmp_path))
    assert code == 0, stderr
    (first,) = tmp_path.glob("whole/*/")
    (second,) = tmp_path.glob("smoke/*/")
    assert step_rows(rows_of(second)) == step_rows(rows_of(first))


@pytest.mark.slow
@pytest.mark.usefixtures("few_objects")
def test_two_ranks_with_unequal_pieces_take_the_same_step_as_one(tmp_path: Path) -> None:
    """Answers of the shipped student differ in length, so one rank has more pieces to score."""
    settings = ["+algo=dgrpo", "algo.updates_per_rollout=2", "model.scoring_chunk=8", "eval=none", "engine=zero3"]
    settings += ["rollout.max_new_tokens=64", "data.lengths=[768]", "model.gradient_checkpointing=true"]
    one_rank = step_rows(train(smoke(tmp_path, *settings)))
    two = smoke(tmp_path, *settings, "engine.num_processes=2", "experiment_name=two")
    run_ranks(train, two)
    assert_same_steps(one_rank, step_rows(rows_of(Path(two.run_dir))))
    assert len(one_rank) == 2 and any("grad/pg_kd_cosine" in row for row in one_rank)
