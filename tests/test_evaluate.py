"""``python -m longctx_rl.evaluate``: answers are kept, interrupted evaluations continue, and errors name the fix."""

import io
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import pytest

from evals.tables import rows
from longctx_rl import evaluate as command
from longctx_rl.config.compose import composed_evaluate
from longctx_rl.config.eval import EvaluateConfig
from longctx_rl.config.model import YarnConfig
from longctx_rl.evals import answering, checkpoint_evaluation, kl, processes, records
from longctx_rl.evals.folder import locked
from longctx_rl.evals.items import Item
from longctx_rl.evals.records import ItemRecord
from longctx_rl.policy.loading import load_model, load_tokenizer
from longctx_rl.report.answers import page
from longctx_rl.report.answers.evaluation_folder import load
from longctx_rl.runs.wandb import evaluation_settings
from longctx_rl.sandbox import probe
from longctx_rl.types import Example
from sandbox.function_problems import HUMANEVAL

BACKEND = "rlimit" if probe.failure("bwrap") else "bwrap"
SMALL = ["checkpoint=mini-student", "rollout.max_new_tokens=48", f"sandbox={BACKEND}"]
SHORT = ["eval=heldout", "eval.suites.heldout.lengths=[256]"]
LONG = ["eval=heldout", "eval.suites.heldout.lengths=[1024]"]
"""The student errs at this length, so its answers depend on its positions."""
BRIEF = ["eval.items=1", "rollout.max_new_tokens=4", "eval.suites.code.max_new_tokens=4",
         "eval.suites.ruler.max_new_tokens=4"]  # fmt: skip
RENDER = page.render


def run(out: Path, *overrides: str) -> str:
    return command.evaluate(replace(composed(*overrides), out=str(out)))


@cache
def composed(*overrides: str) -> EvaluateConfig:
    return composed_evaluate([*SMALL, "out=x", *overrides])


def places(table: str) -> list[tuple[str, str, str]]:
    """Task, length and number of items of every row."""
    return [(row["task"], row["length"], row["n"]) for row in rows(table)]


def suites(table: str) -> list[str]:
    """The names above the tables."""
    return [line for line in table.splitlines() if line and " " not in line and "-" not in line]


@dataclass(frozen=True)
class Evaluated:
    """A finished evaluation that several tests look at. Tests that change it take a copy."""

    folder: Path
    printed: str
    errors: str = ""

    def copy(self, to: Path) -> Path:
        return shutil.copytree(self.folder, to)


def evaluated(folder: Path, *overrides: str) -> Evaluated:
    with redirect_stderr(io.StringIO()) as errors:
        return Evaluated(folder, run(folder, *overrides), errors.getvalue())


@pytest.fixture(scope="module", autouse=True)
def blank_pages() -> Iterator[None]:
    """Drawing a page takes longer than the answers on it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "render", lambda loaded: "")
        yield


@contextmanager
def drawn_pages() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "render", RENDER)
        yield


@pytest.fixture(scope="module")
def heldout(tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    return evaluated(tmp_path_factory.mktemp("heldout") / "out", *SHORT, "eval.items=2")


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    return evaluated(tmp_path_factory.mktemp("short") / "out", "eval=short", *BRIEF)


@pytest.fixture(scope="module")
def everything(short: Evaluated, tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    """All suites, in a copy of the folder that holds their short ends, with the page."""
    folder = short.copy(tmp_path_factory.mktemp("everything") / "out")
    lengths = [f"eval.suites.{suite}.lengths=[768]" for suite in ("longreason", "code", "ruler")]
    with drawn_pages():
        return evaluated(folder, "eval=all", *BRIEF, *lengths, "eval.suites.heldout.lengths=[256]")


def test_answers_are_kept_and_not_evaluated_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with drawn_pages():
        table = run(tmp_path, *SHORT, "eval.items=4")
    assert places(table) == [(task, "256", "4") for task in ("grounding", "longform", "multihop")]
    assert f"page: {tmp_path / 'index.html'}" in table.splitlines()
    assert "Evaluation of mini-student" in (tmp_path / "index.html").read_text(encoding="utf-8")
    first = records.read(tmp_path / "evals" / "heldout.jsonl")
    evaluated: list[str] = []
    plain = answering.answer

    def counting(*arguments: Any, **options: Any) -> list[ItemRecord]:
        evaluated.extend(item.example.id for item in arguments[2])
        return plain(*arguments, **options)

    monkeypatch.setattr(answering, "answer", counting)
    assert run(tmp_path, *SHORT, "eval.items=4") == table and not evaluated
    more = run(tmp_path, *SHORT, "eval.items=5")
    assert len(evaluated) == 3 and {row["n"] for row in rows(more)} == {"5"}
    assert records.read(tmp_path / "evals" / "heldout.jsonl")[: len(first)] == first


def test_results_are_mirrored_beside_those_of_trainings(tmp_path: Path) -> None:
    """wandb itself, offline. A second evaluation is added to the first, in the same wandb run."""
    out = tmp_path / "table1" / "base"
    run(out, *SHORT, "eval.items=1", "logging=wandb")
    run(out, "eval=longreason", "eval.suites.longreason.lengths=[1024]", "eval.items=1", "logging=wandb")
    (piece,) = (out / "wandb").glob("offline-run-*/*.wandb")
    (replaced,) = (out / "wandb" / "replaced").glob("*/*.wandb")
    assert piece.name == replaced.name, "one id, so one run"
    written = piece.read_bytes()
    assert b"eval/heldout/grounding/256" in written and b"eval/longreason/mean" in written and b"-results" in written
    settings = evaluation_settings(composed_evaluate([*SMALL, f"out={out}", "logging=wandb"]))
    assert (settings["group"], settings["job_type"], settings["config"]["algo"]["name"]) == ("table1", "eval", "base")


def test_every_suite_runs_on_the_shipped_student(everything: Evaluated) -> None:
    names = ["heldout", "longreason", "code", "ruler"]
    assert suites(everything.printed) == names
    drawn = (everything.folder / "index.html").read_text(encoding="utf-8")
    assert re.findall(r'<h2 id="(\w+)">', drawn) == names
    assert len(list((everything.folder / "evals").glob("*.jsonl"))) == 4


def test_labels_that_share_the_items_of_a_length(tmp_path: Path) -> None:
    """Seven items of three labels are three of each, the same families, and the length's own row is their mean."""
    share = [*SHORT, "+eval.suites.heldout.shared_items=true"]
    table = run(tmp_path, *share, "eval.items=7")
    assert places(table) == [
        ("grounding", "256", "3"), ("longform", "256", "3"), ("multihop", "256", "3"), ("all", "256", "9"),
    ]  # fmt: skip
    *tasks, mean = (float(row["score"].split()[0]) for row in rows(table))
    assert mean == pytest.approx(sum(tasks) / 3, abs=0.1)
    found = records.read(tmp_path / "evals" / "heldout.jsonl")
    assert {one.family_id for one in found} == {
        f"{task}-test-00000{number}" for task in ("grounding", "longform", "multihop") for number in range(3)
    }
    assert load(tmp_path).missing() == ""
    assert {row["n"] for row in rows(run(tmp_path, *SHORT, "eval.items=7"))} == {"7"}


def test_batches_are_small_where_prompts_are_long() -> None:
    """Answers that are not yet written are lost with a killed process."""

    def item(number: int, length: int) -> Item:
        text = str(number)
        return Item("x", Example(id=text, document=text, question="", answer="", task="ruler", length=length), None)

    found = answering.batches([item(n, length) for length in (0, 2048, 131_072) for n in range(300)], 4 * 65_536)
    sizes = {batch[0].example.length: len(batch) for batch in found[::-1]}
    assert sizes == {0: 128, 2048: 128, 131_072: 2}
    assert sorted(one.example.id for batch in found for one in batch) == sorted(
        str(n) for n in range(300) for _ in "abc"
    )
    assert all(len({one.example.length for one in batch}) == 1 for batch in found)


def test_a_killed_evaluation_continues(tmp_path: Path) -> None:
    items = [*SHORT, "eval.items=16", "rollout.batch_tokens=256"]  # twelve batches of four
    arguments = [*SMALL, f"out={tmp_path}", *items, "threads=1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "longctx_rl.evaluate", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    path = tmp_path / "evals" / "heldout.jsonl"
    deadline = time.monotonic() + 240
    while not path.exists() or not path.read_bytes().count(b"\n"):  # until the first batch is written
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    kept = records.read(path)
    assert 0 < len(kept) < 48
    assert process.returncode == 130 and b"the same command" in errors
    assert b"loading mini-student (torch, transformers)\n" in errors
    with path.open("a") as file:
        file.write('{"step": 0, "id": "cut')
    run(tmp_path, *items)
    found = records.read(path)
    assert found[: len(kept)] == kept and len(found) == len({one.id for one in found}) == 48


def started(out: Path, *overrides: str) -> subprocess.Popen[bytes]:
    """An evaluation by two processes, after both have written answers and before they are done."""
    arguments = [*SMALL, f"out={out}", *SHORT, "threads=1", "processes=2", *overrides]
    command_line = [sys.executable, "-m", "longctx_rl.evaluate", *arguments]
    running = subprocess.Popen(command_line, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 240
    while len(list(out.glob("evals/heldout.?.jsonl"))) < 2:
        assert running.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    return running


def children_of(running: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The two processes that answer, without the resource tracker and the sandbox's workers."""
    return [one for one in psutil.Process(running.pid).children() if "spawn_main" in " ".join(one.cmdline())]


def test_shares_of_an_evaluation_are_merged(heldout: Evaluated, tmp_path: Path) -> None:
    """Three processes left their files: one record is merged already, and the last line of one file is incomplete."""
    out = heldout.copy(tmp_path / "out")
    path = out / "evals" / "heldout.jsonl"
    alone = {one.id: one.output for one in records.read(path)}
    path.unlink()
    config = replace(composed(*SHORT, "eval.items=3"), out=str(out))
    model, tokenizer = load_model("mini-student").eval(), load_tokenizer("mini-student")
    for index in range(3):
        answering.answer_suites(config, model, tokenizer, answering.Share(index, 3), lambda suite, count: None)
    parts = sorted(path.parent.iterdir())
    assert [part.name for part in parts] == [f"heldout.{index}.jsonl" for index in range(3)]
    lines = [part.read_text().splitlines(keepends=True) for part in parts]
    assert [len(of_part) for of_part in lines] == [3, 3, 3]
    path.write_text(lines[0][0])  # merged before
    parts[2].write_text("".join(lines[2][:2]) + lines[2][2][:20])
    answered = {one.id: one for one in [*records.read(parts[0]), *records.read(parts[1]), *records.read(parts[2])]}
    table = run(out, *SHORT, "eval.items=3")
    found = records.read(path)
    assert [one.name for one in path.parent.iterdir()] == [path.name]
    assert len(answered) == 8 and [answered.get(one.id) for one in found[:8]] == found[:8]
    assert len(found) == len({one.id for one in found}) == 9 and {row["n"] for row in rows(table)} == {"3"}
    assert alone.items() <= {one.id: one.output for one in found}.items()


def test_two_processes_answer_what_one_does(
    heldout: Evaluated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forked, so that they need not import torch; the tests that interrupt such processes start new interpreters."""
    files: list[list[str]] = []
    counts: list[int] = []
    merge = processes.merge

    def seen(out: Path) -> None:
        files.append(sorted(path.name for path in (out / "evals").iterdir()))
        merge(out)

    forked = multiprocessing.get_context("fork")
    monkeypatch.setattr(processes.multiprocessing, "get_context", lambda method: forked)
    monkeypatch.setattr(processes, "merge", seen)
    (tmp_path / "evals").mkdir()
    config = replace(composed(*SHORT, "eval.items=2", "processes=2", "threads=1"), out=str(tmp_path))
    found = processes.answer_in_processes(config, lambda suite, count: counts.append(count))
    alone = records.read(heldout.folder / "evals" / "heldout.jsonl")
    assert files == [["heldout.0.jsonl", "heldout.1.jsonl"]]
    assert sum(counts) == len(alone) == 6
    outputs = {one.id: one.output for one in alone}
    assert {name: {one.id: one.output for one in of_suite} for name, of_suite in found.items()} == {"heldout": outputs}
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["evals", "heldout.jsonl"]


@pytest.mark.slow
def test_any_process_of_a_shared_evaluation_can_be_killed(tmp_path: Path) -> None:
    running = started(tmp_path, "eval.items=200")
    children = children_of(running)
    assert len(children) == 2
    children[0].kill()
    _, errors = running.communicate(timeout=240)
    assert running.returncode == 2
    assert b"exit code -9 (" in errors and b"the same command" in errors
    path = tmp_path / "evals" / "heldout.jsonl"
    kept = records.read(path)  # of both: the parent has merged them
    assert [one.name for one in path.parent.iterdir()] == [path.name] and 0 < len(kept) < 600

    running = started(tmp_path, "eval.items=200")
    children = children_of(running)
    running.kill()  # the parent, which can merge nothing any more
    running.communicate(timeout=240)
    psutil.wait_procs(children, timeout=60)
    assert not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in children)
    parts = sorted(path.parent.glob("heldout.?.jsonl"))
    answered = [one for part in parts for one in records.read(part)]
    with parts[0].open("a") as file:
        file.write('{"step": 0, "id": "cut')
    assert answered and not {one.id for one in answered} & {one.id for one in kept}

    # Another number of processes continues: nothing is lost, and nothing is evaluated twice.
    table = run(tmp_path, *SHORT, "eval.items=200")
    found = records.read(path)
    assert found[: len(kept)] == kept and {one.id for one in answered} <= {one.id for one in found}
    assert len(found) == len({one.id for one in found}) == 600 and not list(path.parent.glob("heldout.?.jsonl"))
    assert run(tmp_path, *SHORT, "eval.items=200", "processes=2", "threads=1") == table


@pytest.mark.slow
def test_an_error_of_several_processes_is_reported_once(heldout: Evaluated, tmp_path: Path) -> None:
    out = heldout.copy(tmp_path / "out")
    path = out / "evals" / "heldout.jsonl"
    path.write_text(path.read_text().replace('"prompt_hash": "', '"prompt_hash": "x'))
    with pytest.raises(ValueError, match=r"heldout\.jsonl .*: choose another out=FOLDER$"):
        run(out, *SHORT, "eval.items=2", "processes=2")


def test_a_failure_before_the_first_answer_leaves_no_folder(
    heldout: Evaluated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new, kept = tmp_path / "runs" / "new", heldout.copy(tmp_path / "kept")
    with pytest.raises(ValueError, match="length=32"):  # after the folder was described
        run(new, "eval=heldout", "eval.suites.heldout.lengths=[32]")
    assert not new.exists()
    before = sorted(kept.rglob("*"))

    def unreadable(*arguments: Any) -> None:
        raise ValueError("unreadable")

    monkeypatch.setattr(checkpoint_evaluation, "load_model", unreadable)
    for out in (new, kept):
        with pytest.raises(ValueError, match="unreadable"):
            run(out, *SHORT, "eval.items=3")
    assert not new.exists() and sorted(kept.rglob("*")) == before


@pytest.mark.parametrize(
    ("overrides", "key", "fix"),
    [
        (["eval=typo"], "eval=typo", "ablation, all, code, heldout, longblocks, longreason, "),
        (["eval=none"], "eval=none", "choose eval=all, or another file"),
        (["eval.items=0"], "eval.items=0", "above 0"),
        (["processes=0"], "processes=0", "above 0"),
        (["eval=ruler", "eval.suites.ruler.answer_slack=-1"], "answer_slack=-1", "0 or more, or null"),
        (["eval.first=-1"], "eval.first=-1", "0 or more"),
        (["eval=heldout", "+eval.suites.rular={labels:[a],lengths:[1],max_new_tokens:1}"],
         "eval.suites.rular", "heldout, longreason, ruler, code"),
        (["eval=code", "eval.suites.code.labels=[buried]"], "eval.suites.code.labels=buried", "closed, short, "),
        (["eval=heldout", "eval.suites.heldout.lengths=[8192]"],
         "eval.suites.heldout.lengths needs 8404 tokens", "yarn='{factor: 4.0, original_context: 32768}'"),
        (["yarn={factor: 1.0, original_context: 4096}"], "yarn.factor=1.0, original_context=4096", "factor above 1"),
        (["eval=heldout", "checkpoint=nowhere"], "model nowhere", "give a directory, a Hub id"),
        (["eval=heldout", "eval.suites.heldout.lengths=[32]"], "length=32", "raise"),
        (["eval=longreason_hub", "eval.suites.longreason_hub.path=/nowhere"], "/nowhere",
         "eval.suites.longreason_hub.path"),
        (["itmes=3"], "itmes", "unknown key itmes: "),
    ],
)  # fmt: skip
def test_refused_configurations(tmp_path: Path, overrides: list[str], key: str, fix: str) -> None:
    with pytest.raises(ValueError) as error:
        run(tmp_path / "out", *overrides)
    assert key in str(error.value) and fix in str(error.value)


def test_a_stretched_model_says_so_itself(tmp_path: Path) -> None:
    """The export of a run with model.yarn is evaluated as it was trained; yarn stretches the model it started from."""
    yarn = YarnConfig(factor=4.0, original_context=4096)
    model, tokenizer = load_model("mini-student", yarn), load_tokenizer("mini-student")
    model.save_pretrained(tmp_path / "export")
    tokenizer.save_pretrained(tmp_path / "export")
    settings = {
        "export": [f"checkpoint={tmp_path / 'export'}"],
        "base": ["yarn={factor: 4.0, original_context: 4096}"],
        "plain": [],
    }
    outputs = {}
    for name, overrides in settings.items():
        run(tmp_path / "out" / name, *LONG, "eval.items=2", *overrides)
        outputs[name] = [one.output for one in records.read(tmp_path / "out" / name / "evals" / "heldout.jsonl")]
    assert outputs["export"] == outputs["base"] != outputs["plain"]
    long = composed_evaluate([*settings["export"], "out=x", "eval=heldout", "eval.suites.heldout.lengths=[8192]"])
    checkpoint_evaluation.check_fit(long, load_model(long.checkpoint), tokenizer)
    with pytest.raises(ValueError, match=r"positions \(mini-student, .*yarn.*: choose another out=FOLDER"):
        run(tmp_path / "out" / "base", *LONG, "eval.items=2")


def test_folders_of_other_weights_and_missing_settings(heldout: Evaluated, tmp_path: Path) -> None:
    out = heldout.copy(tmp_path / "out")
    with pytest.raises(ValueError, match=r"weights \(mini-student, .*: choose another out=FOLDER"):
        run(out, *SHORT, "eval.items=1", "checkpoint=mini-teacher")
    with pytest.raises(ValueError, match=r"dtype \(mini-student, float32\): choose another out=FOLDER"):
        run(out, *SHORT, "eval.items=1", "dtype=bfloat16")
    with pytest.raises(ValueError, match=r"set eval\.suites\.heldout\.max_new_tokens=48, or"):
        run(out, *SHORT, "eval.items=1", "rollout.max_new_tokens=49")
    with pytest.raises(ValueError, match=r"set eval\.suites\.heldout\.answer_slack=null, or"):
        run(out, *SHORT, "eval.items=1", "+eval.suites.heldout.answer_slack=9")
    (tmp_path / "run" / "evals").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"training run.*: choose another out=FOLDER"):
        run(tmp_path / "run", *SHORT, "eval.items=1")
    with pytest.raises(ValueError, match="checkpoint=FOLDER"):
        composed_evaluate(["out=x"])
    with pytest.raises(ValueError, match="out=FOLDER"):
        composed_evaluate(["checkpoint=mini-student"])
    path = out / "evals" / "heldout.jsonl"
    path.write_text(path.read_text().replace('"prompt_hash": "', '"prompt_hash": "x'))
    with pytest.raises(ValueError, match=r"heldout\.jsonl .*: choose another out=FOLDER"):
        run(out, *SHORT, "eval.items=1")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"cannot be written .*: choose another out=FOLDER"):
        run(tmp_path / "file" / "below", *SHORT, "eval.items=1")


def test_a_folder_that_another_evaluation_writes_is_refused(tmp_path: Path) -> None:
    with locked(tmp_path):
        owner = rf"process {os.getpid()} on .*"
        with pytest.raises(ValueError, match=rf"another evaluation \({owner}\).*: choose"), locked(tmp_path):
            pass
    with locked(tmp_path):
        pass


def test_a_tokenizer_of_another_vocabulary(tmp_path: Path) -> None:
    tokenizer = load_tokenizer("mini-student")
    tokenizer.add_tokens(["<one more>"])
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(ValueError, match=r"1025 embeddings.* 1024.*tokenizer=FOLDER"):
        run(tmp_path / "out", *SHORT, f"tokenizer={tmp_path / 'tokenizer'}")


def test_a_tokenizer_with_other_tokens_of_the_same_number(tmp_path: Path) -> None:
    load_tokenizer("mini-student").save_pretrained(tmp_path / "tokenizer")
    path = tmp_path / "tokenizer" / "tokenizer.json"
    described = json.loads(path.read_text())
    tokens = described["model"]["vocab"]
    (first, one), (second, two) = list(tokens.items())[300:302]
    tokens[first], tokens[second] = two, one
    path.write_text(json.dumps(described))
    with pytest.raises(ValueError, match=r"mini-student's own \(2 of 1024 differ\): set tokenizer=null, or"):
        run(tmp_path / "out", *SHORT, f"tokenizer={tmp_path / 'tokenizer'}")


def test_the_distance_to_a_base_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distance = ["kl.base=mini-student", "kl.items=1", "kl.max_new_tokens=8"]
    output = run(tmp_path, *SHORT, "eval.items=1", *distance)
    table = rows(output.partition("KL to mini-student\n")[2])
    assert [row["task"] for row in table] == ["multihop", "grounding", "longform", "original", "short", "all"]
    assert {row["nats per token"].split()[0] for row in table} == {"0.0000"}
    monkeypatch.setattr(kl, "token_kl", None)
    assert run(tmp_path, *SHORT, "eval.items=1", *distance) == output
    with pytest.raises(ValueError, match=r"kl\.items=0: set it above 0"):
        run(tmp_path, *SHORT, "kl.items=0")
    with pytest.raises(ValueError, match="nowhere"):
        run(tmp_path / "other", *SHORT, "kl.base=nowhere")
    assert not (tmp_path / "other").exists()  # refused before anything is evaluated


def test_suites_of_files_are_evaluated_if_their_path_is_set(short: Evaluated, tmp_path: Path) -> None:
    assert suites(short.printed) == ["heldout", "longreason", "code", "ruler"]
    path, out = tmp_path / "a.jsonl", short.copy(tmp_path / "out")
    path.write_text("".join(json.dumps(row) + "\n" for row in HUMANEVAL[:2]))
    file = [f"eval.suites.humaneval.path={path}", "eval.suites.humaneval.max_new_tokens=8"]
    table = run(out, "eval=short", *BRIEF, "eval.items=3", *file)
    (row,) = rows(table.partition("humaneval\n")[2])
    assert (row["task"], row["length"], row["n"], row["score"].split()[0]) == ("python", "-", "2", "0.0")
    assert load(out).missing() == ""  # the file has no third


def test_short_and_all_share_a_folder(short: Evaluated, everything: Evaluated, tmp_path: Path) -> None:
    assert f"generated code is run in sandbox={BACKEND}" in short.errors
    for name in ("heldout", "code"):
        first, both = ((one.folder / "evals" / f"{name}.jsonl").read_text() for one in (short, everything))
        assert both.startswith(first)
    assert json.loads((everything.folder / "evaluation.json").read_text())["sandbox"] == BACKEND
    run(everything.copy(tmp_path / "out"), "eval=short", *BRIEF)


def test_several_samples_of_an_item(tmp_path: Path) -> None:
    """They share a prompt and differ; pass@2 is at least pass@1; the inline mode has another prompt."""
    code = ["eval=code", "eval.items=6", "eval.suites.code.labels=[bury]", "eval.suites.code.lengths=[768]"]
    drawn = [*code, "eval.suites.code.samples=2", "eval.suites.code.temperature=1.0"]
    table = run(tmp_path / "drawn", *drawn)
    (row,) = rows(table)
    assert 0 < float(row["score"].split()[0]) <= float(row["pass@2"])
    found = records.read(tmp_path / "drawn" / "evals" / "code.jsonl")
    assert all(one.samples == 2 and one.score == (one.right or 0) / 2 for one in found)
    assert any(one.output != one.more[0] for one in found)
    assert [row["n"] for row in rows(run(tmp_path / "again", *drawn, "eval.items=3"))] == ["3"]
    again = {one.id: one for one in records.read(tmp_path / "again" / "evals" / "code.jsonl")}
    assert len(again) == 3 and again.items() <= {one.id: one for one in found}.items()
    with pytest.raises(ValueError, match=r"set eval\.suites\.code\.samples=2, or choose another out=FOLDER"):
        run(tmp_path / "drawn", *code)
    with pytest.raises(ValueError, match=r"eval\.suites\.code\..*temperature above 0"):
        run(tmp_path / "x", *code, "eval.suites.code.samples=2")
    run(tmp_path / "inline", *code, "eval.items=1", "eval.suites.code.mode=inline")
    (inline,) = records.read(tmp_path / "inline" / "evals" / "code.jsonl")
    assert "Import its helpers" not in inline.question and inline.family_id in {one.family_id for one in found}


def test_help_shows_an_example() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "longctx_rl.evaluate", "--help"], capture_output=True, text=True, check=True
    )
    assert "python -m longctx_rl.evaluate checkpoint=mini-student" in done.stdout


def test_the_folder_describes_its_checkpoint(heldout: Evaluated) -> None:
    found = json.loads((heldout.folder / "evaluation.json").read_text())
    assert found["checkpoint"] == "mini-student" and len(found["weights"]) == 32


def test_rulers_limit_leaves_room_for_the_facts_that_the_mini_models_restate(tmp_path: Path) -> None:
    """A chain of three relations takes 33 tokens, the longest text that mini-teacher writes before an answer."""
    labels = ["eval=ruler", "eval.suites.ruler.labels=[qa_2]", "eval.suites.ruler.lengths=[512]"]
    run(tmp_path, *labels, "checkpoint=mini-teacher", "eval.items=20")
    found = records.read(tmp_path / "evals" / "ruler.jsonl")
    assert max(one.tokens for one in found) >= 33 and not any(one.truncated for one in found)
