"""Teachers that read their own prompts: signals, their order, gradients, costs, ranks, and averages of the weights."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest
import torch
from torch import Tensor

from longctx_rl import cli
from longctx_rl.data.packing import pack, plan_rows, viewed
from longctx_rl.data.source import MiniSource, prompt_ids, recorded_group
from longctx_rl.data.views import Views
from longctx_rl.engine import distributed, startup
from longctx_rl.engine.optimizer import AVERAGE, reset_state, update_averages
from longctx_rl.launch import rank
from longctx_rl.objective.spec import Divergence
from longctx_rl.objective.terms import objective
from longctx_rl.policy.frozen import FrozenScorer
from longctx_rl.policy.loading import load_model, load_tokenizer
from longctx_rl.policy.policy import Policy, SignalRequest
from longctx_rl.policy.scoring import Anchor
from longctx_rl.rewards.execution import ExactGrader
from longctx_rl.rollout.agreement import EXAMPLE
from longctx_rl.training.assembly import build_parts
from longctx_rl.training.groups import packed_in_step, sampled_groups, view_metrics, view_sums
from longctx_rl.training.state import Stopwatch, TrainState
from longctx_rl.training.step import add_costs, global_count, prepare
from longctx_rl.types import (
    Completion,
    Denominators,
    Evidence,
    GroupSpan,
    HiddenSignal,
    RolloutGroup,
    SampledSignal,
    TopKSignal,
)
from objective_specs import method
from packed_builders import CPU, VOCABULARY, group, head_weight, separate_logits, tiny_model
from rank_processes import run_ranks
from small_runs import assert_same_steps, rows_of, smoke, step_rows, train

GROUPS = [group(prompt, lens, seed) for seed, (prompt, lens) in enumerate([(9, (4, 7, 2)), (14, (1, 3)), (5, (6,))])]
VIEWS = [tuple(torch.randint(VOCABULARY, (length,), generator=torch.Generator().manual_seed(length)).tolist())
         for length in (3, 21, 5)]  # fmt: skip
READ = [replace(each, views=(view,)) for each, view in zip(GROUPS, VIEWS, strict=True)]


def plain(model: object, groups: Sequence[RolloutGroup]) -> Tensor:
    """Log-probabilities of every loss token after the view, one plain sequence at a time, [T, V]."""
    own = [replace(each, prompt_ids=each.views[0]) for each in groups]
    with torch.no_grad():
        logits, _ = separate_logits(model, own)  # type: ignore[arg-type]
    return torch.log_softmax(logits / 0.7, -1)


@pytest.mark.parametrize("budget", [0, 10**9], ids=["a row each", "one row"])
def test_signals_of_a_view_equal_plain_sequences_after_it(budget: int) -> None:
    model = tiny_model(3)
    scorer, head = FrozenScorer(model, chunk=3).freeze(), head_weight(model)
    for row in plan_rows(READ, budget):
        groups = [READ[index] for index in row]
        packed, expected = pack(viewed(groups), CPU), plain(model, groups)
        assert torch.equal(packed.target_ids, pack(groups, CPU).target_ids)
        exact = scorer(packed, estimator="exact", temperature=0.7, top_k=1, head=head)
        assert isinstance(exact, HiddenSignal)
        torch.testing.assert_close(torch.log_softmax(exact.hidden @ head.T / 0.7, -1), expected, rtol=0, atol=1e-10)
        top = scorer(packed, estimator="topk", temperature=0.7, top_k=5, head=None)
        assert isinstance(top, TopKSignal)
        torch.testing.assert_close(top.logprobs, expected.topk(5).values, rtol=0, atol=1e-10)
        drawn = scorer(packed, estimator="k1", temperature=0.7, top_k=1, head=None)
        assert isinstance(drawn, SampledSignal)
        targets = expected.gather(-1, packed.target_ids[:, None])[:, 0]
        torch.testing.assert_close(drawn.logprobs, targets, rtol=0, atol=1e-10)


def test_the_policy_is_its_own_anchor_without_a_gradient_where_both_read_the_same() -> None:
    model = tiny_model(3)
    policy, row = Policy(model, chunk=3), pack(GROUPS, CPU)
    divergence = Divergence()
    signal = policy(row, temperature=0.7, signal=SignalRequest("exact", 1, head_weight(model)))
    assert not signal.hidden.requires_grad
    sizes: list[float] = []
    for groups in (GROUPS, READ):
        signal = policy(
            pack(viewed(groups), CPU), temperature=0.7, signal=SignalRequest("exact", 1, head_weight(model).clone())
        )
        scores = policy(row, temperature=0.7, anchors={"kd": Anchor(divergence, signal)})
        loss = objective(method(kd=1.0), scores, row, Denominators(6, 23), max_length=1).loss
        gradient = torch.autograd.grad(loss, list(policy.parameters()))
        sizes.append(max(float(each.abs().max()) for each in gradient))
    assert sizes[0] < 1e-13 and sizes[1] > 1e-3


def test_questions_about_one_document_read_a_view_each() -> None:
    config = smoke(Path("/nonexistent"), "+algo=kd", "data.questions_per_document=3")
    tokenizer = load_tokenizer("mini-student")
    examples = MiniSource(config, tokenizer).document(0)
    assert len(examples) > 1
    together = recorded_group(tokenizer, examples)
    views = tuple((5, 6, index) for index, _ in enumerate(examples))
    read = viewed([replace(together, views=views)])
    assert [each.prompt_ids for each in read] == list(views)
    assert torch.equal(pack(read, CPU).target_ids, pack([together], CPU).target_ids)
    alone = [recorded_group(tokenizer, [example]) for example in examples]
    assert [each.completions[0].token_ids for each in read] == [each.completions[0].token_ids for each in alone]


def test_document_is_bit_equal_to_a_view_that_is_the_document() -> None:
    own = [replace(each, views=(each.prompt_ids,)) for each in GROUPS]
    ((packed, read),) = packed_in_step(own, 10**9, 4, CPU)
    ((same, none),) = packed_in_step(GROUPS, 10**9, 4, CPU)
    assert none is None and read is not None
    scorer = FrozenScorer(tiny_model(3), chunk=3).freeze()
    first, second = (scorer(row, estimator="k1", temperature=1.0, top_k=1, head=None) for row in (read, same))
    assert torch.equal(first.logprobs, second.logprobs) and torch.equal(packed.input_ids, same.input_ids)


def test_the_student_never_reads_what_only_the_view_says(tmp_path: Path) -> None:
    config = smoke(
        tmp_path,
        "+algo=opsd",
        "algo.kd.view=answer",
        "algo.kd.answer_prompt='privileged {answer}'",
        "data.lengths=[256]",
    )
    startup.init(config)
    try:
        parts, watch = build_parts(config), Stopwatch()
        groups = sampled_groups(parts, 0, 0, watch).groups
        rows = prepare(parts, groups, watch)
    finally:
        distributed.shutdown()
    for row in rows:
        assert row.viewed is not None
        student, teacher = (str(parts.tokenizer.decode(each.input_ids)) for each in (row.packed, row.viewed))
        assert "privileged" in teacher and "privileged" not in student
        assert torch.equal(row.packed.target_ids, row.viewed.target_ids)
    assert global_count(groups).num_tokens == sum(row.viewed.num_loss_tokens for row in rows if row.viewed)


SELF = {
    "initial": ("+algo=opsd",),
    "policy": ("+algo=dgrpo_self", "algo.kd.teacher=policy", "algo.kd.estimator=topk"),
    "ema": ("+algo=dgrpo_self", "algo.kd.teacher=ema", "algo.kd.ema_half_life=1.5"),
    "retrieved": ("+algo=kd", "algo.kd.teacher=initial", "algo.kd.view=retrieved", "algo.kd.view_tokens=64"),
}


def self_taught(root: Path, name: str, *overrides: str) -> list[dict[str, float]]:
    return step_rows(train(smoke(root / name, *SELF[name], "budget.steps=3", "optim.warmup_steps=0", *overrides)))


@pytest.mark.parametrize("name", SELF)
def test_a_student_teaches_itself_on_both_engines(name: str, tmp_path: Path) -> None:
    local, zero3 = (self_taught(tmp_path / engine, name, f"engine={engine}") for engine in ("local", "zero3"))
    for one, two in zip(local, zero3, strict=True):
        for key in ("loss/kd", "grad/norm", "teacher/kl_reverse", "view/prompt_tokens"):
            assert two[key] == pytest.approx(one[key], rel=1e-4, abs=1e-7), key
        assert two["progress/flops"] == one["progress/flops"]
        assert 0 < one["view/prompt_tokens"] < 192
    assert local[0]["loss/kd"] > 1e-4
    assert local[0].keys() >= {"teacher/entropy", "teacher/logprob_gap_evidence", "teacher/logprob_gap_other"}
    prompts = sum(row["view/prompt_tokens"] for row in local) * 2
    assert local[-1]["progress/teacher_tokens"] == pytest.approx(local[-1]["progress/trained_tokens"] + prompts)


def test_flops_count_what_each_anchor_reads(tmp_path: Path) -> None:
    config = smoke(tmp_path, *SELF["initial"], "algo.weights.ref=0.1", "algo.ref.estimator=k3")
    startup.init(config)
    try:
        parts, state, watch = build_parts(config), TrainState(), Stopwatch()
        groups = sampled_groups(parts, 0, 0, watch).groups
        rows = prepare(parts, groups, watch)
        add_costs(parts, state, rows, [])
    finally:
        distributed.shutdown()
    expected = 0.0
    for each in groups:
        lens = tuple(len(completion.token_ids) for completion in each.completions)
        own, other = (GroupSpan(0, len(ids), lens) for ids in (each.prompt_ids, each.views[0]))
        assert len(each.views[0]) < len(each.prompt_ids)
        student, teacher = (parts.shape.forward([span], sum(lens)) for span in (own, other))
        expected += (1 + 3 + 1) * student + teacher  # drawn, trained, read by the reference; read by the teacher
    assert state.flops == pytest.approx(expected)
    assert state.teacher_tokens == sum(
        len(each.views[0]) + sum(len(c.token_ids) for c in each.completions) for each in groups
    )


def test_an_average_is_half_way_after_its_half_life() -> None:
    weight = torch.nn.Parameter(torch.zeros(3))
    adam = torch.optim.AdamW([weight])
    reset_state(adam, weight, updates=0, averaged=True)
    with torch.no_grad():
        weight.fill_(8.0)
    for _ in range(4):
        update_averages(adam, half_life=4.0)
    torch.testing.assert_close(adam.state[weight][AVERAGE], torch.full((3,), 4.0))


@pytest.mark.parametrize("engine", ["local", "zero3"])
def test_an_average_moves_away_from_the_initial_weights(engine: str, tmp_path: Path) -> None:
    settings = (f"engine={engine}", "optim.schedule=constant", "optim.lr=1e-2")
    initial = self_taught(tmp_path / "initial", "ema", *settings, "algo.kd.ema_half_life=1e9")
    moved = self_taught(tmp_path / "moved", "ema", *settings)
    assert moved[0]["loss/kd"] == initial[0]["loss/kd"]
    assert abs(moved[1]["loss/kd"] - initial[1]["loss/kd"]) > 1e-4


def test_the_gap_before_training_is_that_of_greedy_answers(tmp_path: Path) -> None:
    """The shipped student reads evidence better than documents; another computation of the same scores agrees."""
    config = smoke(tmp_path, "+algo=opsd", "model=mini", "data.lengths=[1024]", "logging.gap_prompts=6", "eval=none")
    rows = train(replace(config, budget=replace(config.budget, steps=1)))
    (measured,) = [row for row in rows if "view/score_gap" in row]
    tokenizer, model = load_tokenizer("mini-student"), load_model("mini-student")
    source, grader = MiniSource(config, tokenizer), ExactGrader()
    views = Views(config, source, tokenizer)
    scores: dict[str, list[float]] = {"student": [], "teacher": []}
    for index in range(6):
        (example,) = source.document(index)
        for name, ids in (("student", prompt_ids(tokenizer, example)), ("teacher", views.prompt(example, index).ids)):
            output = model.generate(  # type: ignore[operator]
                torch.tensor([ids]), do_sample=False, max_new_tokens=config.rollout.max_new_tokens
            )
            text = str(tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True))
            (reward,) = grader([(text, example)])
            scores[name].append(reward.score)
    for name, values in scores.items():
        assert measured[f"view/{name}_score"] == pytest.approx(fmean(values), abs=1e-6)
    assert measured["view/score_gap"] > 0.1


def test_a_run_that_resumes_before_its_first_step_measures_the_gap_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ("+algo=opsd", "logging.gap_prompts=2")
    monkeypatch.setattr(distributed, "any_rank", lambda flag: True)  # a stop that was requested before the first step
    with pytest.raises(SystemExit, match=str(cli.INTERRUPTED)):
        rank.execute(smoke(tmp_path, *settings))
    monkeypatch.undo()
    rows = train(smoke(tmp_path, *settings, "resume=true"))
    assert sum("view/score_gap" in row for row in rows) == 1 and len(step_rows(rows)) == 2


def test_gaps_are_split_by_the_tokens_of_the_evidence() -> None:
    tokenizer = load_tokenizer("mini-student")
    example = replace(EXAMPLE, question="Who is Ada?", evidence=(Evidence("Ada is Ben.", "Ada is Ben", 0.0),))
    told, other = tokenizer.encode(" Ben", add_special_tokens=False)[-1], tokenizer.encode(" Ada")[-1]
    one = RolloutGroup(example, (1,), (Completion((told, other, told), "", "stop"),), views=((1, 2),))
    sums = view_sums([one, replace(one, views=((1,), (2,)))], torch.tensor([1.0, 2.0, 3.0, 9.0, 9.0, 9.0]), tokenizer)
    metrics = view_metrics(sums)
    assert metrics["teacher/logprob_gap_evidence"] == -2.0 and metrics["teacher/logprob_gap_other"] == -2.0
    assert sums["logprob_gap_evidence_count"] == 2 and sums["logprob_gap_other_count"] == 1


@pytest.mark.parametrize("name", [pytest.param("policy", marks=pytest.mark.slow), "ema"])
def test_two_ranks_with_sharded_frozen_weights_equal_one(name: str, tmp_path: Path) -> None:
    settings = (*SELF[name], "budget.steps=3", "optim.warmup_steps=0")
    two = smoke(tmp_path / "two", *settings, "engine=zero3", "engine.num_processes=2", "engine.frozen_weights=sharded")
    run_ranks(train, two)
    assert_same_steps(self_taught(tmp_path, name), step_rows(rows_of(Path(two.run_dir))))


@pytest.mark.parametrize("engine", ["local", "zero3"])
def test_an_average_resumes_to_the_bit(engine: str, tmp_path: Path) -> None:
    overrides = (*SELF["ema"], f"engine={engine}", "optim.warmup_steps=0", "checkpoint.every=1", "checkpoint.keep=9")
    whole = train(smoke(tmp_path / "whole", *overrides, "budget.steps=4", "optim.schedule=constant"))
    train(smoke(tmp_path / "parts", *overrides, "budget.steps=2", "optim.schedule=constant"))
    parts = train(smoke(tmp_path / "parts", *overrides, "budget.steps=4", "optim.schedule=constant", "resume=true"))
    assert step_rows(parts)[-2:] == step_rows(whole)[-2:]
    assert step_rows(whole)[-1]["loss/kd"] > 0
