"""The batch interface of a language model's server on loopback: files, batches, and chat completions beside them.

`with serve_batches(play) as server: ... server.base_url ... server.batches`.
"""

import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.helpers.llm_server import PATH, Reply, Request, Script, play

_MULTIPART = re.compile(rb'filename="([^"]+)".*?\r\n\r\n(.*?)\r\n--', re.DOTALL)


@dataclass(frozen=True)
class End:
    """How a batch ends: its last `status`; `answered` says how many of its requests were, None for all; `junk` are
    further lines of its output file; `code` is what was wrong with the batch as a whole."""

    status: str = "completed"
    answered: int | None = None
    junk: tuple[str, ...] = ()
    code: str | None = None


@dataclass
class BatchServer:
    """A running server; change its fields to make it fail.

    `looks` is how often a batch is said to be in progress; `end` says how the batch of that number ends. `refuse` gives
    the status of an error instead of an answer, `code` is that error's; `lose` says whether an answer gets lost once
    all is done; each by method and path. `page` is the most that a list gives at once, `forgets` drops metadata.

    `calls` counts methods and paths, ids left out; `live` are the chat requests.
    """

    answer: Script
    base_url: str = ""
    looks: int = 1
    end: Callable[[int], End] = lambda number: End()
    refuse: Callable[[str, str], int | None] = lambda method, path: None
    lose: Callable[[str, str], bool] = lambda method, path: False
    code: str | None = None
    page: int = 100
    forgets: bool = False
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    contents: dict[str, bytes] = field(default_factory=dict)
    batches: dict[str, dict[str, Any]] = field(default_factory=dict)
    calls: Counter[str] = field(default_factory=Counter)
    live: list[Request] = field(default_factory=list)
    lock: threading.RLock = field(default_factory=threading.RLock)

    @property
    def asked(self) -> Counter[str]:
        """How many batches each question was in, by its key."""
        return Counter(line["custom_id"] for batch in self.batches.values() for line in self.requests(batch))

    def requests(self, batch: dict[str, Any]) -> list[dict[str, Any]]:
        """The lines that a batch was made of."""
        return [json.loads(line) for line in self.contents[batch["input_file_id"]].splitlines()]

    def handle(self, method: str, target: str, body: bytes) -> tuple[int, Any]:
        """Status and JSON value, or bytes, that a request gets."""
        url = urlsplit(target)
        path, _, name = url.path.removeprefix("/v1/").partition("/")
        if url.path == PATH:
            request = Request(json.loads(body), number=len(self.live))
            self.live.append(request)
            reply = self.answer(request)
            return 200, (Reply(reply) if isinstance(reply, str) else reply).completion(request)
        known = {"files": self.files, "batches": self.batches}.get(path, {})
        if method == "POST":
            return 200, self._upload(body) if path == "files" else self._create(json.loads(body))
        if not name and path in ("files", "batches"):
            return 200, self._listed(list(known.values())[::-1], parse_qs(url.query))
        if name.partition("/")[0] not in known:
            return 404, {"error": {"message": f"nothing at {url.path}", "code": "not_found"}}
        return 200, self.contents[name.partition("/")[0]] if path == "files" else self._seen(self.batches[name])

    def _listed(self, items: list[dict[str, Any]], query: dict[str, list[str]]) -> dict[str, Any]:
        after = query.get("after", [""])[0]
        start = next((k + 1 for k, item in enumerate(items) if item["id"] == after), 0)
        shown = items[start : start + min(self.page, int(query.get("limit", ["20"])[0]))]
        return {"object": "list", "data": shown, "has_more": start + len(shown) < len(items)}

    def _upload(self, body: bytes) -> dict[str, Any]:
        [(filename, content)] = _MULTIPART.findall(body)
        return self._keep(filename.decode(), content, "batch")

    def _keep(self, filename: str, content: bytes, purpose: str) -> dict[str, Any]:
        name = f"file-{len(self.files)}"
        self.contents[name] = content
        self.files[name] = {"id": name, "object": "file", "filename": filename, "purpose": purpose, "created_at": 0}
        return self.files[name]

    def _create(self, wanted: dict[str, Any]) -> dict[str, Any]:
        name = f"batch_{len(self.batches)}"
        metadata = None if self.forgets else wanted["metadata"]
        fields = {"id": name, "object": "batch", "status": "validating", "created_at": 0, "looks": 0}
        self.batches[name] = wanted | fields | {"metadata": metadata}
        return self.batches[name]

    def _seen(self, batch: dict[str, Any]) -> dict[str, Any]:
        if batch["status"] in ("validating", "in_progress"):
            batch["status"] = "in_progress"
            batch["looks"] += 1
            if batch["looks"] > self.looks:
                self._finish(batch, self.end(int(batch["id"].partition("_")[2])))
        return batch

    def _finish(self, batch: dict[str, Any], end: End) -> None:
        good, bad = list(end.junk), []
        for number, line in enumerate(self.requests(batch)):
            if end.answered is not None and number >= end.answered:
                bad.append({"custom_id": line["custom_id"], "response": None, "error": {"code": f"batch_{end.status}"}})
                continue
            request = Request(line["body"], number=number)
            reply = self.answer(request)
            reply = Reply(reply) if isinstance(reply, str) else reply
            response = {"status_code": reply.status, "body": json.loads(reply.encoded(request))}
            result = {"id": f"r{number}", "custom_id": line["custom_id"], "response": response, "error": None}
            if reply.status == 200:
                good.insert(0, json.dumps(result))
            else:
                bad.append(result)
        batch["status"] = end.status
        if end.code:
            batch["errors"] = {"object": "list", "data": [{"code": end.code, "message": "as scripted", "line": None}]}
        if good:
            batch["output_file_id"] = self._keep("output", "\n".join(good).encode() + b"\n", "batch_output")["id"]
        if bad:
            lines = "".join(json.dumps(line) + "\n" for line in bad)
            batch["error_file_id"] = self._keep("errors", lines.encode(), "batch_output")["id"]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 1 << 16
    state: BatchServer

    def do_GET(self) -> None:
        self._answer("GET", b"")

    def do_POST(self) -> None:
        self._answer("POST", self.rfile.read(int(self.headers["content-length"])))

    def _answer(self, method: str, body: bytes) -> None:
        path = urlsplit(self.path).path
        with self.state.lock:
            self.state.calls[f"{method} {re.sub('(?<=files/|tches/)[^/]+', '*', path)}"] += 1
            status = self.state.refuse(method, path)
            if status is None:
                status, value = self.state.handle(method, self.path, body)
            else:
                value = {"error": {"message": "refused as scripted", "code": self.state.code}}
            if self.state.lose(method, path):
                self.close_connection = True
                return
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: Any) -> None:
        """Silent."""


@contextmanager
def serve_batches(answer: Script = play) -> Iterator[BatchServer]:
    """A running endpoint, whose requests, in batches and live, get what `answer` says."""
    state = BatchServer(answer)
    handler = type("Handler", (_Handler,), {"state": state})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        http.daemon_threads = True
        state.base_url = f"http://127.0.0.1:{http.server_port}/v1"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield state
        finally:
            http.shutdown()
            thread.join()
