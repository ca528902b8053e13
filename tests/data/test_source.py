"""The stream of generated prompts: tasks, lengths, and the share of short prompts."""

import math
from collections import Counter

import pytest
from transformers import AutoTokenizer

from config.composing import config_with
from longctx_rl.data.source import check_lengths, check_tasks, open_source, prompt_ids
from longctx_rl.policy.loading import locate
from longctx_rl.training.assembly import code_grader

TOKENIZER = AutoTokenizer.from_pretrained(locate("mini-student"))
DOCUMENTS = 400


@pytest.mark.parametrize(("data", "share"), [("long90", 0.1), ("long50", 0.5)])
def test_a_share_of_the_prompts_is_short_and_covers_every_task(data: str, share: float) -> None:
    source = open_source(config_with("+algo=grpo", f"data={data}"), TOKENIZER)
    examples = [example for index in range(DOCUMENTS) for example in source.document(index)]
    long = [example for example in examples if example.length]
    assert set(Counter(example.length for example in long)) == {512, 768, 1024}
    assert {example.task for example in long} == {"multihop", "grounding", "longform"}
    short = [example for example in examples if not example.length]
    assert {example.task for example in short} == {"multihop", "grounding", "longform", "code", "longreason"}
    assert max(len(prompt_ids(TOKENIZER, example)) for example in short) < 256
    five_deviations = 5 * math.sqrt(share * (1 - share) / DOCUMENTS)
    assert len(short) / DOCUMENTS == pytest.approx(share, abs=five_deviations)
    assert set(source.tasks) == {example.task for example in short}
    assert source.describe()["short"]["share"] == share


def test_a_document_does_not_depend_on_earlier_requests() -> None:
    settings = ("+algo=sft", "data=long50")
    first, again = (open_source(config_with(*settings), TOKENIZER) for _ in range(2))
    assert [first.document(index) for index in (7, 3)] == [again.document(index) for index in (7, 3)]


@pytest.mark.parametrize("key", ["task.mixture", "data.short.mixture"])
def test_an_unknown_task_is_reported_with_its_key(key: str) -> None:
    config = config_with("+algo=sft", "data=long90", f"+{key}.sonnets=1")
    with pytest.raises(ValueError, match=f"{key}=sonnets .*choose from multihop"):
        check_tasks(config)


def test_a_short_prompt_that_does_not_fit_is_reported_with_its_key() -> None:
    config = config_with("+algo=sft", "data=long90", "data.short.lengths=[4096]", "eval=none")
    with pytest.raises(ValueError, match=r"data\.short\.lengths needs 4192 tokens .*4096: lower data\.short\.lengths"):
        check_lengths(config, 4096)


def test_code_among_the_short_prompts_is_executed() -> None:
    """The sandbox is started although the task's mixture has no code."""
    for data, judged in (("long90", True), ("long100", False)):
        config = config_with("+algo=grpo", f"data={data}", "eval=none", "sandbox=rlimit")
        code = code_grader(config, open_source(config, TOKENIZER))
        assert (code is not None) is judged
        if code is not None:
            code.close()
