"""``python -m longctx_rl.doctor``: sizes in, a verdict and what to change out."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import Qwen3Config

from longctx_rl import doctor
from longctx_rl.config.compose import composed
from longctx_rl.training import assembly

NEEDED_AND_LIMIT = (r"needs ([\d.]+) GiB", r"has ([\d.]+)$")
"""Where the verdict of a run that does not fit has its numbers."""


@pytest.fixture
def models(tmp_path: Path) -> list[str]:
    """The shapes of Qwen3-1.7B and of a wider teacher, without weights."""
    shape = {"vocab_size": 151_936, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 2**30}
    student = {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16}
    teacher = {"hidden_size": 5120, "intermediate_size": 25_600, "num_hidden_layers": 64, "num_attention_heads": 64}
    sizes = {"student": student, "teacher": teacher}
    for name, size in sizes.items():
        Qwen3Config(**shape, **size, tie_word_embeddings=name == "student").save_pretrained(tmp_path / name)
    return ["model=qwen3_1_7b", *(f"model.{name}={tmp_path / name}" for name in sizes)]


def line(printed: str, start: str) -> str:
    """The only line of the output that starts with ``start``."""
    (only,) = (one for one in printed.splitlines() if one.startswith(start))
    return only


def test_a_run_that_fits(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.diagnose(["context=1120", "memory=24"])
    printed = capsys.readouterr().out
    assert "dgrpo on mini: prompt 1,024 tokens, 8 x 96 completion tokens, 1 x 24.0 GiB" in printed
    assert "(decides)" in printed and line(printed, "fits: ")


@pytest.mark.parametrize(
    ("given", "bare"),
    [
        ("context=2k", "context=2048"),
        ("context=2e3", "context=2000"),
        ("memory=80GB", "memory=80"),
        ("memory=80 GiB", "memory=80"),
        ("memory=512MiB", "memory=0.5"),
        ("memory=1TB", "memory=1024"),
    ],
)
def test_units(given: str, bare: str, capsys: pytest.CaptureFixture[str]) -> None:
    printed = []
    for argument in (given, bare):
        doctor.diagnose(["context=1120", "memory=24", argument])
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]


def test_a_run_that_does_not_fit_says_what_to_change(models: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert not doctor.diagnose([*models, "context=32768", "devices=1", "memory=80"])
    printed = capsys.readouterr().out
    needed, limit = (float(re.findall(pattern, line(printed, "does not fit: "))[0]) for pattern in NEEDED_AND_LIMIT)
    assert needed > limit == 80.0
    advice = line(printed, "would fit with ")
    assert "devices=" in advice
    # The advice is true.
    settings = [*(one for one in advice.split("with ")[1].split(":")[0].split() if "devices" not in one)]
    devices = next(one for one in advice.split() if one.startswith("devices=")).rstrip(":")
    assert doctor.diagnose([*models, "context=32768", "memory=80", devices, *settings])


def test_the_doctor_knows_what_auto_would_take(models: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Long completions fit one at a time alone: auto takes them so, and packed, asked for, does not fit."""
    long = [*models, "context=20000", "rollout.max_new_tokens=16000", "memory=45", "devices=8"]
    long += ["algo.kd.estimator=topk", "model.scoring_chunk=64", "batch.micro_batch_tokens=1"]
    peaks = {}
    for mode in ("packed", "one_at_a_time", "auto"):
        doctor.diagnose([*long, f"batch.backward={mode}"])
        peaks[mode] = capsys.readouterr().out
    assert "batch.backward=packed" in line(peaks["packed"], "dgrpo on ")
    assert line(peaks["packed"], "would fit with batch.backward=one_at_a_time")
    assert "batch.backward=one_at_a_time" in line(peaks["auto"], "dgrpo on ")
    assert peaks["auto"] == peaks["one_at_a_time"] and line(peaks["auto"], "fits: ")


def test_a_teacher_is_replicated_if_it_fits(models: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    run = [*models, "context=8192", "devices=8", "batch.micro_batch_tokens=1"]
    for memory, kind in ((80, "sharded"), (160, "replicated")):
        assert doctor.diagnose([*run, f"memory={memory}"])
        assert f"engine.frozen_weights={kind}" in line(capsys.readouterr().out, "dgrpo on ")
    assert not doctor.diagnose([*run, "memory=80", "engine.frozen_weights=replicated"])
    assert "engine.frozen_weights=sharded" in line(capsys.readouterr().out, "would fit with ")


def test_advice_leaves_out_what_saves_nothing(models: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """One completion at a time holds the prompt's states in float32: with activations recomputed it needs more."""
    run = [*models, "context=131072", "rollout.max_new_tokens=2048", "batch.micro_batch_tokens=1", "memory=80"]
    assert doctor.diagnose([*run, "devices=4", "rollout.batch_tokens=1"])
    capsys.readouterr()
    assert not doctor.diagnose([*run, "devices=2"])
    advice = line(capsys.readouterr().out, "would fit with ")
    assert "devices=4" in advice and "one_at_a_time" not in advice


def test_a_run_that_may_not_fit_says_so_before_it_loads_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    config = composed(["+algo=dgrpo"])
    assert "may not fit" not in assembly.plan_memory(config)[1]
    monkeypatch.setattr(assembly, "device_memory", lambda _: 1e6)
    assert "that may not fit: python -m longctx_rl.doctor" in assembly.plan_memory(config)[1]


def test_more_than_any_setting_can_save(models: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert not doctor.diagnose([*models, "context=40000000", "devices=1", "memory=8"])
    assert line(capsys.readouterr().out, "no setting makes it fit")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["model=mini"], "give context="),
        (["context=many"], "context=many: give context="),
        (["context=1_"], "context=1_: give context="),
        (["context=-1"], "context=-1: give context="),
        (["context=0.5"], "context=0.5: give a whole number"),
        (["context=2k", "memory=80XB"], "memory=80XB: give memory=<GiB"),
        (["context=2k", "devices=two"], "devices=two: give devices="),
        (["context=2k", "dgrpo"], "write +algo=dgrpo"),
        (["context=2k", "--algo=dgrpo"], "write +algo=dgrpo"),
        (["context=2k", "model.student=/x=y"], """'model.student="/x=y"'"""),
        (["context=96"], "leaves no room"),
        (["context=5000"], "mini-student reads 4096 tokens"),
        (["context=4096", "model=nothing"], "choose one of"),
        (["context=4096", "model.student=/nowhere"], "not found"),
        (["context=4096", "algo.kd.wrong=1"], "wrong"),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["doctor", *arguments])
    with pytest.raises(SystemExit) as stopped:
        doctor.main()
    told = capsys.readouterr().err
    assert stopped.value.code == 2
    assert told.startswith("error: ") and sentence in told and told.count("\n") == 1


def test_help() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "longctx_rl.doctor", "--help"], capture_output=True, text=True, check=True
    )
    assert "context=TOKENS" in done.stdout
