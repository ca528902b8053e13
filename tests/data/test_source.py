"""The stream of generated prompts: which tasks, how long, and the short ones among the long."""

from collections import Counter

import pytest
from transformers import AutoTokenizer

from config.composing import composed
from longctx_rl.data.source import check_tasks, open_source, prompt_ids
from longctx_rl.policy.loading import locate

TOKENIZER = AutoTokenizer.from_pretrained(locate("mini-student"))
DOCUMENTS = 400


def test_one_prompt_of_ten_is_short_and_of_any_skill() -> None:
    config = composed("+algo=grpo", "data=long90")
    source = open_source(config, TOKENIZER)
    examples = [example for index in range(DOCUMENTS) for example in source.document(index)]
    long = [example for example in examples if example.length >= 512]
    assert set(Counter(example.task for example in long)) == {"multihop", "grounding", "longform"}
    short = [example for example in examples if example.length < 512]
    assert {example.task for example in short} == {"multihop", "grounding", "longform", "code", "longreason"}
    assert {example.length for example in short} == {0, 256}
    # 40 expected, standard deviation 6: five of them on either side.
    assert 10 <= len(short) <= 70 and len(long) + len(short) == DOCUMENTS
    assert max(len(prompt_ids(TOKENIZER, example)) for example in short) < min(
        len(prompt_ids(TOKENIZER, example)) for example in long
    )
    assert set(source.tasks) == set(config.data.short.mixture) if config.data.short else False


def test_a_document_is_the_same_whenever_it_is_asked_for() -> None:
    settings = ("+algo=sft", "data=long50")
    first, again = (open_source(composed(*settings), TOKENIZER) for _ in range(2))
    assert [first.document(index) for index in (7, 3)] == [again.document(index) for index in (7, 3)]


@pytest.mark.parametrize("key", ["task.mixture", "data.short.mixture"])
def test_an_unknown_task_is_named_with_its_key(key: str) -> None:
    config = composed("+algo=sft", "data=long90", f"+{key}.sonnets=1")
    with pytest.raises(ValueError, match=f"^{key}=sonnets does not exist: choose from multihop"):
        check_tasks(config)
