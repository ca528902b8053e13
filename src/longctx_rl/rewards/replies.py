"""The response of an OpenAI-compatible server, read without trusting its shape.

It is a reply with an answer; a reply without one, whose problem concerns only this request; or an error of the server.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from longctx_rl.files import BYTE_ORDER_MARK, mismatch, parsed_json, parsed_unicode

REJECTED = "the endpoint rejected the request"
"""The problem of a request that is too long for the model, filtered, or has a parameter that the server rejects."""
REJECTING = frozenset({400, 413, 422})
"""HTTP statuses of such requests."""
QUOTA_STATUS, QUOTA_CODES = 402, re.compile("quota|billing|balance")
TEXT_PARTS = (None, "text", "output_text")
KEPT = ("text", "finish_reason", "prompt_tokens", "completion_tokens")
"""Fields of a cache entry."""
SHOWN = 200
"""Characters of the server's own words in a message."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A model's reply."""

    text: str
    """Its answer without the reasoning; if there is a ``problem``, what the model or the server said about it."""
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    problem: str = ""
    """Why there is no usable answer, and which setting helps. Empty if there is one."""
    cached: bool = False
    """It came from disk, without a request."""


class ServerError(Exception):
    """No reply. The message is in the server's own words, shortened.

    Args:
        status: HTTP status; 200: the body is not that of the protocol; 0: there was no response.
        quota: the account's quota is used up, which no later request changes.
        wait: seconds that the server asks to wait.
    """

    def __init__(self, status: int, words: str, *, quota: bool = False, wait: float = 0.0) -> None:
        super().__init__(shortened(words))
        self.status, self.quota, self.wait = status, quota, wait

    @property
    def transient(self) -> bool:
        """Whether the same request may succeed later."""
        return not self.quota and (self.status in (0, 200, 408, 409, 425, 429) or self.status >= 500)


def read_reply(status: int, body: bytes, key: str) -> Reply:
    """Read a response.

    Args:
        key: the configuration's dotted path, for messages.

    Raises:
        ServerError: it is an error, also one inside a successful response, or not of the protocol.
    """
    parsed, _ = parsed_json(body.removeprefix(BYTE_ORDER_MARK))
    whole = _mapping(parsed)
    choices = whole.get("choices")
    choice = _mapping(choices[0]) if isinstance(choices, list) and choices else {}
    error = whole.get("error") or choice.get("error")
    if status < 300 and error:
        code = _mapping(error).get("code")
        status = code if isinstance(code, int) and code >= 400 else 500
    if status >= 300 or not isinstance(choices, list) or (choices and not choice):
        words = _words(error) or _words(whole) or body[: 4 * SHOWN].decode("utf-8", "replace").strip()
        quota = status == QUOTA_STATUS or any(
            QUOTA_CODES.search(str(_mapping(error).get(name))) for name in ("code", "type")
        )
        if status in REJECTING and not quota:
            return Reply(shortened(words), "", 0, 0, REJECTED)
        raise ServerError(status, words or "an empty body", quota=quota)
    message, finish = _mapping(choice.get("message")), choice.get("finish_reason")
    finish_reason = finish if isinstance(finish, str) else ""
    text, problem = _answer(message, finish_reason, key)
    usage = _mapping(whole.get("usage"))
    prompt_tokens, completion_tokens = (_count(usage.get(name)) for name in KEPT[2:])
    return Reply(text, finish_reason, prompt_tokens, completion_tokens, problem)


def _answer(message: Mapping[str, Any], finish_reason: str, key: str) -> tuple[str, str]:
    """The answer and an empty string, or what was said instead and the problem."""
    content, refusal = message.get("content"), message.get("refusal")
    if isinstance(content, list):  # such as a part with the reasoning, then one with the answer
        texts = (part.get("text") for part in map(_mapping, content) if part.get("type") in TEXT_PARTS)
        content = "".join(text for text in texts if isinstance(text, str))
    whole = content if isinstance(content, str) else ""
    text = whole.rpartition("</think>")[2].strip()
    if text.startswith("<think>"):  # and never ends
        text = ""
    if refusal and isinstance(refusal, str):
        return shortened(refusal), "the model refused to answer"
    if finish_reason == "content_filter":
        return shortened(text), "the endpoint's content filter stopped the reply"
    if text:
        return (text, "") if is_unicode(text) else (shortened(text), "the reply is text with an unpaired surrogate")
    if finish_reason == "length":
        return "", f"the reply ended before its answer: raise {key}.max_tokens or set {key}.no_thinking=true"
    if message.get("tool_calls") or message.get("function_call"):
        return "", "the model called a tool instead of answering"
    if whole or message.get("reasoning_content") or message.get("reasoning"):
        return "", f"the reply is reasoning without an answer: set {key}.no_thinking=true"
    return "", "the reply is empty"


def stored_reply(row: bytes) -> Reply | None:
    """Return the reply of a cache entry; None if the entry is damaged, or its reply has no usable answer."""
    stored, problem = parsed_unicode(row)
    if problem or mismatch(stored, Reply) or not stored["text"]:
        return None
    return replace(Reply(**stored), cached=True)


def is_unicode(text: str) -> bool:
    """Whether a text can be encoded, which an unpaired surrogate, from an escape in JSON or a PDF's font, cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def shortened(text: str) -> str:
    """Return the start of foreign text on one line, fit for a terminal."""
    line = " ".join(text[: 4 * SHOWN].split())
    line = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in line)
    return line if len(line) <= SHOWN else line[: SHOWN - 3] + "..."


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _count(value: Any) -> int:
    return value if type(value) is int and value >= 0 else 0


def _words(error: Any) -> str:
    """What an error of any server's shape says."""
    if isinstance(error, str):
        return error
    said = (_mapping(error).get(name) for name in ("message", "detail"))
    return next((text for text in said if isinstance(text, str) and text), "")
