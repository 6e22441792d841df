"""A chat completions endpoint on loopback that answers with boxes, in place of a vision language model's server."""

import base64
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import cv2
import numpy as np

MIDDLE = '```json\n[{"bbox_2d": [250, 250, 750, 750], "label": "thing"}]\n```'


@dataclass
class Asked:
    """One request as the server got it."""

    body: dict[str, Any]
    headers: dict[str, str]

    @property
    def text(self) -> str:
        return self.body["messages"][0]["content"][1]["text"]

    @property
    def image_url(self) -> str:
        return self.body["messages"][0]["content"][0]["image_url"]["url"]

    @cached_property
    def image(self) -> np.ndarray:
        """uint8 RGB (height, width, 3), decoded from what was sent."""
        encoded = base64.b64decode(self.image_url.removeprefix("data:image/jpeg;base64,"), validate=True)
        return cv2.cvtColor(cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


@dataclass
class Reply:
    """What the server answers: a completion of `content`, or `raw` as it is."""

    content: str | None = MIDDLE
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    finish_reason: str = "stop"
    refusal: str | None = None
    logprobs: list[float] | None = None
    raw: str | None = None

    def text(self) -> str:
        if self.raw is not None:
            return self.raw
        tokens = [{"token": "x", "logprob": logprob, "top_logprobs": []} for logprob in self.logprobs or []]
        choice = {
            "index": 0,
            "finish_reason": self.finish_reason,
            "message": {"role": "assistant", "content": self.content, "refusal": self.refusal},
            "logprobs": {"content": tokens} if tokens else None,
        }
        return json.dumps(
            {"id": "1", "object": "chat.completion", "created": 0, "model": "scripted", "choices": [choice]}
        )


@dataclass
class Server:
    """`asked` holds every request in order of arrival, retries included; `most_at_once` how many overlapped."""

    base_url: str
    asked: list[Asked] = field(default_factory=list)
    most_at_once: int = 0


@contextmanager
def serve(answer: Callable[[Asked], str | Reply] = lambda asked: MIDDLE) -> Iterator[Server]:
    """A running endpoint; `answer` says what it replies to a request."""
    lock, under_way = threading.Lock(), 0

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            nonlocal under_way
            asked = Asked(
                json.loads(self.rfile.read(int(self.headers["Content-Length"]))),
                {name.lower(): value for name, value in self.headers.items()},
            )
            with lock:
                server.asked.append(asked)
                under_way += 1
                server.most_at_once = max(server.most_at_once, under_way)
            reply = answer(asked) if self.path == "/v1/chat/completions" else Reply(status=404, raw="{}")
            reply = Reply(reply) if isinstance(reply, str) else reply
            body = reply.text().encode()
            with lock:
                under_way -= 1
            self.send_response(reply.status)
            headers = {"Content-Type": "application/json", "Content-Length": str(len(body))}
            for name, value in (headers | reply.headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            """Silent."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        server = Server(f"http://127.0.0.1:{http.server_port}/v1")
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            http.shutdown()
            thread.join()


def options(base_url: str) -> dict[str, Any]:
    """Options of an expert that asks this server, without a segmenter."""
    return {"base_url": base_url, "model": "Qwen3-VL-tiny", "retries": 2, "timeout": 60}
