"""The client of vLLM servers, against a scripted one: requests, weights and versions, and whatever can go wrong."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from config.composing import config_with
from longctx_rl import cli
from longctx_rl.config.schema import RolloutConfig
from longctx_rl.engine.local import LocalEngine
from longctx_rl.launch import rank
from longctx_rl.policy.loading import load_model, load_tokenizer
from longctx_rl.policy.policy import Policy
from longctx_rl.rollout import RolloutFailed, SampleRequest, server
from longctx_rl.rollout.server import Servers
from longctx_rl.rollout.vllm import VllmSampler
from rollout.scripted_vllm import EOS, Reply, ScriptedVllm, hangs, scripted
from small_runs import rows_of, smoke, step_rows

TOKENIZER = load_tokenizer("mini-student")
CONFIG = config_with("+algo=grpo", "rollout=vllm", "engine=local", "rollout.server=http://127.0.0.1:1")
REQUESTS = [SampleRequest((5, 6, 7), (40, 50)), SampleRequest((8,), (60, 70, 80), max_new_tokens=1)]


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "PAUSE", 0.01)


@pytest.fixture
def engine() -> LocalEngine:
    return LocalEngine(CONFIG, Policy(load_model("mini-student"), chunk=64), 10)


def connected(engine: LocalEngine, root: Path, *scripts: ScriptedVllm, **changes: Any) -> Servers:
    config: RolloutConfig = replace(CONFIG.rollout, server=",".join(script.url for script in scripts), **changes)
    return Servers(config, engine, TOKENIZER, root, 64)


def sampler(servers: Servers, **changes: Any) -> VllmSampler:
    settings: dict[str, Any] = {"temperature": 0.7, "max_new_tokens": 4, "eos_ids": (EOS,), "rows": 1024}
    return VllmSampler(servers, TOKENIZER, **settings | changes)


def test_prompts_are_sent_once_and_completions_come_back_in_order(engine: LocalEngine, tmp_path: Path) -> None:
    with scripted(ScriptedVllm()) as script:
        groups = sampler(connected(engine, tmp_path, script)).sample(REQUESTS)
    assert [[completion.token_ids for completion in group] for group in groups] == [
        [(EOS,), (11, EOS)],
        [(EOS,), (11,), (12,)],
    ]
    assert [completion.finish_reason for completion in groups[1]] == ["stop", "length", "length"]
    assert groups[0][1].sampler_logprobs == (-0.5, -0.5)
    assert groups[0][0].text == "" and groups[0][1].text == TOKENIZER.decode([11])
    sent = (body for path, body in script.requests if path == "/inference/v1/generate")
    first, second = sorted(sent, key=lambda body: body["token_ids"])  # they arrive in any order
    assert first["token_ids"] == [5, 6, 7] and first["cache_salt"] == script.version
    assert first["sampling_params"] == {
        "n": 2,
        "seed": 20,
        "max_tokens": 4,
        "temperature": 0.7,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "logprobs": 0,
        "ignore_eos": True,
        "stop_token_ids": [EOS],
        "detokenize": False,
    }
    assert second["sampling_params"]["max_tokens"] == 1


def test_greedy_decoding_needs_no_seed_and_a_cut_vocabulary_is_a_mask(engine: LocalEngine, tmp_path: Path) -> None:
    with scripted(ScriptedVllm()) as script:
        sampler(connected(engine, tmp_path, script), temperature=0.0, vocabulary=4).sample(REQUESTS[:1])
    sent = script.requests[-1][1]["sampling_params"]
    assert "seed" not in sent and sent["allowed_token_ids"] == [0, 1, 2, 3]


def test_weights_are_sent_before_the_first_request_and_after_each_update(
    engine: LocalEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the order that leaves nothing computed by the old weights; the old folder is removed."""
    seen: list[dict[str, torch.Tensor]] = []

    def load(script: ScriptedVllm, body: Any) -> None:
        assert body["method"] == "reload_weights"
        folder = Path(body["kwargs"]["weights_path"])
        seen.append(load_file(folder / "model.safetensors"))
        assert len(list(folder.parent.iterdir())) == 1
        loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        assert not loaded.config.tie_word_embeddings
        assert torch.equal(loaded.lm_head.weight, engine._module.model.lm_head.weight)

    with scripted(ScriptedVllm(replies={"/collective_rpc": load})) as script:
        servers = connected(engine, tmp_path, script)
        draws = sampler(servers)
        draws.sample(REQUESTS)
        draws.sample(REQUESTS)
        sync = ["/pause?mode=wait", "/collective_rpc", "/reset_prefix_cache", "/update_weight_version", "/resume"]
        both = ["/inference/v1/generate"] * 2
        assert script.paths() == ["/v1/models", *sync, "/weight_info", *both, *both]
        with torch.no_grad():
            engine._module.model.lm_head.weight.add_(1.0)
        monkeypatch.setattr(engine._progress, "updates", 1)
        draws.sample(REQUESTS)
        assert script.paths()[11:] == [*sync, "/weight_info", *both]
        servers.close()
    assert torch.equal(seen[1]["lm_head.weight"], seen[0]["lm_head.weight"] + 1.0)
    assert torch.equal(seen[1]["model.embed_tokens.weight"], seen[1]["lm_head.weight"])
    assert not list(Path("/dev/shm").glob(f"longctx_rl-{servers._run}*"))


def test_several_servers_share_the_prompts_and_all_get_the_weights(engine: LocalEngine, tmp_path: Path) -> None:
    with scripted(ScriptedVllm()) as one, scripted(ScriptedVllm()) as two:
        sampler(connected(engine, tmp_path, one, two)).sample([replace(REQUESTS[0], prompt_ids=(n,)) for n in range(5)])
    drawn = [[body["token_ids"][0] for path, body in each.requests if "generate" in path] for each in (one, two)]
    assert sorted(drawn[0]) == [0, 2, 4] and sorted(drawn[1]) == [1, 3]
    assert one.version == two.version != "default"


def changed(**changes: Any) -> Callable[[ScriptedVllm, Any], Reply]:
    return lambda script, body: (200, {"choices": [script.choice(number, body, **changes) for number in range(2)]})


GENERATE = "/inference/v1/generate"
STALE = [{"version": "default", "start": 0, "end": 1}]
FAILURES: dict[str, tuple[str, Callable[[ScriptedVllm, Any], Reply | None], str]] = {
    "no development endpoints": ("/pause?mode=wait", lambda *_: (404, {}), "VLLM_SERVER_DEV_MODE=1"),
    "no scale-out": (GENERATE, lambda *_: (403, {"error": {"message": "disabled"}}), "--enable-scale-out"),
    "refused": (GENERATE, lambda *_: (400, {"error": {"message": "n must\nbe less"}}), "n must be less"),
    "internal": (GENERATE, lambda *_: (500, {"error": {"message": "EngineCore"}}), "EngineCore"),
    "dies": (GENERATE, lambda *_: (0, None), "cannot be reached"),
    "overloaded": (GENERATE, lambda *_: (503, ""), "status 503"),
    "not JSON": (GENERATE, lambda *_: (200, "<html>"), "not JSON"),
    "another shape": (GENERATE, lambda *_: (200, {"choices": [{}]}), "without a valid choices.0"),
    "too few": (GENERATE, lambda *_: (200, {"choices": []}), "0 completions of 2"),
    "stale": (GENERATE, changed(weight_versions=STALE), "weights default instead of"),
    "aborted": (GENERATE, changed(finish_reason="abort"), "ended by abort"),
    "cut short": (GENERATE, changed(finish_reason="length"), "ended by length"),
    "cache kept": ("/reset_prefix_cache", lambda *_: (200, {"success": False}), "prefix cache"),
    "other run": ("/weight_info", lambda *_: (200, {"weight_version": "x:1"}), "weights x:1 instead of"),
    "two models": (
        "/v1/models",
        lambda *_: (200, {"data": [{"id": "a", "root": "a", "max_model_len": 9}] * 2}),
        "2 models",
    ),
    "hangs": (GENERATE, hangs, "rollout.timeout"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_is_one_sentence(name: str, engine: LocalEngine, tmp_path: Path) -> None:
    path, reply, named = FAILURES[name]
    with scripted(ScriptedVllm(replies={path: reply})) as script:
        draws = sampler(connected(engine, tmp_path, script, timeout=0.3 if name == "hangs" else 30.0))
        with pytest.raises(RolloutFailed) as caught:
            draws.sample(REQUESTS[:1])
    assert named in str(caught.value) and "\n" not in str(caught.value)


def test_an_overloaded_server_is_asked_again(engine: LocalEngine, tmp_path: Path) -> None:
    refused = iter([(429, ""), (0, None), (503, "")])
    with scripted(ScriptedVllm(replies={GENERATE: lambda *_: next(refused, None)})) as script:
        (group,) = sampler(connected(engine, tmp_path, script)).sample(REQUESTS[:1])
    assert len(group) == 2 and script.paths().count(GENERATE) == 4


@pytest.mark.parametrize(
    ("prompt", "named"),
    [((), "empty prompt"), ((5,) * 61, "exceed the context of 64"), ((1024,), "vocabulary of 1024")],
)
def test_prompts_that_the_server_would_cut_or_die_of_are_refused(
    prompt: tuple[int, ...], named: str, engine: LocalEngine, tmp_path: Path
) -> None:
    with scripted(ScriptedVllm()) as script, pytest.raises(ValueError, match=named):
        sampler(connected(engine, tmp_path, script)).sample([SampleRequest(prompt, (0,))])


def test_logits_that_are_not_finite_are_the_policys_fault(engine: LocalEngine, tmp_path: Path) -> None:
    broken = changed(logprobs={"content": [{"token_id": EOS, "logprob": -9999.0}] * 2}, token_ids=[EOS, EOS])
    with scripted(ScriptedVllm(replies={GENERATE: broken})) as script, pytest.raises(ValueError, match="not finite"):
        sampler(connected(engine, tmp_path, script)).sample(REQUESTS[:1])


def test_no_room_for_the_weights_names_the_setting(engine: LocalEngine, tmp_path: Path) -> None:
    with scripted(ScriptedVllm()) as script:
        (tmp_path / "full").write_text("")
        servers = connected(engine, tmp_path, script, weights_dir=str(tmp_path / "full" / "x"))
        with pytest.raises(RolloutFailed, match=r"rollout\.weights_dir"):
            sampler(servers).sample(REQUESTS[:1])


def test_tokens_with_other_probabilities_end_the_run_before_it_trains_on_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The step is saved, and the same command with a server that agrees would resume it."""
    with scripted(ScriptedVllm(context=512)) as script:
        config = smoke(
            tmp_path, "+algo=grpo", "model=mini", "eval=none", "rollout=vllm", f"rollout.server={script.url}"
        )
        assert rank.execute(config) == cli.UNUSABLE
    said = capsys.readouterr().err
    assert "rollout.max_gap" in said and "Step 0 is saved" in said and "Traceback" not in said
    assert step_rows(rows_of(Path(config.run_dir))) == []


def test_the_guard_ends_a_server_when_its_parent_is_killed(tmp_path: Path) -> None:
    """Also the server's own children, and although they ignore SIGTERM; then it removes the weights."""
    (tmp_path / "weights").mkdir()
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    served = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {stubborn!r}])"
    guard = Path(server.__file__).with_name("guard.py")
    parent = (
        "import subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, {str(guard)!r}, '0', {str(tmp_path / 'weights')!r}, sys.executable, '-c', "
        f"{served!r}], stdin=subprocess.PIPE, start_new_session=True)\n"
        "time.sleep(600)"
    )
    started = subprocess.Popen([sys.executable, "-c", parent])
    try:
        family: list[psutil.Process] = []
        until = time.monotonic() + 20
        while len(family) < 3 and time.monotonic() < until:
            family = psutil.Process(started.pid).children(recursive=True)
            time.sleep(0.05)
        assert len(family) == 3
    finally:
        os.kill(started.pid, signal.SIGKILL)
        started.wait()
    _, alive = psutil.wait_procs(family, timeout=15)
    assert not alive and not (tmp_path / "weights").exists()


def test_a_server_that_does_not_start_gives_its_cause(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an interpreter that has a vLLM of the right version, but fails."""
    python = tmp_path / "python"
    python.write_text(
        "#!/bin/sh\nif [ \"$1\" = -c ]; then echo 0.32.0; exit; fi\necho 'RuntimeError: out of memory' >&2; exit 1\n"
    )
    python.chmod(0o755)
    config = smoke(tmp_path, "+algo=grpo", "model=mini", "eval=none", "rollout=vllm", f"rollout.python={python}")
    assert rank.execute(config) == cli.UNUSABLE
    said = capsys.readouterr().err
    assert "vLLM did not start (RuntimeError: out of memory): see" in said and "vllm.log" in said


@pytest.mark.parametrize(
    ("script", "named"), [("exit 1", "has no vLLM"), ("echo 0.9.1", "has vLLM 0.9.1"), (None, "cannot be run")]
)
def test_an_interpreter_without_a_usable_vllm_is_refused_before_models_load(
    script: str | None, named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    python = tmp_path / "python"
    if script:
        python.write_text(f"#!/bin/sh\n{script}\n")
        python.chmod(0o755)
    config = smoke(tmp_path, "+algo=grpo", "model=mini", "eval=none", "rollout=vllm", f"rollout.python={python}")
    assert rank.execute(config) == cli.UNUSABLE
    said = capsys.readouterr().err
    assert named in said and "make vllm" in said and not Path(config.run_dir, "vllm.log").exists()


@pytest.mark.parametrize(
    "setting",
    [
        "rollout.server=localhost",
        "rollout.timeout=0",
        "rollout.max_gap=0",
        "rollout.temperature=3",
        "algo.importance_mask=1",
    ],
)
def test_settings_that_cannot_work_are_refused(setting: str) -> None:
    with pytest.raises(ValueError, match=setting.partition("=")[0]):
        config_with("+algo=grpo", "rollout=vllm", setting)


def test_importance_weights_are_on_by_default() -> None:
    assert config_with("+algo=grpo", "rollout=vllm").algo.importance_cap == 3.0
    assert config_with("+algo=grpo").algo.importance_cap is None
