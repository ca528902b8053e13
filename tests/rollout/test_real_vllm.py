"""Sampling on a real vLLM server: the same tokens, probabilities and ends as transformers, through weight updates."""

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from scipy.stats import chi2_contingency

from config.composing import config_with
from longctx_rl import cli
from longctx_rl.config.compose import composed_evaluate
from longctx_rl.data.generators import generate
from longctx_rl.data.packing import pack
from longctx_rl.data.source import prompt_ids
from longctx_rl.engine.local import LocalEngine
from longctx_rl.evaluate import evaluate
from longctx_rl.launch import rank
from longctx_rl.objective.spec import Estimator
from longctx_rl.policy.attention import dispatch
from longctx_rl.policy.frozen import FrozenScorer
from longctx_rl.policy.loading import end_tokens, load_model, load_tokenizer
from longctx_rl.policy.policy import Policy
from longctx_rl.rollout import RolloutFailed, SampleRequest
from longctx_rl.rollout.agreement import EXAMPLE
from longctx_rl.rollout.hf import HFSampler
from longctx_rl.rollout.server import Servers
from longctx_rl.rollout.vllm import VllmSampler
from longctx_rl.training.served_teacher import ServedScorer
from longctx_rl.types import Completion, RolloutGroup
from small_runs import rows_of, smoke, step_rows

PYTHON = Path(__file__).parents[2] / ".venv-vllm" / "bin" / "python"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON.exists(), reason="vLLM is not installed: make vllm"),
    pytest.mark.timeout(900),
]
TOKENIZER = load_tokenizer("mini-student")
TASKS = ("multihop", "grounding", "longform")
CONFIG = config_with("+algo=grpo", "rollout=vllm", "engine=local", f"rollout.python={PYTHON}")
NOISE = tuple(random.Random(0).choices(range(10, 1000), k=40))
"""A prompt that says nothing, after which many tokens are likely."""
BOUND = 1e-4
"""Nats by which the log-probability of a token may differ."""


class Pair:
    """A model in transformers, and the server of its weights."""

    def __init__(self, name: str, root: Path) -> None:
        self.model = load_model(name)
        dispatch.install(self.model)
        self.ends = end_tokens(self.model, TOKENIZER)
        self.engine = LocalEngine(CONFIG, Policy(self.model, chunk=64), 10)
        self.servers = Servers(CONFIG.rollout, self.engine, TOKENIZER, root, 1024)

    def hf(self, requests: list[SampleRequest], temperature: float, limit: int, **settings: int) -> list[Completion]:
        sampler = HFSampler(
            TOKENIZER, temperature=temperature, max_new_tokens=limit, batch_tokens=65536, eos_ids=self.ends, **settings
        )
        return [completion for group in sampler.sample(self.model, requests) for completion in group]

    def vllm(self, requests: list[SampleRequest], temperature: float, limit: int, **settings: int) -> list[Completion]:
        sampler = VllmSampler(
            self.servers,
            TOKENIZER,
            temperature=temperature,
            max_new_tokens=limit,
            eos_ids=self.ends,
            rows=self.model.config.vocab_size,
            **settings,
        )
        return [completion for group in sampler.sample(requests) for completion in group]


@pytest.fixture(scope="module", params=["mini-student", "mini-teacher"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    pair = Pair(request.param, tmp_path_factory.mktemp("vllm"))
    yield pair
    pair.servers.close()


def prompts(task: str, count: int, length: int = 256) -> list[SampleRequest]:
    examples = [generate(task, n, split="test", length=length, tokenizer=TOKENIZER)[0] for n in range(count)]
    return [SampleRequest(prompt_ids(TOKENIZER, example), (0,)) for example in examples]


def assert_same(first: list[Completion], second: list[Completion]) -> None:
    for one, two in zip(first, second, strict=True):
        assert (one.token_ids, one.text, one.finish_reason) == (two.token_ids, two.text, two.finish_reason)
        assert one.sampler_logprobs is not None
        assert two.sampler_logprobs == pytest.approx(one.sampler_logprobs, abs=BOUND)


@pytest.mark.parametrize("task", TASKS)
def test_greedy_answers_are_token_identical(task: str, pair: Pair) -> None:
    """The generated prompts have no near ties: a bound of rounding decides for both samplers alike."""
    requests = prompts(task, 200)
    assert_same(pair.hf(requests, 0.0, 48), pair.vllm(requests, 0.0, 48))


def test_short_limits_and_immediate_ends_are_the_same(pair: Pair) -> None:
    (request, *_) = prompts("multihop", 1)
    (whole,) = pair.hf([request], 0.0, 48)
    assert whole.finish_reason == "stop"
    before_end = SampleRequest(request.prompt_ids + whole.token_ids[:-1], (0,))  # an empty answer
    cut = SampleRequest(request.prompt_ids, (0,), max_new_tokens=2)
    both = [before_end, cut]
    assert_same(pair.hf(both, 0.0, 48), pair.vllm(both, 0.0, 48))
    empty, short = pair.vllm(both, 0.0, 48)
    assert (empty.text, empty.finish_reason, len(empty.token_ids)) == ("", "stop", 1)
    assert (short.finish_reason, len(short.token_ids)) == ("length", 2)


@pytest.mark.parametrize("vocabulary", [None, 12])
def test_samples_have_the_same_distribution(pair: Pair, vocabulary: int | None) -> None:
    """A chi-square test of two tokens over a flat distribution, at a level that one run in a million misses."""
    settings = {} if vocabulary is None else {"vocabulary": vocabulary}
    groups = [SampleRequest(NOISE, tuple(range(start, start + 100))) for start in range(0, 40_000, 1000)]
    drawn = []
    for draw in (pair.hf, pair.vllm):
        drawn.append([completion.token_ids for completion in draw(groups, 2.0, 2, **settings)])
    for place in range(2):
        counts = [
            torch.tensor([ids[place] for ids in each if len(ids) > place]).bincount(minlength=1024) for each in drawn
        ]
        table = torch.stack(counts)
        usual = table.sum(0) >= 20
        grouped = torch.cat([table[:, usual], table[:, ~usual].sum(1, keepdim=True)], 1)
        grouped = grouped[:, grouped.sum(0) > 0]
        assert grouped.shape[1] >= 3
        assert chi2_contingency(grouped.numpy()).pvalue > 1e-6
    if vocabulary is not None:
        assert max(max(ids) for each in drawn for ids in each) < vocabulary
    assert len(set(drawn[1])) > 50


def test_the_same_request_draws_the_same_tokens_and_others_do_not(pair: Pair) -> None:
    seeded = [SampleRequest(NOISE, tuple(range(start, start + 8))) for start in (0, 0, 10**6)]
    tokens = [completion.token_ids for completion in pair.vllm(seeded, 2.0, 12)]
    assert tokens[:8] == tokens[8:16] and len(set(tokens)) > 12


def test_updates_reach_the_server_with_tied_embeddings_too(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """The head is packed apart from the embedding on a CPU, where a reload of tied weights would leave the old one."""
    assert pair.model.config.tie_word_embeddings
    requests = prompts("multihop", 20)
    before = pair.vllm(requests, 0.0, 24)
    saved = [parameter.detach().clone() for parameter in pair.model.parameters()]
    for number in (1, 2):
        torch.manual_seed(number)
        with torch.no_grad():
            for parameter in pair.model.parameters():
                parameter.add_(0.05 * parameter.std(), alpha=1.0) if parameter.dim() == 1 else parameter.add_(
                    0.05 * parameter.std() * torch.randn_like(parameter)
                )
        monkeypatch.setattr(pair.engine._progress, "updates", pair.engine.updates + 1)
        after = pair.vllm(requests, 0.0, 24)
        assert_same(pair.hf(requests, 0.0, 24), after)
        assert [one.sampler_logprobs for one in after] != [one.sampler_logprobs for one in before]
    with torch.no_grad():
        for parameter, value in zip(pair.model.parameters(), saved, strict=True):
            parameter.copy_(value)
    monkeypatch.setattr(pair.engine._progress, "updates", pair.engine.updates + 1)
    assert_same(before, pair.vllm(requests, 0.0, 24))


@pytest.mark.parametrize("overrides", [[], ["yarn={factor: 4.0, original_context: 4096}"]], ids=["plain", "stretched"])
def test_an_evaluation_has_the_records_of_transformers(overrides: list[str], tmp_path: Path) -> None:
    """Two suites, one of them with shared documents and a limit for each item; the embeddings are tied."""
    before = set(psutil.Process().children())
    suites = {"heldout": "[256,1024]", "ruler": "[512]"}
    for sampler in ("vllm", "hf"):
        settings = ["checkpoint=mini-student", f"out={tmp_path / sampler}", "eval=all", "eval.items=26", *overrides]
        dropped = [f"~eval.suites.{name}" for name in ("longreason", "code", "humaneval", "mbpp")]
        lengths = [f"eval.suites.{name}.lengths={chosen}" for name, chosen in suites.items()]
        answers = [f"rollout={sampler}", f"rollout.python={PYTHON}", "rollout.max_new_tokens=48"]
        evaluate(composed_evaluate([*settings, *dropped, *lengths, *answers]))
    for name in suites:
        vllm, hf = (
            sorted((tmp_path / sampler / "evals" / f"{name}.jsonl").read_text().splitlines())
            for sampler in ("vllm", "hf")
        )
        assert vllm == hf and len(hf) > 20
    assert (tmp_path / "vllm" / "index.html").read_bytes() == (tmp_path / "hf" / "index.html").read_bytes()
    assert not (tmp_path / "vllm" / "vllm.log").exists()
    assert set(psutil.Process().children()) <= before  # the server has ended


@pytest.mark.parametrize(("estimator", "placement"), [("topk", "loss"), ("k1", "advantage")])
def test_a_served_teacher_gives_the_signals_of_the_loaded_one(
    estimator: Estimator, placement: str, pair: Pair, tmp_path: Path
) -> None:
    """Also where prompts and completions are in vLLM's prefix cache; the server knows no tokenizer."""
    pair.servers.sync()
    method = ("+algo=opd", f"algo.kd.estimator={estimator}", f"algo.kd.placement={placement}", "algo.kd.top_k=20")
    config = smoke(tmp_path, *method, f"model.teacher={pair.servers.servers[0].url}")
    scorer = ServedScorer(config, TOKENIZER, pair.model.config.vocab_size)
    assert scorer.context == 1023 and "cannot be compared" in scorer.notes[1]
    requests = [replace(request, seeds=tuple(range(4))) for request in prompts("multihop", 4)]
    drawn = pair.vllm(requests, 1.5, 24)
    groups = [
        RolloutGroup(EXAMPLE, request.prompt_ids, tuple(drawn[4 * number : 4 * number + 4]))
        for number, request in enumerate(requests)
    ]
    loaded = FrozenScorer(pair.model, chunk=64).freeze()
    settings = {"estimator": estimator, "temperature": 1.0, "top_k": 20, "head": None}
    packed = pack(groups, torch.device("cpu"))
    signal, expected = scorer(packed, **settings), loaded(packed, **settings)
    pair.model.requires_grad_(True)
    # Both differ from float64 by up to 7e-5 nats, where a logit of 30 is rounded.
    difference = (signal.logprobs - expected.logprobs).abs()
    assert difference.mean() < 1e-5 and difference.max() < 3 * BOUND
    if estimator == "topk":
        apart = expected.logprobs[:, :-1] - expected.logprobs[:, 1:] > 3 * BOUND
        settled = torch.cat([apart, apart[:, -1:]], 1) & torch.cat([apart[:, :1], apart], 1)
        assert torch.equal(signal.ids[settled], expected.ids[settled]) and settled.float().mean() > 0.9
        with pytest.raises(RolloutFailed, match="--max-logprobs 21 or more"):
            ServedScorer(
                replace(config, algo=replace(config.algo, kd=replace(config.algo.kd, top_k=21))), TOKENIZER, 1024
            )


def test_a_server_that_is_killed_ends_the_run_with_a_saved_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the resumed run equals the uninterrupted one in its counts, with the sampler's agreement at every step."""
    settings = ("+algo=dgrpo", "model=mini", "eval=none", "rollout=vllm", f"rollout.python={PYTHON}", "budget.steps=3")
    config = smoke(tmp_path, *settings)
    sample, calls = VllmSampler.sample, []

    def dies(self: VllmSampler, requests: list[SampleRequest]) -> object:
        calls.append(1)
        if len(calls) == 3:
            process = self._servers._process
            (server,) = psutil.Process(process.guard.pid).children()
            server.kill()
        return sample(self, requests)

    monkeypatch.setattr(VllmSampler, "sample", dies)
    assert rank.execute(config) == cli.UNUSABLE
    said = capsys.readouterr().err
    assert "cannot be reached" in said and "Step 2 is saved" in said and "Traceback" not in said
    monkeypatch.undo()
    assert rank.execute(smoke(tmp_path, *settings, "resume=true")) == 0
    rows = step_rows(rows_of(Path(config.run_dir)))
    assert [row["progress/step"] for row in rows] == [1, 2, 3]
    assert max(row["policy/sampler_gap"] for row in rows) < 1e-4
