"""Metrics files, the records of resumed runs, and failures of the wandb mirror."""

import io
import json
import os
import sys
import time
import types
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from config.composing import config_with
from longctx_rl.config.schema import Config
from longctx_rl.runs import recorder as recording
from longctx_rl.runs import wandb as mirror
from longctx_rl.runs.metrics import read_metrics
from longctx_rl.runs.progress import Progress
from longctx_rl.runs.recorder import NullRecorder, RunRecorder, build_recorder
from longctx_rl.runs.wandb import Mirror, training_settings
from longctx_rl.types import Completion, Example, Reward, RolloutGroup

STEP = {"progress/step": 1.0, "loss/total": 0.5, "perf/step_seconds": 2.0, "perf/tokens_per_second": 1234.0}
EXAMPLE = Example("id7", "a long document " * 100, "Who?", "KesDal", "multihop")
COMPLETIONS = (
    Completion((1, 2), "KesDal, né", "stop", teacher_gap=(0.123456, -0.00001)),
    Completion((3,), "no", "length"),
)
GROUP = RolloutGroup(EXAMPLE, (5, 6), COMPLETIONS, (Reward(1.0, {"answer": 1.0}), Reward(0.0)), (0.7, -0.7))


def spelled(token_ids: Sequence[int]) -> list[str]:
    return [f"<{token_id}>" for token_id in token_ids]


@pytest.fixture(scope="module")
def quiet() -> Config:
    return config_with("+algo=dgrpo", "logging=none")


@pytest.fixture(scope="module")
def offline() -> Config:
    return config_with("+algo=dgrpo")


def record(config: Config, run_dir: Path, steps: range, resume_step: int | None = None) -> None:
    recorder = RunRecorder(config, run_dir, resume_step)
    for step in steps:
        recorder.log(step, STEP | {"progress/step": step})
    recorder.close()


def test_rows_are_json_with_step_first(quiet: Config, tmp_path: Path) -> None:
    recorder = RunRecorder(quiet, tmp_path, None)
    recorder.log(0, {"eval/heldout/mean": 0.25})
    recorder.log(1, {"loss/total": float("nan"), "grad/norm": float("inf"), "progress/step": 1})
    rows = read_metrics(tmp_path / "metrics.jsonl")  # each row is written immediately
    assert rows == [
        {"step": 0, "eval/heldout/mean": 0.25},
        {"step": 1, "loss/total": None, "grad/norm": None, "progress/step": 1},
    ]
    assert (tmp_path / "metrics.jsonl").read_text().startswith('{"step": 0, ')
    recorder.close()


def test_a_truncated_last_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3, "lo')
    assert read_metrics(path) == [{"step": 1}, {"step": 2}]
    path.write_text('{"step": 1\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 1 .*not JSON.*restore the file"):
        read_metrics(path)
    path.write_bytes(b'{"step": 1}\n{"step": 2, "l\xff": 1}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2 .*not UTF-8.*restore the file"):
        read_metrics(path)


def test_resume_removes_what_will_be_recorded_again(quiet: Config, tmp_path: Path) -> None:
    record(quiet, tmp_path, range(1, 6))
    for step in (2, 4):
        (tmp_path / "rollouts").mkdir(exist_ok=True)
        (tmp_path / "rollouts" / f"step-{step:06d}.jsonl").write_text("{}\n")
    with (tmp_path / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"step": 6, "lo')
    record(quiet, tmp_path, range(4, 7), resume_step=3)
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
    assert [path.name for path in (tmp_path / "rollouts").iterdir()] == ["step-000002.jsonl"]


def test_a_start_without_checkpoint_discards_earlier_records(quiet: Config, tmp_path: Path) -> None:
    record(quiet, tmp_path, range(1, 4))
    record(quiet, tmp_path, range(1, 2))
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1]


def test_rollouts_are_readable(quiet: Config, tmp_path: Path) -> None:
    recorder = RunRecorder(quiet, tmp_path, None)
    recorder.save_rollouts(10, [GROUP], spelled)
    recorder.close()
    saved = (tmp_path / "rollouts" / "step-000010.jsonl").read_text()
    first, second = map(json.loads, saved.splitlines())
    assert "KesDal, né" in saved
    assert first["prompt_tail"].endswith("a long document \n\nWho?") and len(first["prompt_tail"]) < 500
    assert (first["reward"], first["reward_parts"], first["advantage"]) == (1.0, {"answer": 1.0}, 0.7)
    assert (first["tokens_text"], first["teacher_gap"]) == (["<1>", "<2>"], [0.1235, 0.0])
    assert "teacher_gap" not in second and "-0.0" not in saved
    assert (second["completion"], second["finish_reason"], second["tokens"]) == ("no", "length", 1)


def test_only_the_main_rank_records(quiet: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording.distributed, "is_main", lambda: False)
    recorder = build_recorder(quiet, tmp_path, resume_step=None, evaluated=False)
    assert isinstance(recorder, NullRecorder)
    recorder.log(1, STEP)
    recorder.say("hello")
    recorder.save_rollouts(1, [], spelled)
    recorder.keep(tmp_path)
    recorder.close()
    assert not list(tmp_path.iterdir())


class FakeRun:
    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.finished = False
        self.defined: dict[str, dict[str, Any]] = {}

    def define_metric(self, name: str, **settings: Any) -> None:
        self.defined[name] = settings

    def log(self, row: dict[str, Any]) -> None:
        self.rows.append(row)

    def finish(self) -> None:
        self.finished = True


def list_of_rows(columns: list[str], data: list[list[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(columns, row, strict=True)) for row in data]


def fake_wandb(monkeypatch: pytest.MonkeyPatch, init: Callable[..., FakeRun]) -> None:
    module = types.SimpleNamespace(init=init, Settings=lambda **settings: settings, Table=list_of_rows)
    monkeypatch.setitem(sys.modules, "wandb", module)


def test_the_mirror_gets_the_same_rows(offline: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = FakeRun()
    fake_wandb(monkeypatch, lambda **settings: run)
    recorder = RunRecorder(offline, tmp_path, None)
    step = STEP | {"progress/flops": 1e9}
    recorder.log(1, step | {"grad/norm": float("nan")})
    recorder.log(1, {"progress/step": 1.0, "eval/heldout/mean": 0.5})
    recorder.save_rollouts(1, [GROUP], spelled)
    recorder.close()
    metrics, evaluation, table = run.rows
    assert metrics == {"step": 1, **step} and run.finished
    assert evaluation == {"step": 1, "progress/step": 1.0, "progress/flops": 1e9, "eval/heldout/mean": 0.5}
    assert table["step"] == 1
    assert [(row["completion"], row["reward"]) for row in table["rollouts"]] == [("KesDal, né", 1.0), ("no", 0.0)]
    assert {"eval/*", "progress/*"} < set(run.defined) and run.defined["eval/*"]["summary"] is None


@pytest.mark.parametrize("broken", ["init", "log", "finish"])
def test_a_broken_mirror_warns_once_and_does_not_stop_the_run(
    broken: str,
    offline: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*arguments: Any, **settings: Any) -> Any:
        raise ConnectionError("no network")

    run = FakeRun()
    if broken == "init":
        fake_wandb(monkeypatch, fail)
    else:
        monkeypatch.setattr(run, broken, fail)
        fake_wandb(monkeypatch, lambda **settings: run)
    record(offline, tmp_path, range(1, 4))
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 3
    stderr = capsys.readouterr().err
    assert stderr == "warning: the wandb mirror stopped (ConnectionError: no network); the files on disk are complete\n"


@pytest.mark.parametrize("home", [None, "/proc/nowhere"])
def test_a_home_that_cannot_be_written_leaves_wandb_silent(
    home: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """wandb's process prints its log if it has no place for it, so it gets one in the run's folder."""
    for name in ("WANDB_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, "")
    if home is None:
        monkeypatch.delenv("HOME")
    else:
        monkeypatch.setenv("HOME", home)
    mirror.provide_cache(tmp_path)
    assert os.environ["WANDB_CACHE_DIR"] == str(tmp_path / "wandb" / "cache")


def test_a_hanging_mirror_does_not_block_the_run(
    offline: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import threading

    forever = threading.Event()

    def hang(**settings: Any) -> FakeRun:
        forever.wait()
        return FakeRun()

    fake_wandb(monkeypatch, hang)
    monkeypatch.setattr(Mirror, "CLOSE_SECONDS", 0.1)
    monkeypatch.setattr(Mirror, "ROWS_WAITING", 2)
    record(offline, tmp_path, range(1, 6))
    forever.set()
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 5
    assert capsys.readouterr().err.count("warning: the wandb mirror stopped (it cannot keep up)") == 1


def test_settings_of_a_run_in_the_mirror(offline: Config, tmp_path: Path) -> None:
    run_dir = tmp_path / "dgrpo-mini-mix-s0"
    first = training_settings(offline, run_dir, resumed=False)
    assert (first["mode"], first["project"], first["group"]) == ("offline", "longctx-rl", "default")
    assert (first["job_type"], first["name"]) == ("train", "dgrpo-mini-mix-s0")
    assert first["tags"][:3] == ["dgrpo", "mini", "mix"]
    assert first["config"]["algo"]["weights"]["kd"] == 0.5
    online = replace(offline, logging=replace(offline.logging, mode="online"))
    started = training_settings(online, run_dir, resumed=False)
    (run_dir / "wandb").mkdir(parents=True)
    (run_dir / "wandb" / "id").write_text(started["id"])
    continued = training_settings(online, run_dir, resumed=True)
    assert started["id"] == continued["id"] and continued["resume"] == "allow"
    assert continued["name"] == "dgrpo-mini-mix-s0"
    assert training_settings(online, run_dir, resumed=False)["id"] != started["id"]


def test_a_resumed_run_is_mirrored_completely(offline: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [FakeRun(), FakeRun()]
    started = []

    def init(**settings: Any) -> FakeRun:
        started.append(settings)
        return runs[len(started) - 1]

    fake_wandb(monkeypatch, init)
    run_dir = tmp_path / "dgrpo-mini-mix-s0"
    recorder = RunRecorder(offline, run_dir, None)
    for step in range(1, 4):
        recorder.log(step, STEP | {"progress/step": step})
        recorder.save_rollouts(step, [GROUP], spelled)
    recorder.close()
    saved = run_dir / "rollouts" / "step-000001.jsonl"
    saved.write_text(
        saved.read_text().replace("KesDal", "Kes\u2028Dal")
    )  # a line break to str.splitlines, text to JSON
    piece = run_dir / "wandb" / "offline-run-1"
    piece.mkdir(parents=True)
    record(offline, run_dir, range(3, 5), resume_step=2)
    first, whole = ([row["step"] for row in run.rows if "loss/total" in row] for run in runs)
    assert (first, whole) == ([1, 2, 3], [1, 2, 3, 4])
    assert [row["step"] for row in runs[1].rows if "rollouts" in row] == [1, 2]
    assert not piece.exists() and (run_dir / "wandb" / "replaced" / piece.name).is_dir()
    assert started[0] == started[1] and started[0]["name"] == run_dir.name and "resume" not in started[0]


def test_an_online_run_is_resumed_unless_its_history_is_offline(
    offline: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    online = replace(offline, logging=replace(offline.logging, mode="online"))
    record(replace(offline, logging=replace(offline.logging, mode="disabled")), tmp_path, range(1, 3))
    runs = []
    for step in (3, 4, 5):
        if step == 5:
            (tmp_path / "wandb" / "offline-run-1").mkdir()
        runs.append(FakeRun())
        fake_wandb(monkeypatch, lambda run=runs[-1], **settings: run)
        record(online, tmp_path, range(step, step + 1), resume_step=step - 1)
    assert [[row["step"] for row in run.rows] for run in runs] == [[1, 2, 3], [4], [1, 2, 3, 4, 5]]


def test_wandb_itself_offline_without_an_account(offline: Config, tmp_path: Path, capfd: Any) -> None:
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "config.json").write_text("{}")
    recorder = RunRecorder(replace(offline, logging=replace(offline.logging, artifacts=True)), tmp_path, None)
    recorder.log(1, STEP)
    recorder.save_rollouts(1, [GROUP], spelled)
    recorder.keep(tmp_path / "export")
    recorder.close()
    end, kept = time.monotonic() + 20.0, b""
    while not (b"-results" in kept and b"-model" in kept and b"rollouts" in kept):  # wandb's own process writes it
        assert time.monotonic() < end, kept[:100]
        time.sleep(0.05)
        kept = b"".join(file.read_bytes() for file in (tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    captured = capfd.readouterr()
    assert captured.err == "" and "wandb" not in captured.out


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_live_line_is_rewritten(quiet: Config) -> None:
    terminal, log = Terminal(), io.StringIO()
    progress = Progress(quiet.budget, log, terminal)
    for step in (1, 2):
        progress.show(STEP | {"progress/step": step, "rollout/reward_mean": 0.5, "teacher/kl_reverse": 0.25})
    progress.say("evaluating")
    first, second, said = terminal.getvalue().removeprefix("\r\x1b[K").replace("\r\x1b[K", "\n").splitlines()
    assert first == "step 1/50  loss 0.500  reward 0.500  KL to teacher 0.250  1234 tokens/s  1:38 left"
    assert second.startswith("step 2/50  ") and said == "evaluating"
    assert log.getvalue() == f"{first}\nevaluating\n"


def test_plain_lines_without_a_terminal(quiet: Config) -> None:
    terminal, log = io.StringIO(), io.StringIO()
    progress = Progress(quiet.budget, log, terminal)
    for step in range(1, 51):
        progress.show(STEP | {"progress/step": step})
    first, last = terminal.getvalue().splitlines()
    assert [line.split("  ")[0] for line in (first, last)] == ["step 1/50", "step 50/50"]
    assert "reward -  KL to teacher -" in first and last.endswith("0:00 left")
    assert log.getvalue() == terminal.getvalue()


def test_time_left_follows_the_nearest_budget(quiet: Config) -> None:
    budget = replace(quiet.budget, steps=1000, seconds=20.0)
    progress = Progress(budget, io.StringIO(), io.StringIO())
    line = progress.render(STEP | {"progress/wall_seconds": 2.0}, now=100.0)
    assert line.endswith("0:18 left")
