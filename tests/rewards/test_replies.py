"""Every shape of a response that OpenAI-compatible servers send, through the real client."""

import gzip
import json
import sqlite3
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longctx_rl.config.reward import EndpointConfig
from longctx_rl.rewards import endpoint
from longctx_rl.rewards.endpoint import Endpoint, EndpointFailed, check_endpoint
from longctx_rl.rewards.replies import REJECTED, ServerError, read_reply, shortened, stored_reply
from openai_server import Reply, serving

QUOTA = {
    "error": {"message": "You exceeded your current quota", "type": "insufficient_quota", "code": "insufficient_quota"}
}


@pytest.fixture
def config(tmp_path: Path) -> EndpointConfig:
    return EndpointConfig(
        base_url="", model="lab/model", api_key_env="KEY_OF_THE_TEST", max_tokens=8, no_thinking=False, concurrency=2,
        timeout=20.0, retries=0, cache=str(tmp_path / "replies.sqlite"),
    )  # fmt: skip


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "FIRST_PAUSE", 0.01)


def read(**changes: Any) -> Any:
    """Read a successful response whose choice is changed."""
    choice = {"index": 0, "message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"} | changes
    usage = {"prompt_tokens": 10, "completion_tokens": 2}
    return read_reply(200, json.dumps({"choices": [choice], "usage": usage}).encode(), "writer")


@pytest.mark.parametrize(
    "content",
    [
        "yes",
        "<think>no</think>\n\nyes",
        "no</think> yes",
        [{"type": "thinking", "thinking": [{"type": "text", "text": "no"}]}, {"type": "text", "text": "yes"}],
        [{"type": "reasoning", "text": "no"}, {"type": "text", "text": "y"}, {"type": "text", "text": "es"}],
        [{"type": "output_text", "text": "yes"}, {"type": "image_url", "image_url": {"url": "no"}}, None, 3],
    ],
)
def test_the_answer_is_read_without_its_reasoning(content: Any) -> None:
    reply = read(message={"role": "assistant", "content": content, "reasoning_content": "no", "refusal": None})
    assert (reply.text, reply.problem, reply.prompt_tokens, reply.completion_tokens) == ("yes", "", 10, 2)


@pytest.mark.parametrize(
    ("choice", "problem"),
    [
        ({"message": None}, "the reply is empty"),
        ({"message": "yes"}, "the reply is empty"),
        ({"message": {"content": ""}}, "the reply is empty"),
        ({"message": {"content": None}, "finish_reason": "length"}, r"raise writer\.max_tokens or set writer\.no_th"),
        ({"message": {"content": "<think>\nHm"}, "finish_reason": "length"}, r"raise writer\.max_tokens or set"),
        ({"message": {"content": None, "reasoning_content": "Hm"}}, r"set writer\.no_thinking=true"),
        ({"message": {"content": "<think>Hm</think>"}}, r"set writer\.no_thinking=true"),
        ({"message": {"content": None, "refusal": "I cannot."}}, "refused"),
        ({"message": {"content": "Some"}, "finish_reason": "content_filter"}, "content filter"),
        ({"message": {"content": None, "tool_calls": [{"type": "function"}]}, "finish_reason": "tool_calls"}, "tool"),
        ({"message": {"content": "yes \ud83d"}}, "unpaired surrogate"),
        ({"message": {"content": {"text": "yes"}}, "finish_reason": None}, "the reply is empty"),
    ],
)
def test_a_reply_without_a_usable_answer_names_its_problem(choice: dict[str, Any], problem: str) -> None:
    reply = read(**choice)
    assert problem.replace("\\", "") in reply.problem
    assert reply.text.encode() is not None and reply.text != "yes \ud83d"  # what it said can be written to a report


@pytest.mark.parametrize(
    "usage", [None, [], {}, {"prompt_tokens": None}, {"prompt_tokens": float("nan")}, {"prompt_tokens": True}]
)
def test_usage_may_be_anything(usage: Any) -> None:
    body = json.dumps({"choices": [{"message": {"content": "yes"}}], "usage": usage}).encode()
    reply = read_reply(200, body, "writer")
    assert (reply.text, reply.finish_reason, reply.prompt_tokens, reply.completion_tokens) == ("yes", "", 0, 0)


FAILURES = {
    "key": (Reply(status=401), r'refuses the key.*"scripted 401".*KEY_OF_THE_TEST'),
    "forbidden": (Reply(status=403, body=b'{"detail": "not your region"}'), 'refuses the key.*"not your region"'),
    "model": (
        Reply(status=404, body=b'{"error": "no such model"}'),
        r'"no such model".*set writer\.model or writer\.b',
    ),
    "payment": (
        Reply(status=402, body=b'{"message": "Insufficient Balance"}'),
        'no quota left.*"Insufficient Balance"',
    ),
    "quota": (Reply(status=429, body=json.dumps(QUOTA).encode()), "no quota left.*You exceeded"),
    "quota of 400": (Reply(status=400, body=b'{"error": {"code": "billing_hard_limit_reached"}}'), "no quota left"),
    "rate": (Reply(status=429), r"rate of requests.*lower writer\.concurrency"),
    "long wait": (Reply(status=429, headers={"Retry-After": "86400"}), r"rate of requests.*wait 86,400 s"),
    "overloaded": (Reply(status=529), "failed with status 529"),
    "gateway": (Reply(status=502, body=b"<html>\n<h1>Bad gateway</h1>"), "502.*<html> <h1>Bad gateway"),
    "error in 200": (Reply(body=b'{"error": {"message": "worker died", "code": 502}}'), "status 502.*worker died"),
    "rate in 200": (Reply(body=b'{"error": {"message": "slow down", "code": 429}}'), "rate of requests.*slow down"),
    "error in a choice": (
        Reply(body=b'{"choices": [{"error": {"message": "upstream"}, "message": null}]}'),
        'status 500.*"upstream"',
    ),
    "text of an error in 200": (Reply(body=b'{"error": "Model is loading"}'), 'status 500.*"Model is loading"'),
    "page": (Reply(body=b"<!DOCTYPE html><html>\x1b[31mSign in"), "OpenAI protocol.*<!DOCTYPE.*Sign in.*base_url"),
    "empty": (Reply(body=b""), "OpenAI protocol.*an empty body"),
    "list": (Reply(body=b"[1, 2]"), r"OpenAI protocol.*\[1, 2\]"),
    "null": (Reply(body=b"null"), "OpenAI protocol"),
    "choices of text": (Reply(body=b'{"choices": ["yes"]}'), "OpenAI protocol"),
    "deep": (Reply(body=b"[" * 100_000), "OpenAI protocol"),
    "digits": (Reply(body=b'{"choices": ' + b"9" * 5000 + b"}"), "OpenAI protocol"),
    "latin-1": (Reply(body='{"choices": "caf\xe9"}'.encode("latin-1")), "OpenAI protocol"),
    "stream": (Reply(body=b'data: {"choices": [{"delta": {}}]}\n\ndata: [DONE]\n'), "OpenAI protocol.*data: {"),
    "not gzip": (Reply(body=b"garbage", headers={"Content-Encoding": "gzip"}), "cannot be reached.*decompress|header"),
    "redirect": (Reply(status=307, headers={"Location": "/v1/chat/completions"}), "redirect"),
    "no redirect": (Reply(status=304, body=b""), "failed with status 304"),
    "not HTTP": (Reply(raw=b"SSH-2.0-OpenSSH_9.6\r\n"), r"cannot be reached.*set writer\.base_url"),
    "hangs up": (Reply(raw=b""), "cannot be reached.*disconnected"),
    "reset": (Reply(reset=True), "cannot be reached"),
    "cut": (Reply(cut=True), "cannot be reached"),
}


@pytest.mark.parametrize(("reply", "sentence"), FAILURES.values(), ids=FAILURES)
def test_a_failure_is_one_sentence_with_the_server_s_words(config: EndpointConfig, reply: Reply, sentence: str) -> None:
    with serving(lambda number, prompt: reply) as server:
        asked = Endpoint(replace(config, base_url=server.url), "writer")
        with pytest.raises(EndpointFailed, match=sentence) as failed:
            asked.ask("Is it?")
    message = str(failed.value)
    assert message.isprintable() and len(message) < 500 and message.startswith("lab/model at http")
    with serving(lambda number, prompt: Reply("yes")) as server:  # a healthy server afterwards
        assert Endpoint(replace(config, base_url=server.url), "writer").ask("Is it?").text == "yes"
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    "name", ["overloaded", "rate", "gateway", "error in 200", "empty", "not gzip", "reset", "hangs up"]
)
def test_what_may_pass_is_retried(config: EndpointConfig, name: str) -> None:
    with serving(lambda number, prompt: FAILURES[name][0] if number < 2 else Reply("yes")) as server:
        assert Endpoint(replace(config, base_url=server.url, retries=2), "writer").ask("Is it?").text == "yes"
        assert len(server.requests) == 3


@pytest.mark.parametrize("name", ["key", "model", "quota", "payment", "long wait"])
def test_what_stays_is_not_retried(config: EndpointConfig, name: str) -> None:
    with serving(lambda number, prompt: FAILURES[name][0]) as server:
        with pytest.raises(EndpointFailed):
            Endpoint(replace(config, base_url=server.url, retries=2), "writer").ask("Is it?")
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    "reply",
    [
        Reply(message=None),
        Reply("", finish_reason="length"),
        Reply(status=400, body=b'{"error": {"message": "max_tokens is not supported"}}'),
        Reply(status=413, body=b"<h1>Too large</h1>"),
        Reply(status=422, body=b'{"detail": [{"msg": "too long"}]}'),
        Reply(body=b'{"choices": []}'),
        Reply(body=b'{"error": {"message": "blocked", "code": 400}}'),
    ],
)
def test_a_problem_of_one_request_is_neither_a_failure_nor_cached(config: EndpointConfig, reply: Reply) -> None:
    with serving(lambda number, prompt: reply if number == 0 else Reply("yes")) as server:
        asked = Endpoint(replace(config, base_url=server.url), "writer")
        first, second, third = (asked.ask("Is it?") for _ in range(3))
    assert first.problem and not second.problem
    assert first.text if first.problem == REJECTED else True
    assert (second.text, second.cached, third.text, third.cached) == ("yes", False, "yes", True)


@pytest.mark.parametrize(
    ("change", "headers"),
    [
        (gzip.compress, {"Content-Encoding": "gzip"}),
        (lambda body: b"\xef\xbb\xbf" + body, {}),
        (lambda body: b"\n\n   " + body, {"Content-Type": "text/html; charset=martian"}),
    ],
    ids=["compressed", "byte order mark", "white space to keep the connection"],
)
def test_a_body_may_differ_in_form(
    config: EndpointConfig, change: Callable[[bytes], bytes], headers: dict[str, str]
) -> None:
    body = change(b'{"choices": [{"message": {"content": "yes"}}]}')
    with serving(lambda number, prompt: Reply(body=body, headers=headers)) as server:
        assert Endpoint(replace(config, base_url=server.url), "writer").ask("Is it?").text == "yes"


@pytest.mark.parametrize(
    "row",
    [b"", b"null", b"{", b"\xff", b'{"text": ""}', b"[" * 100_000, b'{"text": 3}',
     b'{"text": "\\ud83d", "finish_reason": "stop", "prompt_tokens": 1, "completion_tokens": 1}',
     b'{"text": "", "finish_reason": "stop", "prompt_tokens": 1, "completion_tokens": 1}',
     b'{"text": "yes", "finish_reason": null, "prompt_tokens": 1, "completion_tokens": 1}'],
)  # fmt: skip
def test_a_damaged_cache_entry_is_requested_again(config: EndpointConfig, row: bytes) -> None:
    assert stored_reply(row) is None
    with serving(lambda number, prompt: Reply("yes")) as server:
        asked = Endpoint(replace(config, base_url=server.url), "writer")
        asked.ask("Is it?")
        for damaged in (row, row.decode("latin-1")):
            with sqlite3.connect(config.cache) as cache:
                cache.execute("UPDATE replies SET reply = ?", (damaged,))
            cache.close()
            assert not asked.ask("Is it?").cached
        assert asked.ask("Is it?").cached and len(server.requests) == 3


@pytest.mark.parametrize(
    "content", [b"not a database, but long enough to be read as one" * 10, b"SQLite format 3\0" + b"\1" * 4000]
)
def test_a_cache_that_is_not_sqlite_is_refused_before_any_request(config: EndpointConfig, content: bytes) -> None:
    Path(config.cache).write_bytes(content)
    with pytest.raises(ValueError, match=r"replies\.sqlite cannot be used .*writer\.cache"):
        Endpoint(replace(config, base_url="http://localhost:1/v1"), "writer")


def test_another_database_is_refused_before_any_request(config: EndpointConfig) -> None:
    with sqlite3.connect(config.cache) as other:
        other.execute("CREATE TABLE replies (thread TEXT)")
    other.close()
    with pytest.raises(ValueError, match=r"replies\.sqlite cannot be used .*no such column.*writer\.cache"):
        Endpoint(replace(config, base_url="http://localhost:1/v1"), "writer")


def test_a_cache_that_cannot_be_written_gives_its_replies(
    config: EndpointConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = sqlite3.connect
    with serving(lambda number, prompt: Reply("yes")) as server:
        served = replace(config, base_url=server.url)
        Endpoint(served, "writer").ask("Is it?")
        monkeypatch.setattr(
            sqlite3, "connect", lambda path, **options: connect(f"file:{path}?mode=ro", uri=True, **options)
        )
        asked = Endpoint(served, "writer")
        assert asked.ask("Is it?").cached and len(server.requests) == 1
        with pytest.raises(EndpointFailed, match=r"replies\.sqlite cannot be written .*readonly.*: set writer\.cache"):
            asked.ask("Is it not?")


def test_a_cache_of_an_unknown_user_is_refused(config: EndpointConfig) -> None:
    with pytest.raises(ValueError, match=r"^~nobody-here/a\.sqlite cannot be used .*writer\.cache"):
        Endpoint(replace(config, cache="~nobody-here/a.sqlite", base_url="http://localhost:1/v1"), "writer")


def test_a_proxy_that_cannot_be_used(config: EndpointConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://localhost:1")
    with pytest.raises(ValueError, match="unset ALL_PROXY"):
        Endpoint(replace(config, base_url="http://localhost:1/v1"), "writer")


def test_the_first_failure_ends_all_requests(config: EndpointConfig) -> None:
    """The slow one is first in order; it would pause for a minute before its retry."""

    def script(number: int, prompt: str) -> Reply:
        slow = Reply(status=503, headers={"Retry-After": "60"})
        return slow if prompt == "slow" else Reply(status=401, seconds=0.2)

    with serving(script) as server:
        asked = Endpoint(replace(config, base_url=server.url, retries=5), "writer")
        with pytest.raises(EndpointFailed, match="refuses the key"):
            asked.each(asked.ask, ["slow", "refused", *map(str, range(50))])
        for thread in threading.enumerate():
            if thread.name.startswith("ThreadPoolExecutor"):
                thread.join(10)
                assert not thread.is_alive()
        assert len(server.requests) < 10


@pytest.mark.parametrize("key", ["sk-\n\u00e9", "sk-1\nsk-2", "\u201csk\u201d"])
def test_a_malformed_key_is_refused_without_showing_it(
    config: EndpointConfig, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(config.api_key_env, key)
    with pytest.raises(ValueError, match="KEY_OF_THE_TEST") as refused:
        Endpoint(replace(config, base_url="http://localhost:1/v1"), "writer")
    assert "sk" not in str(refused.value)


def test_white_space_around_a_key_is_removed(config: EndpointConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(config.api_key_env, " sk-1\r\n")
    with serving(lambda number, prompt: Reply("yes")) as server:
        Endpoint(replace(config, base_url=server.url), "writer").ask("Is it?")
        assert server.headers[0]["authorization"] == "Bearer sk-1"


@pytest.mark.parametrize(
    ("name", "value"),
    [("base_url", "localhost:8000/v1"), ("base_url", ""), ("base_url", "http://host:80000/v1"), ("base_url", "http:///v1"),
     ("max_tokens", 0), ("concurrency", 0), ("retries", -1), ("timeout", 0.0), ("timeout", float("nan"))],
)  # fmt: skip
def test_settings_that_cannot_work_are_refused(config: EndpointConfig, name: str, value: Any) -> None:
    usable = replace(config, base_url="http://localhost:8000/v1")
    check_endpoint(usable, "writer")
    with pytest.raises(ValueError, match=rf"^writer\.{name}="):
        check_endpoint(replace(usable, **{name: value}), "writer")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["choices", "message", "content", "text", "type", "error", "code", "usage", "prompt_tokens",
                         "finish_reason", "refusal", "tool_calls", "detail"]), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=300)
@given(VALUES, st.sampled_from([200, 200, 302, 400, 429, 503]))
def test_no_value_breaks_the_reader(value: Any, status: int) -> None:
    for body in (value, {"choices": value}, {"choices": [value]}, {"choices": [{"message": value}]}, {"error": value}):
        try:
            reply = read_reply(status, json.dumps(body).encode(), "writer")
        except ServerError as error:
            assert str(error).isprintable() or not str(error)
        else:
            assert reply.text.encode() is not None and (reply.problem or reply.text)


def test_foreign_words_fit_on_a_line() -> None:
    assert shortened(" a\n\x1b[31mb\ud83d ") == "a \ufffd[31mb\ufffd"
    assert len(shortened("x" * 10**6)) == 200
