"""KD from a cache is KD with the teacher, to the bit; a cache of anything else is refused."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from longctx_rl.config.compose import composed
from longctx_rl.data.packing import pack
from longctx_rl.data.source import open_source
from longctx_rl.files import lock
from longctx_rl.policy.loading import load_tokenizer
from longctx_rl.policy.teacher_cache import CachedScorer, TeacherCache, group_key
from longctx_rl.policy.weights import locate
from longctx_rl.training import cached_teacher
from longctx_rl.training.groups import recorded_groups
from longctx_rl.types import TeacherSignal

SETTINGS = [
    "+algo=kd", "+experiment=smoke", "eval=none", "logging=none", "engine=local", "budget.steps=3",
    "batch.prompts_per_step=3", "batch.micro_batch_tokens=700",
]  # fmt: skip


def build(root: Path, *overrides: str) -> Path:
    return cached_teacher.build(composed([*SETTINGS, f"model.teacher_cache={root}", *overrides]))


def train(runs: Path, *overrides: str) -> list[dict[str, float]]:
    """The metrics of a run, without times."""
    command = [sys.executable, "-m", "longctx_rl", *SETTINGS, f"runs_root={runs}", *overrides]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (metrics,) = runs.rglob("metrics.jsonl")
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    timed = ("time/", "perf/", "progress/wall")
    return [{name: value for name, value in row.items() if not name.startswith(timed)} for row in rows]


@pytest.mark.parametrize(
    "overrides",
    [(), ("model.dtype=bfloat16",), ("algo.kd.estimator=topk", "algo.kd.top_k=16"), ("engine=zero3",)],
    ids=["exact", "bfloat16", "top-k", "zero3"],
)
def test_training_from_a_cache_is_training_with_the_teacher_to_the_bit(
    tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    folder = build(tmp_path / "cache", *overrides)
    assert (folder / "head.safetensors").exists() is ("topk" not in " ".join(overrides))
    live = train(tmp_path / "live", *overrides)
    cached = train(tmp_path / "cached", f"model.teacher_cache={tmp_path / 'cache'}", *overrides)
    assert cached == live and len(live) == 3 and live[0]["loss/kd"] > 0


def test_a_killed_build_keeps_what_it_has_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = build(tmp_path / "whole")
    add, added = TeacherCache.add, [0]

    def stopping(self: TeacherCache, key: str, signal: TeacherSignal) -> None:
        if added[0] == 4:
            raise KeyboardInterrupt
        added[0] += 1
        add(self, key, signal)

    with monkeypatch.context() as stopped:
        stopped.setattr(TeacherCache, "add", stopping)
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path / "parts")
    (parts,) = (tmp_path / "parts").iterdir()
    with (parts / "signals.bin").open("ab") as data, (parts / "index.jsonl").open("a") as index:
        data.write(b"half an entry")
        index.write('["cut off')
    assert len(TeacherCache(parts)) == 4
    build(tmp_path / "parts")
    assert (parts / "signals.bin").read_bytes() == (whole / "signals.bin").read_bytes()
    assert (parts / "index.jsonl").read_text() == (whole / "index.jsonl").read_text()


def test_a_second_build_asks_the_teacher_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(tmp_path)
    monkeypatch.setattr(cached_teacher, "anchor_signal", lambda *_: pytest.fail("the teacher was asked"))
    build(tmp_path)


def test_a_cache_of_something_else_is_refused_by_name(tmp_path: Path) -> None:
    build(tmp_path)
    tokenizer = load_tokenizer("mini-student")
    for overrides, different in (
        (["model.teacher=mini-student"], "another teacher"),
        (["algo.kd.estimator=topk"], "another estimator, top_k"),
        (["rollout.temperature=0.5"], "another temperature"),
        (["model.dtype=bfloat16"], "another dtype"),
    ):
        config = composed([*SETTINGS, f"model.teacher_cache={tmp_path}", *overrides])
        with pytest.raises(ValueError, match=different):
            cached_teacher.cached_anchor(config, tokenizer, None)


def test_a_prompt_that_was_not_asked_about_is_refused(tmp_path: Path) -> None:
    folder = build(tmp_path)
    tokenizer = load_tokenizer("mini-student")
    scorer = CachedScorer(TeacherCache(folder), "COMMAND")
    source = open_source(composed([*SETTINGS, "seed=1"]), tokenizer)
    row = pack(recorded_groups(source, tokenizer, [0]), torch.device("cpu"))
    with pytest.raises(ValueError, match=r"build it with COMMAND"):
        scorer(row, estimator="exact", temperature=1.0, top_k=1, head=torch.zeros(1, 1))


def test_a_key_is_of_the_group_alone(tmp_path: Path) -> None:
    tokenizer = load_tokenizer("mini-student")
    source = open_source(composed(SETTINGS), tokenizer)
    groups = recorded_groups(source, tokenizer, [0, 1])
    both, alone = pack(groups, torch.device("cpu")), pack(groups[1:], torch.device("cpu"))
    assert group_key(both, both.spans[1])[0] == group_key(alone, alone.spans[0])[0]
    assert group_key(both, both.spans[0])[0] != group_key(both, both.spans[1])[0]
    tokens = [group_key(both, span)[1] for span in both.spans]
    assert tokens[0].start == 0 and tokens[0].stop == tokens[1].start and tokens[1].stop == both.num_loss_tokens


def test_a_run_needs_no_teacher_at_hand(tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    shutil.copytree(locate("mini-teacher"), teacher)
    build(tmp_path / "cache", f"model.teacher={teacher}")
    for weights in teacher.glob("*.safetensors"):
        weights.unlink()
    rows = train(tmp_path / "runs", f"model.teacher_cache={tmp_path / 'cache'}", f"model.teacher={teacher}")
    assert len(rows) == 3


def test_two_builds_do_not_mix(tmp_path: Path) -> None:
    folder = build(tmp_path)
    busy = rf"is being written by another build \(process {os.getpid()} on .*\): wait for it"
    with lock(folder / ".lock"), pytest.raises(ValueError, match=busy):
        build(tmp_path)


def test_signals_that_were_lost_are_asked_for_again(tmp_path: Path) -> None:
    folder = build(tmp_path)
    whole = (folder / "signals.bin").read_bytes()
    (folder / "signals.bin").write_bytes(whole[:-100])
    assert len(TeacherCache(folder)) == 8
    build(tmp_path)
    assert (folder / "signals.bin").read_bytes() == whole


def test_a_teacher_that_was_changed_since_is_refused(tmp_path: Path) -> None:
    """Its weights, or in config.json what the same weights compute with."""
    teacher = tmp_path / "teacher"
    shutil.copytree(locate("mini-teacher"), teacher)
    build(tmp_path / "cache", f"model.teacher={teacher}")
    tokenizer = load_tokenizer("mini-student")

    def opened(name: object) -> None:
        config = composed([*SETTINGS, f"model.teacher_cache={tmp_path / 'cache'}", f"model.teacher={name}"])
        cached_teacher.cached_anchor(config, tokenizer, None)

    opened("mini-teacher")  # the same model under another name
    weights = teacher / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"has another teacher\)"):
        opened(teacher)
    weights.write_bytes(content)
    settings = json.loads((teacher / "config.json").read_text())
    (teacher / "config.json").write_text(json.dumps(settings | {"rms_norm_eps": 1e-5}))
    with pytest.raises(ValueError, match=r"has another config\)"):
        opened(teacher)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["teacher-cache", "+algo=kd"], "model.teacher_cache=FOLDER"),
        (["teacher-cache", "+algo=sft", "model.teacher_cache=x"], "choose +algo=kd"),
        (["teacher-cache", "+algo=opd", "model.teacher_cache=x"], "draws its tokens anew"),
        (["teachers"], "unknown command teachers: choose one of inspect, build, teacher-cache"),
        (["inspect"], "choose data=longblocks"),
    ],
)
def test_bad_commands_are_one_sentence(arguments: list[str], sentence: str) -> None:
    command = [sys.executable, "-m", "longctx_rl.data", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and sentence in done.stderr and done.stderr.count("\n") == 1
