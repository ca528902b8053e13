"""A real HTTP server that speaks the OpenAI chat protocol and answers from a script."""

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Reply:
    """What one request gets."""

    text: str = "yes"
    status: int = 200
    seconds: float = 0.0
    """Pause before the reply."""
    body: bytes | None = None
    """Sent instead of a well-formed reply."""
    cut: bool = False
    """The connection ends in the middle."""
    finish_reason: str = "stop"
    message: Any = "with the text"
    """Sent instead of a message with the text."""
    usage: Any = field(default_factory=lambda: {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12})
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None
    """Sent instead of an HTTP response."""
    reset: bool = False
    """The connection is reset in the middle."""


@dataclass
class Server:
    """Where it listens, and what it was asked."""

    url: str
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    @property
    def prompts(self) -> list[str]:
        return [request["messages"][-1]["content"] for request in self.requests]


class Listening(ThreadingHTTPServer):
    """Lets more clients wait than Python's five, beyond which the kernel drops them until they try again."""

    request_queue_size = 128
    daemon_threads = True


@contextmanager
def serving(script: Callable[[int, str], Reply]) -> Iterator[Server]:
    """Serve on a free port; ``script`` gets the number of the request, from 0, and its last message."""
    server = Server("")
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(server.requests)
                server.requests.append(request)
                server.headers.append(dict(self.headers))
            reply = script(number, request["messages"][-1]["content"])
            time.sleep(reply.seconds)
            said = {"role": "assistant", "content": reply.text}
            message = said if reply.message == "with the text" else reply.message
            choice = {"index": 0, "message": message, "finish_reason": reply.finish_reason}
            whole = {"id": "1", "object": "chat.completion", "created": 0, "model": request["model"]}
            whole |= {"choices": [choice], "usage": reply.usage}
            if reply.status != 200:
                whole = {"error": {"message": f"scripted {reply.status}", "type": "scripted"}}
            body = reply.body if reply.body is not None else json.dumps(whole).encode()
            self.close_connection = True
            with suppress(ConnectionError):  # a client that was stopped does not read its reply
                if reply.raw is not None:
                    self.wfile.write(reply.raw)
                    return
                self.send_response(reply.status)
                for name, value in ({"Content-Type": "application/json"} | reply.headers).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: len(body) // 2] if reply.cut or reply.reset else body)
            if reply.reset:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

        def log_message(self, *arguments: Any) -> None:
            pass

    http = Listening(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
    thread = threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
