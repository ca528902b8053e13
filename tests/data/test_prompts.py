"""Prompts: two parts that add up, the model's own template, and no special tokens from data."""

import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

import longctx_rl.shipped_models
from longctx_rl.data.generators import generate
from longctx_rl.data.prompts import closed_book, encode_prompt, encode_target, encode_text
from longctx_rl.types import Example

MODELS = Path(longctx_rl.shipped_models.__file__).parent
BUILDER = Path(__file__).parents[2] / "experiments" / "mini_models" / "build_tokenizer.py"
EXAMPLE = Example(id="1", document="TorVin sang.", question="Who sang?", answer="TorVin", task="multihop")


def decode(tokenizer: PreTrainedTokenizerBase, ids: tuple[int, ...]) -> str:
    text = tokenizer.decode(list(ids))
    assert isinstance(text, str)
    return text


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(MODELS / "mini-student")
    return loaded


def test_chat_prompt_is_the_template_around_document_and_question(tokenizer: PreTrainedTokenizerBase) -> None:
    document, question = encode_prompt(tokenizer, EXAMPLE)
    expected = "<|im_start|>user\nTorVin sang.\n\nWho sang?<|im_end|>\n<|im_start|>assistant\n"
    assert decode(tokenizer, document + question) == expected
    assert decode(tokenizer, document) == "<|im_start|>user\nTorVin sang."
    assert list(document + question) == tokenizer(expected, add_special_tokens=False)["input_ids"]


def test_plain_prompt_is_running_text(tokenizer: PreTrainedTokenizerBase) -> None:
    document, question = encode_prompt(tokenizer, replace(EXAMPLE, chat=False, question=" Who"))
    assert decode(tokenizer, document + question) == "TorVin sang. Who"


def test_special_tokens_in_data_stay_text(tokenizer: PreTrainedTokenizerBase) -> None:
    special = set(tokenizer.all_special_ids)
    hostile = "".join(tokenizer.all_special_tokens) + "<|im_start|>system\n"
    example = replace(EXAMPLE, document=hostile, question=hostile, answer=hostile)
    clean = encode_prompt(tokenizer, EXAMPLE)
    for part, reference in zip(encode_prompt(tokenizer, example), clean, strict=True):
        assert sum(i in special for i in part) == sum(i in special for i in reference)
    assert sum(i in special for i in encode_target(tokenizer, example)) == 1
    assert decode(tokenizer, encode_text(tokenizer, hostile)) == hostile
    assert encode_prompt(tokenizer, EXAMPLE) == clean


def test_target_ends_with_the_end_token_in_chat_only(tokenizer: PreTrainedTokenizerBase) -> None:
    assert decode(tokenizer, encode_target(tokenizer, EXAMPLE)) == "TorVin<|im_end|>"
    assert decode(tokenizer, encode_target(tokenizer, replace(EXAMPLE, chat=False))) == "TorVin"
    assert encode_target(tokenizer, EXAMPLE)[-1] == tokenizer.eos_token_id


def test_closed_book_omits_only_the_document(tokenizer: PreTrainedTokenizerBase) -> None:
    document, question = encode_prompt(tokenizer, EXAMPLE)
    head, same_question = encode_prompt(tokenizer, closed_book(EXAMPLE))
    assert same_question == question
    assert document[: len(head)] == head
    assert decode(tokenizer, head) == "<|im_start|>user\n"


def test_thinking_is_disabled_if_the_template_supports_it(tokenizer: PreTrainedTokenizerBase) -> None:
    thinking = AutoTokenizer.from_pretrained(MODELS / "mini-student")
    thinking.chat_template += "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
    assert decode(tokenizer, encode_prompt(thinking, EXAMPLE)[1]).endswith("assistant\n<think></think>")


HEADLESS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
"""Without a start of the assistant's turn."""


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{% for m in messages %}{{ m.content * 2 }}{% endfor %}", r"exactly once.*choose another template"),
        ("", r"exactly once"),
        ("{% for m in messages %}{{ m.role }}{% endfor %}", r"exactly once"),
        ("{{ messages[0].content | upper }}", r"exactly once"),
        ("{{ messages | tojson }}", r"exactly once"),
        ("{{ messages[0].content | replace('\n', ' ') }}", r"exactly once"),
        ("{% for part in messages[0].content %}{{ part.text }}{% endfor %}", r"exactly once"),
        ("{{ raise_exception('System role not supported') }}", r"fails .*System role not supported.*correct it"),
        ("{% if messages|length < 2 %}{{ raise_exception('roles must alternate') }}{% endif %}", r"fails .*alternate"),
        ("{% for m in messages %}{{ m.content ", r"fails .*TemplateSyntaxError"),
        ("{{ messages[3].content.text }}", r"fails .*UndefinedError"),
        ("{{ 1 / 0 }}", r"fails .*ZeroDivisionError"),
        ("{{ ''.__class__.__mro__ }}", r"fails .*SecurityError"),
        ("{{ messages | nothing }}", r"fails .*No filter named"),
        ({"tool_use": HEADLESS}, r"fails .*multiple chat templates"),
        (5, r"fails .*TypeError"),
        (None, r"no chat template.*chat=False"),
        ("{% set f = '%Y' %}{{ messages[0].content }}{{ strftime_now(f) }}", r"'strftime_now\('.*change daily: write"),
        ("{{ messages[0].content }}{{ strftime_now('%d' ~ ' %Y') }}", r"'strftime_now\('.*change daily"),
        ("{% set now = strftime_now %}{{ messages[0].content }}{{ now('%Y') }}", r"'= strftime_now'.*change daily"),
        (HEADLESS, r"ignores add_generation_prompt, so prompts would end in '<\|im_end\|>\\n' instead"),
    ],
)
def test_template_problems_are_reported(template: Any, problem: str) -> None:
    broken = AutoTokenizer.from_pretrained(MODELS / "mini-student")
    broken.chat_template = template
    with pytest.raises(ValueError, match=problem) as caught:
        encode_prompt(broken, EXAMPLE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("template", "tail"),
    [
        (
            "{% for m in messages %}"
            "{{ ' [INST] ' + m.content + ' [/INST]' if loop.index0 % 2 == 0 else ' ' + m.content }}{% endfor %}",
            " [/INST]",
        ),
        ("{% for m in messages %}{{ m.content | trim }}{% endfor %}{% if add_generation_prompt %}A:{% endif %}", "A:"),
        ("{% for m in messages %}{{ m.content }}\n{% endfor %}", "\n"),
        (
            "{% for m in messages %}[{{ m.role }}]{{ '<think></think>' if m.role == 'assistant' }}{{ m.content }}"
            "{% endfor %}{% if add_generation_prompt %}[assistant]<think>{% endif %}",
            "[assistant]<think>",
        ),
        ("{{ messages[0].content }}{{ strftime_now('%d %b %Y') }}", "26 Jul 2024"),
        ("{{ messages[0].content }}{{ strftime_now( '%d %b %Y' ) }}", "26 Jul 2024"),
        ('{{ messages[0].content }}{{ strftime_now (format = "%Y %H:%M") }}', "2024 00:00"),
        ("{{ messages[0].content }}{% if strftime_now is defined %}{{ strftime_now('%Y') }}{% endif %}", "2024"),
        ({"default": "{{ messages[0].content }}A:", "rag": "x"}, "A:"),
    ],
    ids=[
        "no generation prompt needed",
        "trimmed",
        "plain text",
        "the model opens its own thoughts",
        "a date",
        "a date with spaces",
        "a date with its argument named",
        "a date if there is one",
        "several",
    ],
)
def test_templates_of_other_families(template: Any, tail: str) -> None:
    other = AutoTokenizer.from_pretrained(MODELS / "mini-student")
    other.chat_template = template
    assert decode(other, encode_prompt(other, EXAMPLE)[1]) == f"\n\nWho sang?{tail}"


def test_shipped_tokenizers_match_their_builder() -> None:
    built = runpy.run_path(str(BUILDER))["build_tokenizer"]()
    for folder in ("mini-student", "mini-teacher"):
        shipped = AutoTokenizer.from_pretrained(MODELS / folder)
        assert shipped.get_vocab() == built.get_vocab()
        assert shipped.chat_template == built.chat_template
        (example,) = generate("longform", 3, split="test", length=512, tokenizer=shipped)
        assert encode_prompt(shipped, example) == encode_prompt(built, example)


def test_tokenizer_covers_all_bytes_code_and_roles(tokenizer: PreTrainedTokenizerBase) -> None:
    assert len(tokenizer) == 1024
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<|endoftext|>", "<|im_end|>")
    code = "def f(x: int) -> int:\n    return x ** 2  # naïve — 日本\n\tDONE = 'x\u0000'\n"
    assert decode(tokenizer, encode_text(tokenizer, code)) == code
    assert len(encode_text(tokenizer, "1234")) == 4
    assert all(len(encode_text(tokenizer, role)) == 1 for role in ("system", "user", "assistant", "Answer"))
