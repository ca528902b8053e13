"""The client of vLLM servers, against a scripted one: requests, weights and versions, and whatever can go wrong."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
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
from longctx_rl.engine.checkpoint import latest_checkpoint
from longctx_rl.engine.local import LocalEngine
from longctx_rl.launch import rank
from longctx_rl.policy.loading import load_model, load_tokenizer
from longctx_rl.policy.policy import Policy
from longctx_rl.rollout import RolloutFailed, SampleRequest, server
from longctx_rl.rollout.server import Servers
from longctx_rl.rollout.vllm import VllmSampler
from rank_processes import run_ranks
from rollout.scripted_vllm import EOS, Reply, ScriptedVllm, hangs, scripted
from small_runs import rows_of, smoke, step_rows, train

TOKENIZER = load_tokenizer("mini-student")
CONFIG = config_with("+algo=grpo", "rollout=vllm", "engine=local", "rollout.server=http://127.0.0.1:1")
CONNECTED: list[Servers] = []
REQUESTS = [SampleRequest((5, 6, 7), (40, 50)), SampleRequest((8,), (60, 70, 80), max_new_tokens=1)]


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "PAUSE", 0.01)


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    """Remove the weights of each test."""
    yield
    while CONNECTED:
        CONNECTED.pop().close()


@pytest.fixture
def engine() -> LocalEngine:
    return LocalEngine(CONFIG, Policy(load_model("mini-student"), chunk=64), 10)


def connected(engine: LocalEngine, root: Path, *scripts: ScriptedVllm, **changes: Any) -> Servers:
    config: RolloutConfig = replace(CONFIG.rollout, server=",".join(script.url for script in scripts), **changes)
    CONNECTED.append(Servers(config, engine, TOKENIZER, root, 64))
    return CONNECTED[-1]


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
    first, second = sorted(sent, key=lambda body: body["token_ids"])
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
        sync = ["/collective_rpc", "/reset_prefix_cache", "/update_weight_version"]
        both = ["/inference/v1/generate"] * 2
        assert script.paths() == ["/v1/models", *sync, "/weight_info", *both, *both]
        with torch.no_grad():
            engine._module.model.lm_head.weight.add_(1.0)
        monkeypatch.setattr(engine._progress, "updates", 1)
        draws.sample(REQUESTS)
        assert script.paths()[9:] == [*sync, "/weight_info", *both]
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
    "no development endpoints": ("/collective_rpc", lambda *_: (404, {}), "VLLM_SERVER_DEV_MODE=1"),
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
    folder, weights = str(Path(server.__file__).parent), str(tmp_path / "weights")
    guard = (
        f"import sys; sys.path.insert(0, {folder!r}); import guard; guard.GRACE = 0.5\n"
        f"guard.main(0, {weights!r}, [sys.executable, '-c', {served!r}])"
    )
    parent = (
        "import subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, '-c', {guard!r}], stdin=subprocess.PIPE, start_new_session=True)\n"
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
    assert "vLLM did not start (RuntimeError: out of memory): see" in said
    assert "out of memory" in Path(said.rpartition(": see ")[2].strip()).read_text()  # the run directory is gone


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


def test_a_server_without_its_sampler_is_refused() -> None:
    with pytest.raises(ValueError, match="set rollout=vllm"):
        config_with("+algo=grpo", "+rollout.server=http://a:1")


def test_importance_weights_are_on_by_default() -> None:
    assert config_with("+algo=grpo", "rollout=vllm").algo.importance_cap == 3.0
    assert config_with("+algo=grpo").algo.importance_cap is None


def is_probe(body: dict[str, Any]) -> bool:
    return len(body["token_ids"]) <= 512 and body["sampling_params"]["n"] == 1


def test_rollouts_ahead_have_the_weights_before_the_update_and_survive_an_interruption(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each prompt is drawn once over both processes, by weights of one update before the step that trains on it."""
    settings = ("+algo=grpo", "model=mini", "eval=none", "rollout=vllm", "rollout.ahead=1", "rollout.max_gap=1e9")
    settings = (*settings, "budget.steps=5", "logging.rollouts_every=1")

    def interrupt(script: ScriptedVllm, body: Any) -> None:
        drawn = [sent for path, sent in script.requests if path == GENERATE and not is_probe(sent)]
        if len(drawn) == 5 and not is_probe(body):  # the first prompt of step 3, drawn during step 2
            os.kill(os.getpid(), signal.SIGTERM)

    with scripted(ScriptedVllm(context=512, replies={GENERATE: interrupt})) as script:
        address = f"rollout.server={script.url}"
        with pytest.raises(SystemExit, match=str(cli.INTERRUPTED)):
            rank.execute(smoke(tmp_path, *settings, address))
        script.replies.clear()
        config = smoke(tmp_path, *settings, address, "resume=true")
        assert rank.execute(config) == 0
    bodies = [body for path, body in script.requests if path == GENERATE]
    seeds = [body["sampling_params"]["seed"] for body in bodies if not is_probe(body)]
    assert len(seeds) == len(set(seeds)) == 5 * config.batch.prompts_per_step
    assert len(bodies) - len(seeds) == 4  # a probe for each step whose rollouts were drawn ahead
    saved = sorted(Path(config.run_dir, "rollouts").iterdir())
    versions = [{json.loads(line)["policy_version"] for line in path.open()} for path in saved]
    assert versions == [{0}, {0}, {1}, {2}, {3}]


@pytest.mark.parametrize(
    "overrides",
    ["+algo=sft rollout=vllm", "+algo=grpo rollout=vllm algo.importance_cap=null",
     "+algo=grpo rollout=vllm algo.draws=2"],
)  # fmt: skip
def test_rollouts_ahead_that_cannot_be_are_refused(overrides: str) -> None:
    with pytest.raises(ValueError, match=r"rollout\.ahead=1"):
        config_with(*overrides.split(), "rollout.ahead=1")


def test_two_ranks_share_a_server_and_one_of_them_gives_it_the_weights(tmp_path: Path) -> None:
    settings = ("+algo=opd", "model=mini", "eval=none", "rollout=vllm", "rollout.max_gap=1e9", "engine=zero3")
    weights: list[dict[str, torch.Tensor]] = []

    def load(script: ScriptedVllm, body: Any) -> None:
        weights.append(load_file(Path(body["kwargs"]["weights_path"]) / "model.safetensors"))

    with scripted(ScriptedVllm(context=512, replies={"/collective_rpc": load})) as script:
        config = smoke(tmp_path, *settings, f"rollout.server={script.url}", "engine.num_processes=2", "optim.lr=1e-2")
        run_ranks(train, config)
    drawn = [body for path, body in script.requests if path == GENERATE]
    prompts = {body["sampling_params"]["seed"] for body in drawn}
    assert len(drawn) == len(prompts) == 2 * config.batch.prompts_per_step
    assert len(weights) == 2 and weights[0].keys() == weights[1].keys()
    shipped = load_model("mini-student").state_dict()
    assert all(torch.equal(shipped[name], value) for name, value in weights[0].items())
    assert not torch.equal(weights[0]["lm_head.weight"], weights[1]["lm_head.weight"])
    assert len(step_rows(rows_of(Path(config.run_dir)))) == 2


def test_a_run_that_samples_nothing_needs_no_server(tmp_path: Path) -> None:
    settings = ("+algo=sft", "model=mini", "eval=none", "rollout=vllm", "rollout.python=/nowhere", "budget.steps=1")
    assert len(step_rows(train(smoke(tmp_path, *settings)))) == 1


def test_a_server_that_dies_while_it_draws_ahead_loses_no_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ("+algo=grpo", "model=mini", "eval=none", "rollout=vllm", "rollout.ahead=1", "rollout.max_gap=1e9")
    settings = (*settings, "budget.steps=4")
    with scripted(ScriptedVllm(context=512)) as script:
        count = iter(range(10**6))
        script.replies[GENERATE] = lambda *_: (0, None) if next(count) >= 7 else None
        assert rank.execute(smoke(tmp_path, *settings, f"rollout.server={script.url}")) == cli.UNUSABLE
        said = capsys.readouterr().err
        assert "cannot be reached" in said and "is saved; continue with" in said and "Traceback" not in said
        script.replies.clear()
        config = smoke(tmp_path, *settings, f"rollout.server={script.url}", "resume=true")
        assert rank.execute(config) == 0
    assert [row["progress/step"] for row in step_rows(rows_of(Path(config.run_dir)))] == [1, 2, 3, 4]


def test_a_served_context_that_is_too_short_is_refused_before_the_first_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with scripted(ScriptedVllm(context=100)) as script:
        config = smoke(
            tmp_path, "+algo=grpo", "model=mini", "eval=none", "rollout=vllm", f"rollout.server={script.url}"
        )
        assert rank.execute(config) == cli.UNUSABLE
    assert "data.lengths needs" in capsys.readouterr().err and GENERATE not in script.paths()


@pytest.mark.parametrize(("every", "served"), [(1, 9), (0, 6)], ids=["in a checkpoint", "in the probe"])
def test_a_failure_while_saving_or_probing_ahead_saves_the_step(
    every: int, served: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ("+algo=grpo", "model=mini", "eval=none", "rollout=vllm", "rollout.ahead=1", "rollout.max_gap=1e9")
    settings = (*settings, "budget.steps=5", f"checkpoint.every={every}")
    with scripted(ScriptedVllm(context=512)) as script:
        count = iter(range(10**6))
        script.replies[GENERATE] = lambda *_: (0, None) if next(count) >= served else None
        config = smoke(tmp_path, *settings, f"rollout.server={script.url}")
        assert rank.execute(config) == cli.UNUSABLE
    said = capsys.readouterr().err
    step = int(said.partition(" is saved")[0].rpartition(" ")[2])
    assert latest_checkpoint(Path(config.run_dir)) == Path(config.run_dir, "checkpoints", f"step-{step:06d}")
    rows = step_rows(rows_of(Path(config.run_dir)))
    assert len(rows) == step > 0


def test_an_evaluation_waits_for_what_is_drawn_ahead(tmp_path: Path) -> None:
    """Weights are sent only while no request is under way: a server may draw queued ones with either."""
    busy: list[int] = []

    def draw(script: ScriptedVllm, body: Any) -> Reply:
        version = script.version
        busy.append(1)
        time.sleep(0.05)
        busy.pop()
        assert script.version == version
        choices = range(body["sampling_params"]["n"])
        return 200, {"choices": [script.choice(number, body) for number in choices]}

    def load(script: ScriptedVllm, body: Any) -> None:
        assert not busy

    settings = ("+algo=opd", "model=mini", "rollout=vllm", "rollout.ahead=1", "rollout.max_gap=1e9", "eval.every=1")
    with scripted(ScriptedVllm(context=2048, replies={GENERATE: draw, "/collective_rpc": load})) as script:
        config = smoke(tmp_path, *settings, f"rollout.server={script.url}", "budget.steps=3", "eval.at_start=true")
        assert rank.execute(config) == 0
    assert script.paths().count("/collective_rpc") == 4


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ("rollout.server='http://a:8000/v1'", "without a path"),
        ("rollout.server='http://a:1,http://a:1'", "twice"),
        ("engine.num_nodes=2 engine=zero3 engine.rendezvous=a:1", "other nodes"),
    ],
)
def test_servers_that_cannot_serve_are_refused(overrides: str, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        config_with("+algo=grpo", "rollout=vllm", *overrides.split())


def test_a_resumed_run_may_use_another_server(tmp_path: Path) -> None:
    settings = ("+algo=opd", "model=mini", "eval=none", "rollout=vllm", "rollout.max_gap=1e9")
    for steps, changed in ((1, ()), (2, ("resume=true", "rollout.timeout=77", "rollout.max_gap=1e8"))):
        with scripted(ScriptedVllm(context=512)) as script:
            server = f"rollout.server={script.url}"
            rows = train(smoke(tmp_path, *settings, server, f"budget.steps={steps}", *changed))
    assert len(step_rows(rows)) == 2
