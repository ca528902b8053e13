"""Evaluations that vLLM servers answer, against scripted ones: records, switches, streams, and what can go wrong."""

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import hub_cache
from longctx_rl import evaluate as command
from longctx_rl.config.compose import composed_evaluate
from longctx_rl.config.model import YarnConfig
from longctx_rl.evals import records
from longctx_rl.evals.checkpoint_evaluation import positions
from longctx_rl.evals.served import CheckpointServers
from longctx_rl.policy.loading import context_length, end_tokens, load_model, load_tokenizer, load_without_weights
from longctx_rl.policy.weights import SHIPPED
from longctx_rl.report.answers import page
from longctx_rl.rollout import SampleRequest, server
from longctx_rl.rollout.hf import HFSampler
from longctx_rl.rollout.vllm import VllmSampler
from rollout.scripted_vllm import EOS, Reply, ScriptedVllm, hangs, scripted

GENERATE = "/inference/v1/generate"
HELDOUT = ["eval=heldout", "eval.suites.heldout.lengths=[256]", "rollout.max_new_tokens=24"]
RULER = ["eval=ruler", "eval.suites.ruler.labels=[vt,qa_1]", "eval.suites.ruler.lengths=[512]"]
SAMPLED = [*HELDOUT, "+eval.suites.heldout.samples=2", "+eval.suites.heldout.temperature=1.0"]


@pytest.fixture(autouse=True)
def _short_pauses_and_blank_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "PAUSE", 0.01)
    monkeypatch.setattr(page, "render", lambda loaded: "")


@pytest.fixture(scope="module")
def honest() -> Callable[[ScriptedVllm, Any], Reply]:
    """Answers as a server of mini-student would: with what transformers samples."""
    model, tokenizer, lock = load_model("mini-student").eval(), load_tokenizer("mini-student"), threading.Lock()

    def answer(script: ScriptedVllm, body: Any) -> Reply:
        sent = body["sampling_params"]
        sampler = HFSampler(
            tokenizer,
            temperature=sent["temperature"],
            max_new_tokens=sent["max_tokens"],
            batch_tokens=1024,
            eos_ids=sent["stop_token_ids"],
        )
        with lock:
            seeds = tuple(sent.get("seed", 0) + number for number in range(sent["n"]))
            (group,) = sampler.sample(model, [SampleRequest(tuple(body["token_ids"]), seeds)])
        return 200, {
            "choices": [
                script.choice(
                    number,
                    body,
                    finish_reason=one.finish_reason,
                    token_ids=list(one.token_ids),
                    logprobs={"content": [{"token_id": token, "logprob": -0.5} for token in one.token_ids]},
                )
                for number, one in enumerate(group)
            ]
        }

    return answer


@pytest.fixture
def student(honest: Callable[[ScriptedVllm, Any], Reply]) -> Iterator[ScriptedVllm]:
    """A server of mini-student."""
    script = ScriptedVllm(context=4096, replies={GENERATE: honest})
    with scripted(script):
        yield script


def run(out: Path, *overrides: str) -> str:
    return command.evaluate(composed_evaluate(["checkpoint=mini-student", f"out={out}", *overrides]))


def at(script: ScriptedVllm) -> list[str]:
    return ["rollout=vllm", f"rollout.server={script.url}"]


def lines(out: Path, suite: str) -> list[str]:
    """A suite's records, in the order of their text: servers answer in an order of their own."""
    return sorted((out / "evals" / f"{suite}.jsonl").read_text().splitlines())


def samplers(out: Path) -> Any:
    return json.loads((out / "evaluation.json").read_text())["samplers"]


@pytest.mark.parametrize(("suite", "overrides"), [("heldout", HELDOUT), ("ruler", RULER)])
def test_records_and_tables_are_those_of_transformers(
    suite: str, overrides: list[str], student: ScriptedVllm, tmp_path: Path
) -> None:
    """Also with a limit for each item, and with answers that reach it."""
    table = run(tmp_path / "hf", *overrides, "eval.items=6")
    served = run(tmp_path / "vllm", *overrides, "eval.items=6", *at(student))
    assert served.replace(str(tmp_path / "vllm"), "") == table.replace(str(tmp_path / "hf"), "")
    assert lines(tmp_path / "vllm", suite) == lines(tmp_path / "hf", suite)
    assert any(json.loads(line)["truncated"] for line in lines(tmp_path / "hf", suite))
    assert sorted(path.name for path in (tmp_path / "vllm").rglob("*")) == sorted(
        path.name for path in (tmp_path / "hf").rglob("*")
    )
    assert samplers(tmp_path / "vllm") == {suite: ["vllm"]} and samplers(tmp_path / "hf") == {suite: ["hf"]}


def test_greedy_answers_are_continued_by_the_other_sampler_and_the_folder_says_so(
    student: ScriptedVllm, tmp_path: Path
) -> None:
    run(tmp_path, *HELDOUT, "eval.items=1")
    path = tmp_path / "evaluation.json"
    older = json.loads(path.read_text())
    del older["samplers"]
    path.write_text(json.dumps(older))
    first = records.read(tmp_path / "evals" / "heldout.jsonl")
    table = run(tmp_path, *HELDOUT, "eval.items=2", *at(student))
    assert student.paths().count(GENERATE) == 3
    assert records.read(tmp_path / "evals" / "heldout.jsonl")[:3] == first
    assert samplers(tmp_path) == {"heldout": ["hf", "vllm"]}
    student.requests.clear()
    assert run(tmp_path, *HELDOUT, "eval.items=2", *at(student)) == table and not student.requests
    assert run(tmp_path, *HELDOUT, "eval.items=2") == table
    assert samplers(tmp_path) == {"heldout": ["hf", "vllm"]}


def test_samples_are_one_request_and_are_not_continued_by_the_other_sampler(
    student: ScriptedVllm, tmp_path: Path
) -> None:
    run(tmp_path, *SAMPLED, "eval.items=1", *at(student))
    found = records.read(tmp_path / "evals" / "heldout.jsonl")
    sent = [body["sampling_params"] for path, body in student.requests if path == GENERATE]
    assert {each["n"] for each in sent} == {2}
    assert {each["seed"] for each in sent} == {records.seed_of(one.id, 0) >> 1 for one in found}
    assert all(one.samples == 2 for one in found)
    with pytest.raises(ValueError, match="set rollout=vllm, or choose another out=FOLDER"):
        run(tmp_path, *SAMPLED, "eval.items=2")


def cut(script: ScriptedVllm, body: Any) -> Reply | None:
    return 200, {"choices": [script.choice(0, body, finish_reason="abort")]}


def stale(script: ScriptedVllm, body: Any) -> Reply | None:
    versions = [{"version": "run:7", "start": 0, "end": 1}]
    return 200, {"choices": [script.choice(0, body, weight_versions=versions)]}


@pytest.mark.parametrize(
    ("failure", "named"),
    [
        (lambda *_: (0, None), "cannot be reached"),
        (lambda *_: (404, {}), "VLLM_SERVER_DEV_MODE=1"),
        (lambda *_: (500, {"error": {"message": "EngineCore"}}), "EngineCore"),
        (lambda *_: (200, {"choices": [{}]}), "use vLLM 0.32"),
        (hangs, "rollout.timeout"),
        (cut, "ended by abort"),
        (stale, "weights run:7 instead of default"),
    ],
)
def test_a_failure_keeps_the_answers_so_far(
    failure: Callable[[ScriptedVllm, Any], Reply | None],
    named: str,
    honest: Callable[[ScriptedVllm, Any], Reply],
    student: ScriptedVllm,
    tmp_path: Path,
) -> None:
    def fails_at_the_third(script: ScriptedVllm, body: Any) -> Reply | None:
        return honest(script, body) if script.paths().count(GENERATE) < 3 else failure(script, body)

    student.replies[GENERATE] = fails_at_the_third
    settings = [*HELDOUT, "eval.items=2", *at(student), "rollout.concurrency=1"]
    with pytest.raises(ValueError) as caught:
        run(tmp_path, *settings, f"rollout.timeout={0.5 if failure is hangs else 30}")
    assert named in str(caught.value) and "the same command continues from there" in str(caught.value)
    kept = records.read(tmp_path / "evals" / "heldout.jsonl")
    assert len(kept) == 2 and "\n" not in str(caught.value)
    student.replies[GENERATE] = honest
    run(tmp_path, *settings)
    found = records.read(tmp_path / "evals" / "heldout.jsonl")
    assert found[:2] == kept and len(found) == 6


def test_an_answer_does_not_wait_for_a_slower_one_and_requests_are_bounded(tmp_path: Path) -> None:
    """The first request is answered once all others have been yielded."""
    others, lock, open_requests, most = threading.Event(), threading.Lock(), [0], [0]

    def answer(script: ScriptedVllm, body: Any) -> Reply | None:
        with lock:
            open_requests[0] += 1
            most[0] = max(most[0], open_requests[0])
        assert body["token_ids"] != [0] or others.wait(20)
        with lock:
            open_requests[0] -= 1
        return None

    with scripted(ScriptedVllm(context=4096, replies={GENERATE: answer})) as script:
        seen: list[int] = []
        for arrived in sampler(script, tmp_path).stream([SampleRequest((n,), (0,)) for n in range(40)], 4):
            seen += arrived
            if len(seen) == 39:
                others.set()
    assert seen[-1] == 0 and sorted(seen) == list(range(40)) and 1 < most[0] <= 4


def test_a_stream_that_is_abandoned_ends_its_requests(tmp_path: Path) -> None:
    with scripted(ScriptedVllm(context=4096)) as script:
        stream = sampler(script, tmp_path).stream([SampleRequest((n,), (0,)) for n in range(400)], 2)
        next(stream)
        stream.close()
        assert script.paths().count(GENERATE) < 400
    assert "vllm" not in [thread.name for thread in threading.enumerate()]


def sampler(script: ScriptedVllm, out: Path) -> VllmSampler:
    config = composed_evaluate(["checkpoint=mini-student", f"out={out}", "eval=heldout", *at(script)])
    servers = CheckpointServers(config, load_without_weights("mini-student"), "hash", True)
    tokenizer = load_tokenizer("mini-student")
    return VllmSampler(servers, tokenizer, temperature=0.0, max_new_tokens=4, eos_ids=(EOS,), rows=1024)


def test_a_server_of_too_short_a_context_or_of_other_weights_is_refused(student: ScriptedVllm, tmp_path: Path) -> None:
    student.context = 256
    with pytest.raises(ValueError, match=rf"of {student.url} is 256: lower it, or serve a larger --max-model-len"):
        run(tmp_path / "short", *HELDOUT, "eval.items=1", *at(student))
    student.context, student.root = 4096, str(SHIPPED / "mini-teacher")
    with pytest.raises(ValueError, match=r"mini-teacher, which has other weights than mini-student: give"):
        run(tmp_path / "other", *HELDOUT, "eval.items=1", *at(student))
    assert not list(tmp_path.glob("*"))
    student.root = str(SHIPPED / "mini-student")
    run(tmp_path / "right", *HELDOUT, "eval.items=1", *at(student))


def test_a_model_whose_weights_only_the_server_has(
    student: ScriptedVllm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_cache.use(tmp_path / "cache", monkeypatch)
    (hub_cache.download(tmp_path / "cache", "a/b", SHIPPED / "mini-student", "0" * 40) / "model.safetensors").unlink()
    settings = [*HELDOUT, "eval.items=1", "checkpoint=a/b"]
    run(tmp_path / "out", *settings, *at(student))
    assert len(lines(tmp_path / "out", "heldout")) == 3
    with pytest.raises(ValueError, match=r"kl.base needs the weights of a/b on this disk: run hf download a/b"):
        run(tmp_path / "out", *settings, *at(student), "kl.base=mini-student")
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 0.32.0\n")
    python.chmod(0o755)
    with pytest.raises(ValueError, match=r"rollout.server=auto needs the weights of a/b"):
        run(tmp_path / "out", *settings, "rollout=vllm", f"rollout.python={python}")


def test_the_distance_to_a_base_is_measured_with_the_loaded_model(student: ScriptedVllm, tmp_path: Path) -> None:
    distance = ["eval.items=1", "kl.base=mini-student", "kl.items=1", "kl.max_new_tokens=8"]
    served = run(tmp_path / "vllm", *HELDOUT, *distance, *at(student))
    assert served.replace("/vllm/", "/hf/") == run(tmp_path / "hf", *HELDOUT, *distance)


def test_a_server_that_does_not_start_gives_its_cause_and_keeps_its_log(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nif [ "$1" = -c ]; then echo 0.32.0; exit; fi\necho "RuntimeError: $*" >&2; exit 1\n')
    python.chmod(0o755)
    yarn = "yarn={factor: 4.0, original_context: 4096}"
    settings = [*HELDOUT, "eval.items=1", "rollout=vllm", f"rollout.python={python}", yarn, "rollout.server_args=[--x]"]
    with pytest.raises(ValueError, match=r"vLLM did not start \(RuntimeError: .*the same command continues"):
        run(tmp_path / "out", *settings)
    log = (tmp_path / "out" / "vllm.log").read_text()
    assert f"--model {SHIPPED / 'mini-student'} " in log and "--dtype float32 --max-model-len 16384" in log
    assert '"rope_type": "yarn"' in log and log.rstrip().endswith("--x")
    assert (SHIPPED / "mini-student" / "config.json").is_file()  # the guard removes no checkpoint


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["rollout=vllm", "processes=2"], "processes=2 is for rollout=hf: set processes=1"),
        (["rollout=vlm"], "rollout.name=vlm: choose one of hf, vllm"),
        (["rollout.server=http://a:1"], "rollout.server=http://a:1 is for rollout=vllm: add rollout=vllm"),
        (["rollout=vllm", "rollout.server=a"], "rollout.server=a: give auto, or addresses"),
        (["rollout=vllm", "rollout.concurrency=0"], "rollout.concurrency=0: set it above 0"),
        (["rollout=vllm", "rollout.temperature=1"], "unknown key rollout.temperature"),
        (["rollout=vllm", "+eval.suites.heldout.temperature=3", "+eval.suites.heldout.samples=2"], "at most 2"),
    ],
)
def test_settings_that_cannot_work_are_refused(overrides: list[str], named: str) -> None:
    with pytest.raises(ValueError) as caught:
        composed_evaluate(["checkpoint=mini-student", "out=x", "eval=heldout", *overrides])
    assert named in str(caught.value)


@pytest.mark.parametrize("yarn", [None, YarnConfig(factor=4.0, original_context=4096)])
def test_a_model_without_weights_describes_itself_as_the_loaded_one(yarn: YarnConfig | None, tmp_path: Path) -> None:
    folder = shutil.copytree(SHIPPED / "mini-student", tmp_path / "model")
    tokenizer = load_tokenizer("mini-student")
    for settings in ("{}", '{"eos_token_id": [2, 5]}', None):
        path = folder / "generation_config.json"
        path.unlink(missing_ok=True) if settings is None else path.write_text(settings)
        described = [
            (end_tokens(model, tokenizer), context_length(model), positions(model), model.config.vocab_size)
            for model in (load_model(str(folder), yarn), load_without_weights(str(folder), yarn))
        ]
        assert described[0] == described[1]
        assert (5 in described[0][0]) == (settings is not None and "5" in settings)
