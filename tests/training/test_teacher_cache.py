"""KD from a cache is KD with the teacher, to the bit; a cache of anything else is refused."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch

from longctx_rl import cli
from longctx_rl.config.schema import Config
from longctx_rl.data import __main__ as commands
from longctx_rl.data.packing import pack
from longctx_rl.data.source import open_source
from longctx_rl.files import lock
from longctx_rl.policy.loading import load_tokenizer
from longctx_rl.policy.teacher_cache import CachedScorer, TeacherCache, group_key
from longctx_rl.training import cached_teacher
from longctx_rl.training.groups import recorded_groups
from longctx_rl.types import TeacherSignal
from small_runs import smoke, train, untimed

Models = tuple[str, str]
SETTINGS = ("+algo=kd", "eval=none", "budget.steps=3", "batch.prompts_per_step=3", "batch.micro_batch_tokens=700")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tiny(models: Models) -> tuple[str, ...]:
    return (*SETTINGS, *models)


@pytest.fixture(scope="module")
def whole(tiny: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a finished cache, which no test changes."""
    root = tmp_path_factory.mktemp("whole")
    build(root, *tiny)
    return root


@pytest.fixture
def copied(whole: Path, tmp_path: Path) -> Path:
    """The root of a copy of the finished cache."""
    return Path(shutil.copytree(whole, tmp_path / "copied"))


def configured(root: Path, *overrides: str) -> Config:
    return smoke(root / "runs", f"model.teacher_cache={root}", *overrides)


def build(root: Path, *overrides: str) -> Path:
    return cached_teacher.build(configured(root, *overrides))


def folder_of(root: Path) -> Path:
    (index,) = root.glob("*/index.jsonl")
    return index.parent


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("algo.kd.estimator=topk", "algo.kd.top_k=16"),
        ("model.dtype=bfloat16",),
        pytest.param(("engine=zero3",), marks=pytest.mark.slow),
    ],
    ids=["exact", "top-k", "bfloat16", "zero3"],
)
def test_training_from_a_cache_is_training_with_the_teacher_to_the_bit(
    overrides: tuple[str, ...], tiny: tuple[str, ...], tmp_path: Path
) -> None:
    folder = build(tmp_path, *tiny, *overrides)
    assert (folder / "head.safetensors").exists() is ("topk" not in " ".join(overrides))
    live = untimed(train(smoke(tmp_path / "live", *tiny, *overrides)))
    cached = untimed(train(configured(tmp_path, *tiny, *overrides)))
    assert cached == live and len(live) == 3 and live[0]["loss/kd"] > 0


def test_an_interrupted_build_keeps_its_signals_and_resumes(
    whole: Path, tiny: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add, added = TeacherCache.add, [0]

    def stopping(self: TeacherCache, key: str, signal: TeacherSignal) -> None:
        if added[0] == 4:
            raise KeyboardInterrupt
        added[0] += 1
        add(self, key, signal)

    with monkeypatch.context() as stopped:
        stopped.setattr(TeacherCache, "add", stopping)
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path, *tiny)
    parts = folder_of(tmp_path)
    with (parts / "signals.bin").open("ab") as data, (parts / "index.jsonl").open("a") as index:
        data.write(b"half an entry")
        index.write('["truncated')
    assert len(TeacherCache(parts)) == 4
    build(tmp_path, *tiny)
    for name in ("signals.bin", "index.jsonl"):
        assert (parts / name).read_bytes() == (folder_of(whole) / name).read_bytes()


def test_a_second_build_does_not_query_the_teacher(
    copied: Path, tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cached_teacher, "anchor_signal", lambda *_: pytest.fail("the teacher was queried"))
    build(copied, *tiny)


def test_a_cache_of_something_else_is_refused_by_name(whole: Path, tiny: tuple[str, ...]) -> None:
    tokenizer = load_tokenizer("mini-student")
    for overrides, different in (
        (["model.teacher=mini-student"], r"differs in teacher, config\)"),
        (["algo.kd.estimator=topk"], r"differs in estimator, top_k\)"),
        (["rollout.temperature=0.5"], r"differs in temperature\)"),
        (["model.dtype=bfloat16"], r"differs in dtype\)"),
    ):
        with pytest.raises(ValueError, match=different):
            cached_teacher.cached_anchor(configured(whole, *tiny, *overrides), tokenizer, None)


def test_a_prompt_that_is_not_cached_is_refused(whole: Path, tiny: tuple[str, ...]) -> None:
    tokenizer = load_tokenizer("mini-student")
    scorer = CachedScorer(TeacherCache(folder_of(whole)), "COMMAND")
    source = open_source(configured(whole, *tiny, "seed=1"), tokenizer)
    row = pack(recorded_groups(source, tokenizer, [0]), CPU)
    with pytest.raises(ValueError, match=r"build it with COMMAND"):
        scorer(row, estimator="exact", temperature=1.0, top_k=1, head=torch.zeros(1, 1))


def test_a_key_depends_on_the_group_alone(whole: Path, tiny: tuple[str, ...]) -> None:
    tokenizer = load_tokenizer("mini-student")
    groups = recorded_groups(open_source(configured(whole, *tiny), tokenizer), tokenizer, [0, 1])
    both, alone = pack(groups, CPU), pack(groups[1:], CPU)
    assert group_key(both, both.spans[1])[0] == group_key(alone, alone.spans[0])[0]
    assert group_key(both, both.spans[0])[0] != group_key(both, both.spans[1])[0]
    tokens = [group_key(both, span)[1] for span in both.spans]
    assert tokens[0].start == 0 and tokens[0].stop == tokens[1].start and tokens[1].stop == both.num_loss_tokens


def test_a_run_with_a_cache_does_not_need_the_teacher_s_weights(models: Models, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(models[1].partition("=")[2], tmp_path / "teacher"))
    root = tmp_path / "cache"
    settings = (*SETTINGS, models[0], f"model.teacher={copy}")
    build(root, *settings)
    for weights in copy.glob("*.safetensors"):
        weights.unlink()
    assert len(train(configured(root, *settings))) == 3


def test_two_builds_do_not_mix(copied: Path, tiny: tuple[str, ...]) -> None:
    busy = rf"process {os.getpid()} on .*wait for it"
    with lock(folder_of(copied) / ".lock"), pytest.raises(ValueError, match=busy):
        build(copied, *tiny)


def test_lost_signals_are_computed_again(copied: Path, tiny: tuple[str, ...]) -> None:
    folder = folder_of(copied)
    content = (folder / "signals.bin").read_bytes()
    (folder / "signals.bin").write_bytes(content[:-100])
    assert len(TeacherCache(folder)) == 8
    build(copied, *tiny)
    assert (folder / "signals.bin").read_bytes() == content


def test_a_cache_without_checksums_is_read_and_gets_them(copied: Path, tiny: tuple[str, ...]) -> None:
    """As the version before checksums wrote it."""
    folder = folder_of(copied)
    facts, index, data, head = (
        folder / name for name in ("identity.json", "index.jsonl", "signals.bin", "head.safetensors")
    )
    before = {file: file.read_bytes() for file in (facts, index, data)}
    old = json.loads(before[facts])
    del old["head_crc32"]
    facts.write_text(json.dumps(old))
    lines = [json.loads(line) for line in before[index].splitlines()]
    index.write_text("".join(json.dumps(line[:3]) + "\n" for line in lines))
    assert len(TeacherCache(folder)) == len(lines) == 9
    assert untimed(train(configured(copied, *tiny))) == untimed(train(smoke(copied / "live", *tiny)))
    content = head.read_bytes()
    for damaged in (b"", content[: len(content) // 2]):
        head.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"head\.safetensors is damaged: repeat the command"):
            TeacherCache(folder).head()
    build(copied, *tiny)
    assert {file: file.read_bytes() for file in before} == before and head.read_bytes() == content


def test_a_teacher_that_has_changed_is_refused(whole: Path, models: Models, tmp_path: Path) -> None:
    """Its weights, or in config.json what the same weights compute with."""
    teacher = Path(shutil.copytree(models[1].partition("=")[2], tmp_path / "teacher"))
    tokenizer = load_tokenizer("mini-student")

    def opened() -> None:
        config = configured(whole, *SETTINGS, models[0], f"model.teacher={teacher}")
        cached_teacher.cached_anchor(config, tokenizer, None)

    opened()  # the same model under another name
    weights = teacher / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"differs in teacher\)"):
        opened()
    weights.write_bytes(content)
    settings = json.loads((teacher / "config.json").read_text())
    (teacher / "config.json").write_text(json.dumps(settings | {"rms_norm_eps": 1e-5}))
    with pytest.raises(ValueError, match=r"differs in config\)"):
        opened()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["teacher-cache", "+algo=kd"], "model.teacher_cache=FOLDER"),
        (["teacher-cache", "+algo=sft", "model.teacher_cache=x"], "choose +algo=kd"),
        (["teacher-cache", "+algo=opd", "model.teacher_cache=x"], "set model.teacher_cache=null"),
        (["teachers"], "unknown command teachers: choose one of inspect, build, teacher-cache"),
        (["inspect"], "choose data=longblocks"),
    ],
)
def test_bad_commands_are_one_sentence(
    arguments: list[str], problem: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["longctx_rl.data", *arguments])
    with pytest.raises(SystemExit) as exited:
        cli.main("", commands.run)
    stderr = capsys.readouterr().err
    assert exited.value.code == 2 and problem in stderr and stderr.count("\n") == 1
