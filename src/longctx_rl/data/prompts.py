"""From an example to token ids: prompt in two parts, and target.

The document part and the question part are tokenised separately, so several questions can share one document's tokens
exactly. Text from a data set never becomes a special token, even where it spells one; only the chat template's own
text does.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

from transformers import PreTrainedTokenizerBase

from longctx_rl.types import Example

TokenIds = tuple[int, ...]

UTF8_BYTES = 4
"""Bytes, and so tokens, that the longest letter can take."""

_MARK = "\u241eMESSAGE\u241e"


def encode_prompt(tokenizer: PreTrainedTokenizerBase, example: Example) -> tuple[TokenIds, TokenIds]:
    """Token ids of the document part and of the question part; the prompt is one after the other.

    A chat example is rendered through the tokenizer's chat template as the user message ``{document}\\n\\n{question}``,
    up to and including the start of the assistant's turn. The first part is the template's head and the document, the
    second is the blank line, the question and the template's tail. A plain example is its document, then its question.

    Raises:
        ValueError: a chat example, and the tokenizer has no chat template or one that rewrites the message.
    """
    if not example.chat:
        return encode_text(tokenizer, example.document), encode_text(tokenizer, example.question)
    head, tail = _template_ids(tokenizer, getattr(tokenizer, "chat_template", None))
    document = head + encode_text(tokenizer, example.document)
    return document, encode_text(tokenizer, f"\n\n{example.question}") + tail


def encode_target(tokenizer: PreTrainedTokenizerBase, example: Example) -> TokenIds:
    """Token ids of the text that the data-set methods learn from, [C]; a chat example's ends with the end token.

    Raises:
        ValueError: a chat example, and the tokenizer has no end token.
    """
    ids = encode_text(tokenizer, example.target)
    if not example.chat:
        return ids
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no end token: set eos_token in its tokenizer_config.json")
    return (*ids, tokenizer.eos_token_id)


def closed_book(example: Example) -> Example:
    """The same question without its document: what can be guessed."""
    return replace(example, document="")


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> TokenIds:
    """Token ids of text that is not trusted: a spelled-out special token becomes ordinary tokens."""
    if not text:
        return ()
    return tuple(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])


def token_texts(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> list[str]:
    """The text that each token adds, special tokens spelled out, [C].

    A letter that several tokens share comes with the last of them; those before it add nothing.
    """
    texts, held = [], []
    for token_id in token_ids:
        held.append(token_id)
        text = str(tokenizer.decode(held, clean_up_tokenization_spaces=False))
        whole = not text.endswith("\ufffd") or len(held) == UTF8_BYTES
        texts.append(text if whole else "")
        held = [] if whole else held
    return texts


@lru_cache(maxsize=8)
def _template_ids(tokenizer: PreTrainedTokenizerBase, chat_template: str | None) -> tuple[TokenIds, TokenIds]:
    """What the chat template writes before and after the user's text. The template is part of the cache's key."""
    if chat_template is None:
        raise ValueError("the tokenizer has no chat template: use one that has, or plain examples (chat=False)")
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": _MARK}], tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    assert isinstance(rendered, str)
    if rendered.count(_MARK) != 1:
        raise ValueError("the chat template does not repeat the user's message exactly once: choose another template")
    head, tail = (
        tuple(tokenizer(part, add_special_tokens=False, split_special_tokens=False)["input_ids"])
        for part in rendered.split(_MARK)
    )
    return head, tail
