"""The shipped weights fit the world that the generators tell of: a change of wording or tokens would show here."""

import pytest

from longctx_rl.data.prompts import closed_book
from longctx_rl.data.source import heldout_items
from longctx_rl.evals.heldout import evaluate
from longctx_rl.evals.summary import cells
from longctx_rl.policy import attention
from longctx_rl.policy.loading import load_model, load_tokenizer
from longctx_rl.rewards import grade
from longctx_rl.rollout.hf import HFSampler
from longctx_rl.types import UNANSWERABLE

TASKS = ("multihop", "grounding", "longform")
ITEMS = 24


@pytest.mark.parametrize(("name", "long"), [("mini-student", (0.0, 0.45)), ("mini-teacher", (0.8, 1.0))])
def test_good_at_short_context_and_at_long_if_it_is_the_teacher(name: str, long: tuple[float, float]) -> None:
    model, tokenizer = load_model(name), load_tokenizer(name)
    attention.install(model)
    sampler = HFSampler(tokenizer, temperature=0.0, max_new_tokens=96, batch_tokens=65536)

    examples = heldout_items(tokenizer, tasks=TASKS, lengths=(256, 1024), items=ITEMS, first=2000)
    for cell in cells(evaluate(model, sampler, tokenizer, examples, grade, step=0)):
        low, high = long if cell.length == 1024 else (0.55, 1.0)
        assert low <= cell.score.value <= high, cell
    blind = [closed_book(example) for example in examples if example.answer != UNANSWERABLE]
    for cell in cells(evaluate(model, sampler, tokenizer, blind, grade, step=0)):
        assert cell.score.value <= 0.05, cell
