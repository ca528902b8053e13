"""The shipped weights fit the generators' world: a change of wording or of tokens would fail here."""

import runpy
from contextlib import closing, nullcontext
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from longctx_rl.config.eval import SuiteConfig
from longctx_rl.data.prompts import closed_book
from longctx_rl.evals.evaluation import answer
from longctx_rl.evals.items import Item
from longctx_rl.evals.suites import Plan, items_of
from longctx_rl.evals.summary import cells
from longctx_rl.policy.attention import dispatch
from longctx_rl.policy.loading import load_model, load_tokenizer
from longctx_rl.rewards.execution import CodeGrader, ExactGrader
from longctx_rl.rollout.hf import HFSampler, ModelSampler
from longctx_rl.sandbox import probe
from longctx_rl.types import UNANSWERABLE

TASKS = ("multihop", "grounding", "longform")
BACKEND = "rlimit" if probe.failure("bwrap") else "bwrap"


some_or_many = pytest.mark.parametrize("items_each", [8, pytest.param(24, marks=pytest.mark.slow)])


def greedy(name: str, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int) -> ModelSampler:
    model = load_model(name)
    dispatch.install(model)
    drawn = HFSampler(tokenizer, temperature=0.0, max_new_tokens=max_new_tokens, batch_tokens=65536)
    return ModelSampler(drawn, lambda: nullcontext(model))


@some_or_many
@pytest.mark.parametrize(("name", "long"), [("mini-student", (0.0, 0.45)), ("mini-teacher", (0.8, 1.0))])
def test_good_at_short_context_and_at_long_if_it_is_the_teacher(
    name: str, long: tuple[float, float], items_each: int
) -> None:
    tokenizer = load_tokenizer(name)
    sampler = greedy(name, tokenizer, 96)

    items = items_of(
        "heldout", Plan(SuiteConfig(labels=TASKS, lengths=(256, 1024), max_new_tokens=48), items_each, 2000), tokenizer
    )
    for cell in cells(answer(sampler, tokenizer, items, ExactGrader(), step=0)):
        low, high = long if cell.length == 1024 else (0.55, 1.0)
        assert low <= cell.score.value <= high, cell
    blind = [Item(one.label, closed_book(one.example)) for one in items if one.example.answer != UNANSWERABLE]
    for cell in cells(answer(sampler, tokenizer, blind, ExactGrader(), step=0)):
        assert cell.score.value <= 0.05, cell


@some_or_many
@pytest.mark.parametrize(("name", "buried"), [("mini-student", (0.0, 0.5)), ("mini-teacher", (0.8, 1.0))])
def test_writes_code_whose_helpers_are_shown_and_guesses_nothing(
    name: str, buried: tuple[float, float], items_each: int
) -> None:
    tokenizer = load_tokenizer(name)
    sampler = greedy(name, tokenizer, 64)
    suite = SuiteConfig(labels=("closed", "short", "bury"), lengths=(1024,), max_new_tokens=64)
    items = items_of("code", Plan(suite, items_each, 2000), tokenizer)
    with closing(CodeGrader(BACKEND)) as code:
        found = cells(answer(sampler, tokenizer, items, ExactGrader(code), step=0))
    score = {cell.task: cell.score.value for cell in found}
    assert score["closed"] == 0.0 and score["short"] >= 0.8
    assert buried[0] <= score["bury"] <= buried[1]


def test_a_deepened_student_starts_as_the_student_and_learns_in_its_new_layers() -> None:
    """The larger teacher of table3 is trained from such a model."""
    deepen = runpy.run_path(str(Path(__file__).parents[2] / "experiments" / "mini_models" / "larger_teacher.py"))[
        "deepen"
    ]
    student = load_model("mini-student")
    deeper = deepen(student)
    tokens = torch.arange(40, 60)[None]
    logits = deeper(tokens).logits
    assert torch.equal(logits, student(tokens).logits)
    assert deeper.config.num_hidden_layers == 2 * student.config.num_hidden_layers == len(deeper.model.layers)

    logits.logsumexp(-1).sum().backward()
    for copied, added in zip(deeper.model.layers[::2], deeper.model.layers[1::2], strict=True):
        assert torch.equal(copied.self_attn.q_proj.weight, added.self_attn.q_proj.weight)
        for last in (added.self_attn.o_proj, added.mlp.down_proj):
            assert not last.weight.any() and last.weight.grad.any()
