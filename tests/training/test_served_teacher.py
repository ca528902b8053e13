"""A teacher behind a server gives the signals of the loaded one; what it gave is never paid for twice."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from config.composing import config_with
from longctx_rl import cli, doctor
from longctx_rl.config.schema import Config
from longctx_rl.data.packing import empty_row, pack, viewed
from longctx_rl.launch import rank
from longctx_rl.objective.spec import Divergence, Estimator
from longctx_rl.policy.frozen import FrozenScorer
from longctx_rl.policy.loading import load_model, load_tokenizer
from longctx_rl.policy.shape import ModelShape, step_flops
from longctx_rl.rollout import RolloutFailed, server
from longctx_rl.runs import directory
from longctx_rl.training.anchors import FrozenAnchor
from longctx_rl.training.served_teacher import COMPLETIONS, ServedScorer, SignalStore
from longctx_rl.training.state import TrainState
from longctx_rl.training.step import PreparedRow, add_costs
from packed_builders import CPU, group
from rank_processes import run_ranks
from rollout.scripted_vllm import Reply, ScriptedVllm, scripted
from small_runs import assert_same_steps, rows_of, smoke, step_rows, train
from step_parts import step_parts

Models = tuple[str, str]
Answer = Callable[[ScriptedVllm, Any], Reply | None]
TOKENIZER = load_tokenizer("mini-student")
ROWS = 1024
GROUPS = [
    group(9, (4, 7, 4), 0, masked=True),
    replace(group(14, (1, 3), 1), views=((5, 6, 7), (8,) * 30)),
    replace(group(5, (6, 6), 2), views=((11, 12),)),
]
SETTINGS = ("eval=none", "algo.kd.top_k=16", "budget.steps=3", "model.dtype=float32")


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "PAUSE", 0.01)


def answers_of(folder: str) -> Answer:
    """Return what vLLM would answer with the model in ``folder``: all positions, and the token that comes next too."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def answer(script: ScriptedVllm, body: Any) -> Reply:
        assert (body["max_tokens"], body["temperature"], body["model"]) == (1, 0.0, "policy")
        ids, k = body["prompt"], body["prompt_logprobs"]
        with torch.no_grad():
            logprobs = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0].float(), -1)
        rows: list[Any] = [None]
        for place, token in enumerate(ids[1:]):
            listed = [token, *logprobs[place].topk(k).indices.tolist()]
            entries = {str(one): {"logprob": logprobs[place, one].item(), "rank": 1} for one in listed}
            rows.append(entries)
        return 200, {"choices": [{"index": 0, "prompt_logprobs": rows}]}

    return answer


def tokens_of(script: ScriptedVllm, body: Any) -> Reply:
    return 200, {"tokens": TOKENIZER(body["prompt"], add_special_tokens=False)["input_ids"]}


@contextmanager
def serving(models: Models, **replies: Answer) -> Iterator[ScriptedVllm]:
    """Serve the teacher of ``models``."""
    usual = {COMPLETIONS: answers_of(models[1].partition("=")[2]), "/tokenize": tokens_of}
    with scripted(ScriptedVllm(context=512, replies=usual | replies)) as script:
        yield script


def taught(root: Path, url: str, *overrides: str) -> Config:
    return smoke(root, *SETTINGS, *overrides, f"model.teacher={url}")


def asked(script: ScriptedVllm) -> list[tuple[int, ...]]:
    """What was scored, without the probe that is sent when a run connects."""
    return [tuple(body["prompt"]) for path, body in script.requests if path == COMPLETIONS][1:]


@pytest.mark.parametrize(("estimator", "placement"), [("topk", "loss"), ("k1", "advantage"), ("k3", "loss")])
def test_signals_equal_those_of_the_loaded_teacher(
    estimator: Estimator, placement: str, models: Models, tmp_path: Path
) -> None:
    """For masked completions and several prompts of the teacher; equal completions are requested once."""
    loaded = FrozenScorer(load_model(models[1].partition("=")[2]), chunk=5).freeze()
    settings = {"estimator": estimator, "temperature": 1.0, "top_k": 16, "head": None}
    with serving(models) as script:
        overrides = (f"algo.kd.estimator={estimator}", f"algo.kd.placement={placement}", models[0])
        scorer = ServedScorer(taught(tmp_path, script.url, "+algo=opd", *overrides), TOKENIZER, ROWS)
        assert scorer.context == 511 and scorer.notes[1:] == ()
        twice = replace(GROUPS[0], completions=GROUPS[0].completions * 2)
        for packed in (pack([twice], CPU), pack(viewed(GROUPS), CPU), empty_row(CPU)):
            signal, expected = scorer(packed, **settings), loaded(packed, **settings)
            assert type(signal) is type(expected)
            for one, two in zip(signal, expected, strict=True):
                torch.testing.assert_close(one, two, rtol=0, atol=1e-5)
        assert len(asked(script)) == len(set(asked(script))) == 7


@pytest.mark.parametrize(
    "overrides",
    [
        ("+algo=opd", "algo.kd.estimator=topk"),
        ("+algo=dgrpo", "algo.kd.estimator=k1", "algo.kd.placement=advantage", "algo.kd.view=evidence"),
        ("+algo=kd", "algo.kd.estimator=topk", "data.questions_per_document=2", "algo.kd.view=evidence"),
    ],
    ids=["top-k", "k1 in the advantage, after a view", "recorded answers to two questions, after a view"],
)
def test_a_run_equals_the_run_that_loads_the_teacher(
    overrides: tuple[str, ...], models: Models, tmp_path: Path
) -> None:
    loaded = step_rows(train(smoke(tmp_path / "loaded", *SETTINGS, *overrides, *models)))
    with serving(models) as script:
        config = taught(tmp_path / "served", script.url, *overrides, models[0])
        served = step_rows(train(config))
    assert len(served) == len(loaded) == 3
    for one, two in zip(loaded, served, strict=True):
        assert two.keys() == one.keys() and two.pop("progress/flops") < one.pop("progress/flops")
        assert two == pytest.approx(one, rel=1e-3, abs=1e-5)
    said = Path(config.run_dir, "log.txt").read_text()
    assert f"at {script.url}, whose FLOPs are not counted" in said
    assert ("view/score_gap" in said) is ("+algo=dgrpo" in overrides)


@pytest.mark.parametrize("source", ["policy", "dataset"])
def test_a_server_that_fails_leaves_a_saved_step_and_resuming_pays_nothing_twice(
    source: str, models: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the middle of a step, with the server at another address afterwards."""
    method = ("+algo=opd", "algo.group_size=3") if source == "policy" else ("+algo=kd",)
    settings = (*method, "algo.kd.estimator=topk", models[0], "checkpoint.every=0", "+rollout.concurrency=1")
    with serving(models) as whole:
        expected = step_rows(train(taught(tmp_path / "whole", whole.url, *settings)))
    limit = len(asked(whole)) // 2
    answer = answers_of(models[1].partition("=")[2])
    answered: list[tuple[int, ...]] = []

    def stops(script: ScriptedVllm, body: Any) -> Reply:
        if len(answered) > limit:
            return 0, None
        answered.append(tuple(body["prompt"]))
        return answer(script, body)

    with serving(models, **{COMPLETIONS: stops}) as first:
        config = taught(tmp_path / "parts", first.url, *settings)
        assert rank.execute(config) == cli.UNUSABLE
    said = capsys.readouterr().err
    assert "cannot be reached" in said and "is saved; continue with" in said and "Traceback" not in said
    with serving(models) as second:
        assert rank.execute(taught(tmp_path / "parts", second.url, *settings, "resume=true")) == 0
    assert len(asked(second)) > 0 and not set(asked(second)) & set(answered[1:])
    assert sorted([*asked(second), *answered[1:]]) == sorted(set(asked(whole)))
    rows = step_rows(rows_of(Path(config.run_dir)))
    assert [each["loss/kd"] for each in rows] == [each["loss/kd"] for each in expected]


def test_a_killed_process_leaves_whole_signals(tmp_path: Path) -> None:
    """It is killed while it writes, at some moment; every value that is there is complete."""
    path, value = tmp_path / "new" / "teacher.sqlite", os.urandom(200_000)
    child = os.fork()
    if child == 0:
        store = SignalStore(path)
        for number in range(10**6):
            store.put(str(number), value)
    while not (path.exists() and path.stat().st_size > 10 * len(value)):
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    store = SignalStore(path)
    stored = [store.get(str(number)) for number in range(1000)]
    count = next(number for number, each in enumerate(stored) if each is None)
    assert count >= 3 and set(stored[:count]) == {value} and set(stored[count:]) == {None}


def test_signals_of_a_killed_first_step_are_kept(models: Models, tmp_path: Path) -> None:
    config = taught(tmp_path, "http://127.0.0.1:1", "+algo=opd", "algo.kd.estimator=topk", models[0])
    path = Path(config.run_dir)
    path.mkdir(parents=True)
    SignalStore(path / "teacher.sqlite").put("key", b"value")
    (path / "metrics.jsonl").touch()
    with directory.opened(config):
        assert SignalStore(path / "teacher.sqlite").get("key") == b"value" and not (path / "metrics.jsonl").exists()
    (path / "teacher.sqlite").write_text("not a database")
    with pytest.raises(RolloutFailed, match=r"teacher\.sqlite cannot hold the teacher's signals"):
        SignalStore(path / "teacher.sqlite")


def changed(models: Models, change: Callable[[list[Any]], None]) -> Answer:
    answer = answers_of(models[1].partition("=")[2])

    def reply(script: ScriptedVllm, body: Any) -> Reply:
        status, value = answer(script, body) or (0, None)
        change(value["choices"][0]["prompt_logprobs"])
        return status, value

    return reply


def set_last(**entries: Any) -> Callable[[list[Any]], None]:
    return lambda rows: rows.__setitem__(-1, {name.strip("_"): {"logprob": each} for name, each in entries.items()})


CHANGES: dict[str, tuple[Callable[[list[Any]], None], str]] = {
    "fewer positions": (lambda rows: rows.pop(), "no log-probabilities of some tokens"),
    "no position": (lambda rows: rows.__setitem__(-1, None), "no log-probabilities of some tokens"),
    "not a number": (set_last(_1=None), "no log-probabilities of some tokens"),
    "other tokens": (set_last(_1=-0.1), "1 tokens where 16 or 17 were requested"),
    "logits": (lambda rows: rows[-1].update({key: {"logprob": 9.5} for key in rows[-1]}), "no log-probabilities"),
    "undefined": (
        lambda rows: rows[-1].update({key: {"logprob": -9999.0} for key in rows[-1]}),
        "no log-probabilities",
    ),
}
REPLIES: dict[str, tuple[str, Answer, str]] = {
    "too many": (COMPLETIONS, lambda *_: (400, {"error": {"message": "max allowed: 8"}}), "--max-logprobs 16 or more"),
    "not vLLM": (COMPLETIONS, lambda *_: (404, {}), "--max-logprobs 16 or more"),
    "dies": (COMPLETIONS, lambda *_: (0, None), "cannot be reached"),
    "another shape": (COMPLETIONS, lambda *_: (200, {"choices": [{}]}), "without a valid choices.0.prompt_logprobs"),
    "another tokenizer": ("/tokenize", lambda *_: (200, {"tokens": [1, 2]}), "serve a teacher of the student's family"),
    "two models": ("/v1/models", lambda *_: (200, {"data": [{"id": "a", "max_model_len": 9}] * 2}), "2 models"),
}


@pytest.mark.parametrize("name", [*CHANGES, *REPLIES])
def test_a_failure_is_one_sentence(name: str, models: Models, tmp_path: Path) -> None:
    path, reply, named = REPLIES.get(name) or (COMPLETIONS, changed(models, CHANGES[name][0]), CHANGES[name][1])
    with serving(models, **{path: reply}) as script, pytest.raises(RolloutFailed) as caught:
        ServedScorer(taught(tmp_path, script.url, "+algo=opd", "algo.kd.estimator=topk"), TOKENIZER, ROWS)
    assert named in str(caught.value) and "\n" not in str(caught.value)


def test_tokens_outside_the_students_vocabulary_are_refused(models: Models, tmp_path: Path) -> None:
    with serving(models) as script, pytest.raises(RolloutFailed, match="student's vocabulary has 20: serve a teacher"):
        ServedScorer(taught(tmp_path, script.url, "+algo=opd", "algo.kd.estimator=topk"), TOKENIZER, 20)


def test_a_server_without_a_tokenizer_is_noted(models: Models, tmp_path: Path) -> None:

    def refuses(*_: Any) -> tuple[int, Any]:
        return 501, {"error": {"message": "no tokenizer"}}

    with serving(models, **{"/tokenize": refuses}) as script:
        scorer = ServedScorer(taught(tmp_path, script.url, "+algo=opd", "algo.kd.estimator=topk"), TOKENIZER, ROWS)
    assert "cannot be compared with the student's" in scorer.notes[1] and "no tokenizer" in scorer.notes[1]


def test_prompts_beyond_the_served_context_are_refused_before_training(
    models: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(models) as script:
        script.context = 200
        config = taught(tmp_path, script.url, "+algo=opd", "algo.kd.estimator=topk", models[0])
        assert rank.execute(config) == cli.UNUSABLE
    assert "199" in capsys.readouterr().err and not asked(script)


@pytest.mark.slow
def test_two_ranks_query_for_their_own_prompts(models: Models, tmp_path: Path) -> None:
    settings = ("+algo=opd", "algo.kd.estimator=topk", models[0])
    with serving(models) as script:
        one = step_rows(train(taught(tmp_path / "one", script.url, *settings)))
        two = taught(tmp_path / "two", script.url, *settings, "engine=zero3", "engine.num_processes=2")
        run_ranks(train, two)
    assert_same_steps(one, step_rows(rows_of(Path(two.run_dir))))


def test_the_teachers_tokens_are_counted_and_its_flops_are_not() -> None:
    packed, shape = pack(GROUPS, CPU), ModelShape(100, 50, 2, 8)
    anchors = {"kd": FrozenAnchor(nn.Identity(), Divergence(), head=None, shape=None)}
    config = config_with("+algo=opd", "model.teacher=http://localhost:8000", "algo.kd.estimator=topk")
    parts = replace(step_parts(config, None), anchors=anchors, shape=shape)
    state = TrainState()
    add_costs(parts, state, [PreparedRow(packed, {})], [])
    assert state.teacher_tokens == len(packed.input_ids)
    assert state.flops == step_flops(shape, [], packed.spans, packed.num_loss_tokens, updates=1, sampled=True)
    assert parts.sizes() == {"student": asdict(shape)}


def test_a_served_teacher_needs_no_memory_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.diagnose(
        ["+algo=opd", "algo.kd.estimator=topk", "model.teacher=http://localhost:8000", "context=512", "memory=80"]
    )
    assert "teacher" not in capsys.readouterr().out
