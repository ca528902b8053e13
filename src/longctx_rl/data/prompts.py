"""Tokenisation of an example: the prompt in two parts, and the target.

Document and question are tokenised separately, so that several questions share exactly the same document tokens. Text
from a data set never becomes a special token, even where it spells one out; only text of the chat template does.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from longctx_rl.policy.weights import cause_of
from longctx_rl.types import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TokenIds = tuple[int, ...]

UTF8_BYTES = 4
"""Maximum bytes, and therefore tokens, of a character."""

DATE = re.compile(r"""strftime_now\s*\(\s*(?:format\s*=\s*)?(['"])([^'"]*)\1\s*\)""")
OTHER_DATE = re.compile(r"strftime_now\s*\(|=\s*strftime_now\b")
TODAY = date(2024, 7, 26)
"""The date that templates are given instead of today's. It is Llama 3's default, so prompts are the same tomorrow."""

_MARK, _REPLY = '\u241emES "s&a\nge\u241e', "\u241eREPLY\u241e"
"""Messages that a template must repeat to the letter: without another case, whitespace or escapes."""


def encode_prompt(tokenizer: PreTrainedTokenizerBase, example: Example) -> tuple[TokenIds, TokenIds]:
    """Return the token ids of the document part and of the question part; the prompt is their concatenation.

    A chat example is rendered through the tokenizer's chat template as the user message ``{document}\\n\\n{question}``,
    up to and including the start of the assistant's turn. The first part is the template's head and the document, the
    second is the blank line, the question and the template's tail. A plain example is its document, then its question.

    Raises:
        ValueError: for a chat example, if the tokenizer has no chat template or one that rewrites the message.
    """
    if not example.chat:
        return encode_text(tokenizer, example.document), encode_text(tokenizer, example.question)
    head, tail = _template_ids(tokenizer, repr(getattr(tokenizer, "chat_template", None)))
    document = head + encode_text(tokenizer, example.document)
    return document, encode_text(tokenizer, f"\n\n{example.question}") + tail


def encode_target(tokenizer: PreTrainedTokenizerBase, example: Example) -> TokenIds:
    """Return the token ids of the recorded target, [C]; a chat example's end with the end token.

    Raises:
        ValueError: for a chat example, if the tokenizer has no end token.
    """
    ids = encode_text(tokenizer, example.target)
    if not example.chat:
        return ids
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no end token: set eos_token in its tokenizer_config.json")
    return (*ids, tokenizer.eos_token_id)


def closed_book(example: Example) -> Example:
    """Return the same question without its document, which measures what can be guessed."""
    return replace(example, document="")


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> TokenIds:
    """Return the token ids of untrusted text: a spelled-out special token becomes ordinary tokens."""
    if not text:
        return ()
    return tuple(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])


def token_texts(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> list[str]:
    """Return the text that each token adds, with special tokens spelled out, [C].

    A character that spans several tokens is attributed to the last of them; the others add nothing.
    """
    texts, held = [], []
    for token_id in token_ids:
        held.append(token_id)
        text = str(tokenizer.decode(held, clean_up_tokenization_spaces=False))
        whole = not text.endswith("\ufffd") or len(held) == UTF8_BYTES
        texts.append(text if whole else "")
        held = [] if whole else held
    return texts


def rendered(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]], **settings: Any) -> str:
    """Return messages as the tokenizer's chat template renders them, without thinking if it supports that.

    Args:
        settings: of ``apply_chat_template``.

    Raises:
        ValueError: the template fails, rejects the messages, or states today's date in a way that cannot be fixed.
    """
    try:
        template = DATE.sub(lambda call: repr(TODAY.strftime(call[2])), tokenizer.get_chat_template())
        text = tokenizer.apply_chat_template(
            list(messages), chat_template=template, tokenize=False, enable_thinking=False, **settings
        )
    except Exception as error:  # a template is a program, which raises what it likes
        roles = ", ".join(message["role"] for message in messages)
        raise ValueError(
            f"the chat template of {tokenizer.name_or_path} fails for the roles {roles} ({cause_of(error)}): correct "
            "it, or give another tokenizer"
        ) from error
    if other := OTHER_DATE.search(template):
        raise ValueError(
            f"the chat template of {tokenizer.name_or_path} takes today's date from {other[0]!r}, so prompts would "
            "change daily: write strftime_now('%d %b %Y'), or give another tokenizer"
        )
    assert isinstance(text, str)
    return text


@lru_cache(maxsize=8)
def _template_ids(tokenizer: PreTrainedTokenizerBase, chat_template: str) -> tuple[TokenIds, TokenIds]:
    """Return the template's tokens before and after the user's text. The template is an argument to key the cache."""
    if tokenizer.chat_template is None:
        raise ValueError("the tokenizer has no chat template: use one that has one, or plain examples (chat=False)")
    question = {"role": "user", "content": _MARK}
    text = rendered(tokenizer, [question], add_generation_prompt=True)
    if text.count(_MARK) != 1:
        raise ValueError("the chat template does not repeat the user's message exactly once: choose another template")
    before, after = text.split(_MARK)
    if text == rendered(tokenizer, [question], add_generation_prompt=False):
        whole = rendered(tokenizer, [question, {"role": "assistant", "content": _REPLY}], add_generation_prompt=False)
        turn = whole.partition(_MARK)[2].partition(_REPLY)[0]
        if turn.strip() != after.strip():
            raise ValueError(
                f"the chat template of {tokenizer.name_or_path} ignores add_generation_prompt, so prompts would end in "
                f"{after!r} instead of {turn!r}: correct it, or give another tokenizer"
            )
    head, tail = (
        tuple(tokenizer(part, add_special_tokens=False, split_special_tokens=False)["input_ids"])
        for part in (before, after)
    )
    return head, tail
