"""A language model behind an OpenAI-compatible endpoint.

Requests are concurrent, transient errors are retried, and replies are cached on disk, so that none is paid for twice.
"""

import hashlib
import json
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from longctx_rl.config.reward import EndpointConfig

T = TypeVar("T")


class EndpointFailed(Exception):
    """The endpoint gives no replies. The message says why, and what to set."""


class RequestRefused(Exception):
    """The endpoint rejects this request for good: it is too long for the model, or filtered."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A model's reply."""

    text: str
    """Without its reasoning."""
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    cached: bool
    """It came from disk, without a request."""


class Endpoint:
    """Queries a model and caches its replies, by model and prompt, in an SQLite file as they arrive.

    Args:
        key: the configuration's dotted path, for messages.

    Raises:
        ValueError: the client's package is not installed, or the cache cannot be opened.
    """

    def __init__(self, config: EndpointConfig, key: str) -> None:
        try:
            import openai
        except ImportError as error:
            raise ValueError(f"{key} needs the openai package: pip install 'longctx-rl[rewards]'") from error
        self._openai, self._config, self._key = openai, config, key
        self._client = openai.OpenAI(
            base_url=config.base_url,
            api_key=os.environ.get(config.api_key_env) or "none",
            timeout=config.timeout,
            max_retries=config.retries,
        )
        path = Path(config.cache).expanduser()
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._replies = sqlite3.connect(path, check_same_thread=False, timeout=60.0)
            self._replies.execute("CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, reply TEXT NOT NULL)")
        except (OSError, sqlite3.Error) as error:
            raise ValueError(f"{path} cannot be used ({error}): set {key}.cache") from error

    def ask(self, prompt: str, *, temperature: float = 0.0, keep: Callable[[str], bool] = lambda _: True) -> Reply:
        """Return the reply to one prompt.

        Args:
            keep: decides from the reply's text whether the reply is cached.

        Raises:
            EndpointFailed: no reply after all retries, or the cache cannot be read or written.
            RequestRefused: the endpoint rejects this request.
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
        if (stored := self._kept(name)) is not None:
            return Reply(**stored, cached=True)
        try:
            answer = self._client.chat.completions.create(**request, extra_body=extra)
        except (self._openai.BadRequestError, self._openai.UnprocessableEntityError) as error:
            raise RequestRefused(str(error).splitlines()[0]) from error
        except self._openai.OpenAIError as error:
            raise EndpointFailed(self._explained(error)) from error
        except ValueError:  # not JSON
            answer = None
        if not getattr(answer, "choices", None):
            where = self._config.base_url
            raise EndpointFailed(f"{where} does not speak the OpenAI protocol: set {self._key}.base_url")
        usage = answer.usage
        facts: dict[str, Any] = {
            "text": (answer.choices[0].message.content or "").rpartition("</think>")[2].strip(),
            "finish_reason": answer.choices[0].finish_reason or "",
            "prompt_tokens": usage.prompt_tokens if usage else 0,
            "completion_tokens": usage.completion_tokens if usage else 0,
        }
        if keep(facts["text"]):
            self._keep(name, facts)
        return Reply(**facts, cached=False)

    def _kept(self, name: str) -> dict[str, Any] | None:
        try:
            with self._lock:
                row = self._replies.execute("SELECT reply FROM replies WHERE key = ?", (name,)).fetchone()
        except sqlite3.Error as error:
            raise EndpointFailed(f"{self._config.cache} cannot be read ({error}): set {self._key}.cache") from error
        return json.loads(row[0]) if row else None

    def _keep(self, name: str, facts: dict[str, Any]) -> None:
        try:
            with self._lock, self._replies:
                self._replies.execute("INSERT OR REPLACE INTO replies VALUES (?, ?)", (name, json.dumps(facts)))
        except sqlite3.Error as error:
            raise EndpointFailed(f"{self._config.cache} cannot be written ({error}): set {self._key}.cache") from error

    def each(self, work: Callable[[T], Any], items: Iterable[T]) -> list[Any]:
        """Apply ``work`` to items, ``concurrency`` at a time, in order. The first failure cancels the pending items."""
        pool = ThreadPoolExecutor(self._config.concurrency)
        try:
            return [future.result() for future in [pool.submit(work, item) for item in items]]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # does not wait for slow replies, such as after Ctrl-C

    def _explained(self, error: Exception) -> str:
        config, openai = self._config, self._openai
        where = f"{config.model} at {config.base_url}"
        if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
            return f"{where} refuses the key: set the environment variable {config.api_key_env}"
        if isinstance(error, openai.NotFoundError):
            return f"{where} is not served there: set {self._key}.model"
        if isinstance(error, openai.RateLimitError):
            return f"{where} limits the rate of requests: lower {self._key}.concurrency"
        if isinstance(error, openai.APITimeoutError):
            return f"{where} did not answer within {config.timeout} s: start it, or raise {self._key}.timeout"
        if isinstance(error, openai.APIConnectionError):
            return f"{where} cannot be reached: start it, or set {self._key}.base_url"
        return f"{where} failed ({(str(error) or type(error).__name__).splitlines()[0]})"
