"""A server that speaks the part of vLLM's protocol that the client uses, with answers that a test writes."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, Any]
EOS = 2


@dataclass
class ScriptedVllm:
    """What the server was asked, and what it answers instead of the usual."""

    requests: list[tuple[str, Any]] = field(default_factory=list)
    version: str = "default"
    replies: dict[str, Callable[["ScriptedVllm", Any], Reply | None]] = field(default_factory=dict)
    """Path to a function of the request's body; None: the usual answer."""
    context: int = 64
    root: str = "the-folder-of-another-machine"
    url: str = ""

    def paths(self) -> list[str]:
        return [path for path, _ in self.requests]

    def answer(self, path: str, body: Any) -> Reply:
        own = self.replies.get(path)
        reply = own(self, body) if own else None
        return reply or self._usual(path, body)

    def _usual(self, path: str, body: Any) -> Reply:
        if path == "/inference/v1/generate":
            return 200, {"choices": [self.choice(number, body) for number in range(body["sampling_params"]["n"])]}
        if path == "/update_weight_version":
            self.version = body["new_version"]
        return 200, {
            "/health": {},
            "/v1/models": {"data": [{"id": "policy", "root": self.root, "max_model_len": self.context}]},
            "/collective_rpc": {"results": [None]},
            "/reset_prefix_cache": {"success": True},
            "/update_weight_version": {"success": True},
            "/weight_info": {"weight_version": self.version},
        }[path]

    def choice(self, number: int, body: Any, **changes: Any) -> dict[str, Any]:
        """Completion ``number``: as many tokens as its number plus one, up to the limit; the last one ends it."""
        limit = body["sampling_params"]["max_tokens"]
        ids = [10 + number] * min(number, limit) + [EOS] * (number < limit)
        return {
            "index": number,
            "finish_reason": "stop" if number < limit else "length",
            "token_ids": ids,
            "weight_versions": [{"version": self.version, "start": 0, "end": len(ids)}],
            "logprobs": {"content": [{"token_id": token, "logprob": -0.5} for token in ids]},
        } | changes


@contextmanager
def scripted(script: ScriptedVllm) -> Iterator[ScriptedVllm]:
    """Serve a script; its ``url`` is set inside."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers.get("content-length", 0)))
            body = json.loads(raw) if raw else None
            script.requests.append((self.path, body))
            status, value = script.answer(self.path, body)
            if status == 0:  # the server dies
                self.close_connection = True
                return
            text = (value if isinstance(value, str) else json.dumps(value)).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    script.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield script
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def hangs(script: ScriptedVllm, body: Any) -> Reply | None:
    """Answers after a while, as usual."""
    time.sleep(1.0)
    return None
