"""A language model behind an OpenAI-compatible endpoint.

Requests are concurrent, transient errors are retried, and replies are cached on disk, so that none is paid for twice.
"""

import hashlib
import json
import math
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, TypeVar

from longctx_rl.config.checks import is_address
from longctx_rl.config.reward import EndpointConfig
from longctx_rl.rewards.replies import KEPT, Reply, ServerError, read_reply, stored_reply

T = TypeVar("T")
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 8.0
"""Seconds before the first retry, and at most before a later one; each pause is twice the one before."""
LONGEST_WAIT = 120.0
"""A server that asks for a longer pause, in seconds, gets no retry."""


class EndpointFailed(Exception):
    """The endpoint gives no replies. The message says why, and what to set."""


class Endpoint:
    """Queries a model and caches its replies, by model and prompt, in an SQLite file as they arrive.

    Args:
        key: the configuration's dotted path, for messages.

    Raises:
        ValueError: the client's package is not installed, the API key is malformed, or the cache cannot be opened.
    """

    def __init__(self, config: EndpointConfig, key: str) -> None:
        try:
            import openai
        except ImportError as error:
            raise ValueError(f"{key} needs the openai package: pip install 'longctx-rl[rewards]'") from error
        self._openai, self._config, self._key = openai, config, key
        secret = os.environ.get(config.api_key_env, "").strip() or "none"
        if not (secret.isascii() and secret.isprintable()):
            raise ValueError(f"the environment variable {config.api_key_env} is not an API key: copy the key again")
        try:
            self._client = openai.OpenAI(
                base_url=config.base_url, api_key=secret, timeout=config.timeout, max_retries=0
            )
        except ImportError as error:  # ALL_PROXY is a SOCKS proxy
            raise ValueError(f"{key} cannot use the proxy in the environment ({error}): unset ALL_PROXY") from error
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        try:
            path = Path(config.cache).expanduser()
            path.parent.mkdir(parents=True, exist_ok=True)
            self._replies = sqlite3.connect(path, check_same_thread=False, timeout=60.0)
            self._replies.execute("CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, reply TEXT NOT NULL)")
            self._replies.execute("SELECT key, reply FROM replies LIMIT 0")  # fails if the table is another program's
        except (OSError, RuntimeError, sqlite3.Error) as error:  # RuntimeError: the user of ~user is unknown
            raise ValueError(
                f"{config.cache} cannot be used as a cache of replies ({error}): set {key}.cache"
            ) from error

    def ask(self, prompt: str, *, temperature: float = 0.0, keep: Callable[[str], bool] = lambda _: True) -> Reply:
        """Return the reply to one prompt.

        Args:
            keep: decides from an answer whether its reply is cached. A reply with a problem never is.

        Raises:
            EndpointFailed: no reply after all retries, or the cache cannot be read or written.
        """
        request: dict[str, Any] = {
            "model": self._config.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": temperature,
            "max_tokens": self._config.max_tokens,
        }
        extra = {"chat_template_kwargs": {"enable_thinking": False}} if self._config.no_thinking else None
        # The key omits the base URL: the same model may later be served elsewhere.
        name = hashlib.blake2b(json.dumps([request, extra]).encode(), digest_size=16).hexdigest()
        if (stored := self._kept(name)) is not None and keep(stored.text):
            return stored
        reply = self._requested(request, extra)
        if not reply.problem and keep(reply.text):
            self._keep(name, reply)
        return reply

    def _requested(self, request: dict[str, Any], extra: dict[str, Any] | None) -> Reply:
        """The reply, after retries if need be."""
        attempt = 0
        while True:
            try:
                return self._sent(request, extra)
            except ServerError as error:
                last = attempt == self._config.retries or not error.transient or error.wait > LONGEST_WAIT
                pause = max(error.wait, min(FIRST_PAUSE * 2 ** min(attempt, 9), LONGEST_PAUSE))
                if last or self._stopped.wait(pause):
                    raise EndpointFailed(self._explained(error)) from error
            attempt += 1

    def _sent(self, request: dict[str, Any], extra: dict[str, Any] | None) -> Reply:
        """The reply to one request."""
        try:
            raw = self._client.chat.completions.with_raw_response.create(**request, extra_body=extra)
            response = raw.http_response
        except self._openai.APIStatusError as error:
            response = error.response
        except self._openai.APITimeoutError as error:
            raise ServerError(408, f"nothing within {self._config.timeout} s") from error
        except self._openai.APIConnectionError as error:
            cause = error.__cause__ or error
            raise ServerError(0, str(cause) or type(cause).__name__) from error
        try:
            return read_reply(response.status_code, response.content, self._key)
        except ServerError as error:
            error.wait = _seconds(response.headers.get("retry-after", ""))
            raise

    def _kept(self, name: str) -> Reply | None:
        try:
            with self._lock:
                query = "SELECT CAST(reply AS BLOB) FROM replies WHERE key = ?"
                row = self._replies.execute(query, (name,)).fetchone()
        except sqlite3.Error as error:
            raise EndpointFailed(f"{self._config.cache} cannot be read ({error}): set {self._key}.cache") from error
        return stored_reply(row[0]) if row else None

    def _keep(self, name: str, reply: Reply) -> None:
        row = json.dumps({field: getattr(reply, field) for field in KEPT})
        try:
            with self._lock, self._replies:
                self._replies.execute("INSERT OR REPLACE INTO replies VALUES (?, ?)", (name, row))
        except sqlite3.Error as error:
            raise EndpointFailed(f"{self._config.cache} cannot be written ({error}): set {self._key}.cache") from error

    def each(self, work: Callable[[T], Any], items: Iterable[T]) -> list[Any]:
        """Apply ``work`` to items, ``concurrency`` at a time, in order. The first failure cancels the pending items."""
        self._stopped.clear()
        pool = ThreadPoolExecutor(self._config.concurrency)
        try:
            futures = [pool.submit(work, item) for item in items]
            for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                future.result()  # raises
            return [future.result() for future in futures]
        except EndpointFailed:
            self._stopped.set()  # no retries of requests in flight, which would keep the process from ending
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # does not wait for slow replies, such as after Ctrl-C

    def _explained(self, error: ServerError) -> str:
        config, key, status = self._config, self._key, error.status
        where, words = f"{config.model} at {config.base_url}", f'it says "{error}"'
        if error.wait > LONGEST_WAIT:
            words += f" and asks to wait {error.wait:,.0f} s"
        if error.quota:
            return f"{where} has no quota left ({words}): top up the account, or set another {key}.model"
        if status in (401, 403):
            return f"{where} refuses the key ({words}): set the environment variable {config.api_key_env}"
        if status in (404, 405):
            return f"{where} is not served there ({words}): set {key}.model or {key}.base_url"
        if status == 408:
            return f"{where} did not answer in time ({error}): start it, or raise {key}.timeout"
        if status == 429:
            return f"{where} limits the rate of requests ({words}): lower {key}.concurrency"
        if status == 0:
            return f"{where} cannot be reached ({error}): start it, or set {key}.base_url"
        if status == 200:
            return f"{where} does not speak the OpenAI protocol ({words}): set {key}.base_url"
        return f"{where} failed with status {status} ({words}): look at its log, then repeat the command"


def check_endpoint(config: EndpointConfig, key: str) -> None:
    """Raise ValueError for the first setting that cannot be used."""
    if not is_address(config.base_url):
        raise ValueError(f"{key}.base_url={config.base_url}: give an address such as http://localhost:8000/v1")
    for name, least in (("max_tokens", 1), ("concurrency", 1), ("retries", 0)):
        if getattr(config, name) < least:
            raise ValueError(f"{key}.{name}={getattr(config, name)}: set it to {least} or more")
    if not 0 < config.timeout < math.inf:
        raise ValueError(f"{key}.timeout={config.timeout}: set it above 0, in seconds")


def check_prompt(prompt: str, fields: Sequence[str], key: str) -> None:
    """Raise ValueError if a prompt has other fields than these, or lacks the last one."""
    try:
        without, shown = (prompt.format(**dict.fromkeys(fields, "") | {fields[-1]: text}) for text in ("", "x"))
    except (AttributeError, KeyError, IndexError, ValueError) as error:
        raise ValueError(f"{key} has a brace that is not a field ({error}): write {{{{ for a literal brace") from error
    if without == shown:
        raise ValueError(f"{key} lacks a field: add {{{fields[-1]}}}")


def _seconds(retry_after: str) -> float:
    """The seconds of a Retry-After header; 0 for a date, or anything else."""
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        return 0.0
