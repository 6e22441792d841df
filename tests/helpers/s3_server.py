"""S3 on loopback, with faults: moto's server in a process of its own.

`with serve_s3() as server: server.create("bucket") ... server.uri("bucket/run")`; faults are asked for with `faults`.
A process of its own, because pyarrow holds the interpreter's lock while some of its calls wait for an answer.
"""

import json
import logging
import random
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any
from urllib.request import Request, urlopen

from pyarrow import fs

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_REGION": "us-east-1",
}
"""What a user of the server needs; moto takes any key."""
PAGE = 20
"""Objects in an answer to a listing, where S3 gives a thousand at most."""
_ADMIN = "/_faults"
_LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Faults:
    """What goes wrong with a share of the requests whose "METHOD /path?query" has a match of the pattern `only`.

    `kinds`, one drawn for each: `500`, `503` (SlowDown), `403`; `reset`, before the request is worked on; `lost`, after
    it; `cut`, in the middle of the answer's body; `slow`, an answer that comes after `seconds`.
    """

    share: float = 0.0
    kinds: tuple[str, ...] = ("500",)
    only: str = ""
    seconds: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class S3Server:
    """A running server."""

    endpoint: str

    def create(self, bucket: str) -> None:
        """Makes a bucket."""
        urlopen(Request(f"{self.endpoint}/{bucket}", method="PUT"), timeout=30).close()

    def uri(self, path: str) -> str:
        """The URI of `bucket/path`, which needs no endpoint in the environment."""
        return f"s3://{path}?endpoint_override={self.endpoint}"

    def files(self) -> fs.S3FileSystem:
        """A plain client, for what a test puts there and finds there."""
        return fs.S3FileSystem(
            endpoint_override=self.endpoint, access_key="test", secret_key="test", region="us-east-1"
        )

    @contextmanager
    def faults(self, share: float = 1.0, *kinds: str, **fields: Any) -> Iterator[None]:
        """Inside the block requests fail, see `Faults`."""
        self._admin(Faults(share, kinds or ("500",), **fields))
        try:
            yield
        finally:
            self._admin(Faults())

    def counts(self) -> Counter[str]:
        """Requests so far by method, and `faults`."""
        with urlopen(self.endpoint + _ADMIN, timeout=30) as answer:
            return Counter(json.load(answer))

    def _admin(self, faults: Faults) -> None:
        urlopen(Request(self.endpoint + _ADMIN, json.dumps(asdict(faults)).encode()), timeout=30).close()


@contextmanager
def serve_s3() -> Iterator[S3Server]:
    """A server without buckets; it ends with the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin and process.stdout
    try:
        port = int(process.stdout.readline())
        yield S3Server(f"http://{_LOOPBACK}:{port}")
    finally:
        process.stdin.close()
        process.wait(timeout=30)


class _Faulty:
    """WSGI middleware that makes the requests fail that it is told to."""

    def __init__(self, app: Callable[..., Iterable[bytes]]) -> None:
        self._app, self._lock = app, threading.Lock()
        self._faults, self._random = Faults(), random.Random(0)
        self._counts: Counter[str] = Counter()

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"] == _ADMIN:
            return self._admin(environ, start)
        environ["QUERY_STRING"] = environ["QUERY_STRING"].replace("max-keys=1000", f"max-keys={PAGE}")
        fault = self._draw(environ)
        if fault in ("500", "503", "403"):
            _drain(environ)
            return self._refuse(environ, fault, start)
        if fault == "reset":
            _reset(environ["werkzeug.socket"])
            return []
        if fault == "slow":
            time.sleep(self._faults.seconds)
        answer = b"".join(self._app(environ, start))
        if fault == "lost":
            _reset(environ["werkzeug.socket"])
        if fault == "cut":
            return _cut(environ["werkzeug.socket"], answer)
        return [answer]

    def _draw(self, environ: dict[str, Any]) -> str | None:
        request = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}?{environ.get('QUERY_STRING', '')}"
        with self._lock:
            self._counts[environ["REQUEST_METHOD"]] += 1
            if not re.search(self._faults.only, request) or self._random.random() >= self._faults.share:
                return None
            self._counts["faults"] += 1
            return self._random.choice(self._faults.kinds)

    def _admin(self, environ: dict[str, Any], start: Callable[..., Any]) -> list[bytes]:
        with self._lock:
            if environ["REQUEST_METHOD"] == "POST":
                fields = json.loads(_drain(environ))
                self._faults, self._random = Faults(**fields), random.Random(fields["seed"])
            start("200 OK", [("Content-Type", "application/json")])
            return [json.dumps(self._counts).encode()]

    def _refuse(self, environ: dict[str, Any], status: str, start: Callable[..., Any]) -> list[bytes]:
        code = {"500": "InternalError", "503": "SlowDown", "403": "AccessDenied"}[status]
        start(f"{status} {code}", [("Content-Type", "application/xml")])
        text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>We failed.</Message></Error>"
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [text.encode()]


def _drain(environ: dict[str, Any]) -> bytes:
    return environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))


def _cut(connection: socket.socket, answer: bytes) -> Iterator[bytes]:
    yield answer[: len(answer) // 2]
    _reset(connection)
    yield answer[len(answer) // 2 :]


def _reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    # Closed by its handler, which still holds it.
    connection.shutdown(socket.SHUT_RDWR)


def _main() -> None:
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
    from werkzeug.serving import make_server

    # Every request, and every connection that was reset on purpose.
    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    sys.stderr = open("/dev/null", "w")  # noqa: SIM115, PTH123
    app = _Faulty(DomainDispatcherApplication(create_backend_app))
    server = make_server(_LOOPBACK, 0, app, threaded=True, request_handler=MotoRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_port, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    _main()
