"""A chat completions endpoint on loopback, in place of a language model's server: it answers what a script says.

In a test: `with serve(play) as server: ... server.base_url ... server.requests`. As a process, to be killed or shown:
`python -m tests.helpers.llm_server --port 0 --latency 0.05 --log FILE --faults "429=0.3,hang=0.05"` prints its base
URL on one line.
"""

import argparse
import hashlib
import json
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.helpers.llm_player import played

PATH = "/v1/chat/completions"


@dataclass
class Request:
    """One request as the server got it; `number` counts from 0 in order of arrival, `headers` have lower-case names.

    `arrived` is a time.monotonic(). `status` is that of the reply once the client has all of it, else None: the client
    may have left before.
    """

    body: dict[str, Any]
    headers: dict[str, str] = field(default_factory=dict)
    path: str = PATH
    number: int = 0
    arrived: float = field(default_factory=time.monotonic)
    status: int | None = None

    @property
    def messages(self) -> list[dict[str, Any]]:
        return self.body["messages"]

    @cached_property
    def data(self) -> dict[str, Any]:
        """The JSON object of the last user message that holds one, {} where none does."""
        for message in reversed(self.messages):
            if message["role"] == "user" and (found := _json_object(text_of(message))):
                return found
        return {}

    @property
    def text(self) -> str:
        """The texts of all messages."""
        return "\n".join(text_of(message) for message in self.messages)

    @property
    def key(self) -> str:
        """SHA-256 of the messages."""
        return hashlib.sha256(json.dumps(self.messages, sort_keys=True).encode()).hexdigest()


def text_of(message: dict[str, Any]) -> str:
    """A message's text, whether or not an image goes with it."""
    content = message["content"]
    parts = content if isinstance(content, list) else [{"type": "text", "text": content or ""}]
    return "\n".join(part["text"] for part in parts if part["type"] == "text")


def _json_object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text[text.find("{") : text.rfind("}") + 1])
    except json.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


@dataclass(frozen=True)
class Reply:
    """What the server answers: a completion of `text`; an error of that text and `error_code` if `status` says so; or
    `raw` as it is. It comes after `delay` seconds, with `pause` seconds before each of its bytes, or never (`hang`:
    the connection stays open until the client leaves). Tokens are a quarter of the characters unless they are given.
    """

    text: str | None = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    finish_reason: str = "stop"
    refusal: str | None = None
    raw: str | None = None
    delay: float = 0
    pause: float = 0
    hang: bool = False
    input_tokens: int | None = None
    output_tokens: int | None = None
    error_code: str | None = None

    def completion(self, request: Request) -> dict[str, Any]:
        """The completion object, https://platform.openai.com/docs/api-reference/chat/object."""
        sent = len(request.text) // 4 if self.input_tokens is None else self.input_tokens
        said = len(self.text or "") // 4 if self.output_tokens is None else self.output_tokens
        message = {"role": "assistant", "content": self.text, "refusal": self.refusal}
        return {
            "id": f"chatcmpl-{request.number}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": request.body.get("model", "scripted"),
            "choices": [{"index": 0, "finish_reason": self.finish_reason, "message": message, "logprobs": None}],
            "usage": {"prompt_tokens": sent, "completion_tokens": said, "total_tokens": sent + said},
        }

    def encoded(self, request: Request) -> bytes:
        """The body of the HTTP answer."""
        if self.raw is not None:
            return self.raw.encode()
        if self.status >= 400:
            error = {"message": self.text, "type": "scripted", "param": None, "code": self.error_code}
            return json.dumps({"error": error}).encode()
        return json.dumps(self.completion(request)).encode()


Script = Callable[[Request], Reply | str]
"""Says what a request gets; called in a thread of its own, so it may block."""


def play(request: Request) -> Reply:
    """A stand-in for a language model that knows the project's prompts, by the rules of `stages`."""
    return Reply(json.dumps(played(request.body, request.data, text_of(request.messages[0])), ensure_ascii=False))


WRONG_KEY = Reply("Incorrect API key provided", status=401, error_code="invalid_api_key")
FAULTS: dict[str, Reply] = {
    "429": Reply("too many requests", status=429, headers={"Retry-After": "1"}, error_code="rate_limit_exceeded"),
    "500": Reply("internal error", status=500),
    "garbage": Reply("Certainly! Here you are: ]}{ 42 %%"),
    "hang": Reply(hang=True),
}


def faulty(answer: Script, rates: Mapping[str, float], seed: int = 0) -> Script:
    """`answer` with these shares of its replies replaced by `FAULTS`; which ones depends on seed and number alone."""
    faults = [FAULTS[name] for name in rates]

    def chosen(request: Request) -> Reply | str:
        draw = random.Random(f"{seed}/{request.number}")
        [fault] = draw.choices([*faults, None], [*rates.values(), 1 - sum(rates.values())])
        return answer(request) if fault is None else fault

    return chosen


@dataclass
class Server:
    """A running server: `requests` in order of arrival, retries included; `most_in_flight` of them overlapped."""

    base_url: str
    requests: list[Request] = field(default_factory=list)
    most_in_flight: int = 0
    in_flight: int = 0


class _Http(ThreadingHTTPServer):
    request_queue_size = 1024

    def __init__(self, answer: Script, port: int, log: Path | None, key: str | None) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.answer = answer
        self.log = log
        self.key = key
        self.lock = threading.Lock()
        self.connections: set[socket.socket] = set()
        self.state = Server(f"http://127.0.0.1:{self.server_port}/v1")

    def begin(self, path: str, headers: dict[str, str], body: bytes) -> Request:
        with self.lock:
            request = Request(json.loads(body), headers, path, len(self.state.requests))
            self.state.requests.append(request)
            self.state.in_flight += 1
            self.state.most_in_flight = max(self.state.most_in_flight, self.state.in_flight)
        return request

    def end(self, request: Request) -> None:
        line = {"key": request.key, "time": time.time(), "status": request.status}
        with self.lock:
            self.state.in_flight -= 1
            if self.log:
                with self.log.open("a") as file:
                    file.write(json.dumps(line) + "\n")

    def hang_up(self) -> None:
        """Ends the connections that clients keep open, and so their threads."""
        with self.lock:
            for connection in self.connections:
                # The client may have done so first.
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 1 << 16
    server: _Http

    def setup(self) -> None:
        super().setup()
        with self.server.lock:
            self.server.connections.add(self.connection)

    def finish(self) -> None:
        with self.server.lock:
            self.server.connections.discard(self.connection)
        super().finish()

    def handle(self) -> None:
        with suppress(ConnectionError):
            super().handle()

    def do_GET(self) -> None:
        """The list of models, which knows who asks."""
        right = self.server.key in (None, (self.headers["authorization"] or "").removeprefix("Bearer "))
        reply = Reply(raw='{"object": "list", "data": []}') if right else WRONG_KEY
        self._send(reply, reply.encoded(Request({})))

    def do_POST(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = self.server.begin(self.path, headers, self.rfile.read(int(headers["content-length"])))
        try:
            reply = self.server.answer(request) if self.path == PATH else Reply("no such path", status=404)
            if self.server.key not in (None, headers.get("authorization", "").removeprefix("Bearer ")):
                reply = WRONG_KEY
            reply = Reply(reply) if isinstance(reply, str) else reply
            if self._client_leaves(None if reply.hang else reply.delay):
                self.close_connection = True
                return
            self._send(reply, reply.encoded(request))
            request.status = reply.status
        except ConnectionError:
            self.close_connection = True
        finally:
            self.server.end(request)

    def _client_leaves(self, seconds: float | None) -> bool:
        """Whether the client hangs up within so many seconds, for ever if None."""
        if seconds == 0:
            return False
        self.connection.settimeout(seconds)
        try:
            return self.connection.recv(1, socket.MSG_PEEK) == b""
        except TimeoutError:
            return False
        finally:
            self.connection.settimeout(None)

    def _send(self, reply: Reply, body: bytes) -> None:
        self.send_response(reply.status)
        for name, value in (
            {"Content-Type": "application/json", "Content-Length": str(len(body))} | reply.headers
        ).items():
            self.send_header(name, value)
        self.end_headers()
        for start in range(0, len(body), 1 if reply.pause else len(body)):
            time.sleep(reply.pause)
            self.wfile.write(body[start : start + 1] if reply.pause else body)
            self.wfile.flush()

    def log_message(self, *arguments: Any) -> None:
        """Silent."""


@contextmanager
def serve(answer: Script = play, port: int = 0, log: Path | None = None, key: str | None = None) -> Iterator[Server]:
    """A running endpoint. `answer` says what it replies to a request; `log` gets one JSON line per request when it is
    over: `key` (SHA-256 of its messages), `time`, and the `status` answered or null if the client left before that.
    With a `key`, whoever sends another one is refused.
    """
    with _Http(answer, port, log, key) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield http.state
        finally:
            http.shutdown()
            thread.join()
            http.hang_up()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--latency", type=float, default=0, help="seconds before each answer")
    parser.add_argument("--log", type=Path, help="file that gets one JSON line per request")
    parser.add_argument("--faults", default="", help="shares of replies, as in 429=0.3,500=0.1,garbage=0.05,hang=0.05")
    arguments = parser.parse_args()
    rates = {name: float(share) for name, share in (pair.split("=") for pair in arguments.faults.split(",") if pair)}

    def answer(request: Request) -> Reply:
        return replace(play(request), delay=arguments.latency)

    with serve(faulty(answer, rates), arguments.port, arguments.log) as server:
        print(server.base_url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
