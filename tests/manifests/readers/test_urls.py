import json
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from manifests.manifest import Manifest
from manifests.readers import urls
from manifests.readers.base import FileOptions
from manifests.readers.urls import Web, WebFolder
from pipeline.errors import BadImage, InputError
from stages.base import Output
from tests.helpers.pictures import png

HERE = frozenset({"127.0.0.1"})


@dataclass
class Site:
    """A server on loopback. `answers[path]`: status, headers and body of each answer in turn, the last one for good."""

    root: str = ""
    answers: dict[str, list[tuple[int, dict[str, str], bytes]]] = field(default_factory=dict)
    asked: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def says(self, path: str, status: int = 200, body: bytes = b"", **headers: str) -> str:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.answers.setdefault(path, []).append((status, {"Content-Length": str(len(body)), **named}, body))
        return self.root + path


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    there = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            turns = there.answers.get(self.path, [(404, {"Content-Length": "0"}, b"")])
            status, headers, body = turns[min(there.asked[self.path], len(turns) - 1)]
            there.asked[self.path] += 1
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *words: object) -> None:
            pass

    monkeypatch.setattr(urls, "FIRST_WAIT_S", 0.01)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    there.root = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield there
    server.shutdown()
    thread.join()
    server.server_close()


def fetch(url: str, public: bool = False) -> bytes:
    return Web(HERE, public).fetch(url)


def problem(url: str) -> str:
    with pytest.raises(BadImage) as caught:
        fetch(url)
    return str(caught.value)


def pairs(folder: Path, *lines: dict[str, object]) -> None:
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)))


def test_urls_of_a_manifest_go_through_plan_and_load(
    site: Site, tmp_path: Path, manifest: Callable[..., Manifest], loaded: Callable[[Manifest], Output]
) -> None:
    good, mask = site.says("/a.png?sig=secret", body=png()), site.says("/m.png", body=png("white"))
    pairs(
        tmp_path,
        {"image": good, "instruction": "the cup", "mask": {"file": mask}},
        {"image": f"{site.root}/none.png", "instruction": "the plate"},
        {"image": "below.png", "instruction": "the spoon"},
    )
    output = loaded(manifest(reader="jsonl", annotations="pairs.jsonl", options={"urls": ["127.0.0.1"]}))
    [row] = output.rows
    assert (row["image"], row["width"], row["branch"]) == (good, 8, "labelled")
    missing, relative = output.rejects
    assert (missing["error"], missing["message"]) == (
        "BadImage",
        f"{site.root}/none.png: the server says 404 Not Found",
    )
    assert "no field 'images'" in relative["message"]


def test_an_image_root_may_be_a_url_and_reads_nothing_above_it(
    site: Site, tmp_path: Path, manifest: Callable[..., Manifest], loaded: Callable[[Manifest], Output]
) -> None:
    site.says("/set/100%25%20%C3%BC%231.png", body=png())
    site.says("/secret.png", body=png())
    names = ["100% ü#1.png", "../secret.png", f"{site.root}/secret.png"]
    pairs(tmp_path, *({"image": name, "instruction": "the cup"} for name in names))
    output = loaded(manifest(reader="jsonl", images=f"{site.root}/set/", annotations="pairs.jsonl"))
    assert [row["image"] for row in output.rows] == [names[0]]
    outside, url = (row["message"] for row in output.rejects)
    assert "outside the image root" in outside
    assert "options: {urls: true}" in url
    assert not site.asked["/secret.png"] + site.asked["/secret.png?key=k"]


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "localhost", "[::1]", "169.254.169.254", "10.0.0.1", "[::ffff:a00:1]"]
)
def test_internal_addresses_are_asked_only_if_listed(address: str) -> None:
    with pytest.raises(BadImage, match="is not public; if it is meant, list it"):
        Web(frozenset(), public=True).fetch(f"http://{address}:9/a.png")


def test_every_public_host_may_be_asked_where_the_manifest_says_so(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    url = site.says("/a.png", body=b"image")
    monkeypatch.setattr(urls, "_public", lambda address: address == "127.0.0.1")
    assert Web(frozenset(), public=True).fetch(url) == b"image"


def test_with_a_list_other_hosts_are_refused() -> None:
    assert "images.example.org is not one that the manifest's options.urls lists" in problem(
        "http://images.example.org/a.png"
    )


def test_redirects_are_followed_but_not_inwards_and_not_for_ever(site: Site) -> None:
    site.says("/a.png", body=b"image")
    site.says("/moved", 302, Location="/a.png")
    site.says("/inwards", 302, Location="http://localhost:9/latest/meta-data")
    site.says("/file", 302, Location="file:///etc/passwd")
    site.says("/round", 301, Location="/round")
    assert fetch(f"{site.root}/moved") == b"image"
    assert "localhost is not public" in problem(f"{site.root}/inwards")
    assert "only http and https" in problem(f"{site.root}/file")
    assert "more than 5 redirects" in problem(f"{site.root}/round")


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_passing_fault_is_tried_again_and_a_lasting_one_is_named(site: Site, status: int) -> None:
    site.says("/once", status, Retry_After="0")
    once = site.says("/once", body=b"image")
    always = site.says("/always", status)
    assert fetch(once) == b"image"
    assert f"the server says {status}" in problem(always)
    assert site.asked["/always"] == urls.TRIES


def test_retry_after_is_waited_for_up_to_a_limit(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("tenacity.nap.time.sleep", waits.append)
    for asked in ("7", "86400", "soon"):
        site.says("/busy", 503, Retry_After=asked)
    site.says("/busy", body=b"image")
    assert fetch(f"{site.root}/busy") == b"image"
    assert waits == [7.0, urls.LONGEST_WAIT_S, pytest.approx(urls.FIRST_WAIT_S * 4)]


def test_a_broken_connection_is_tried_again(site: Site) -> None:
    site.says("/short", body=b"im", Content_Length="5")
    short = site.says("/short", body=b"image")
    assert fetch(short) == b"image"
    assert "4 times" in problem("http://127.0.0.1:1/refused.png")


@pytest.mark.parametrize("headers", [{}, {"Content_Length": "1000000000000"}])
def test_a_huge_body_is_not_read_whole(site: Site, monkeypatch: pytest.MonkeyPatch, headers: dict[str, str]) -> None:
    monkeypatch.setattr(urls, "MAX_FILE_BYTES", 1000)
    url = site.says("/huge", body=b"x" * 2000, **headers)
    assert "larger than the limit" in problem(url)
    assert site.asked["/huge"] == 1


def test_an_answer_that_drips_is_given_up(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urls, "WHOLE_S", 0.0)
    assert "no whole answer in 0 s" in problem(site.says("/slow", body=b"x"))


def test_messages_hide_what_may_be_secret() -> None:
    with pytest.raises(BadImage) as caught:
        fetch("http://me:password@other.example/a.png?signature=s#f")
    assert str(caught.value).startswith("http://other.example/a.png: ")


@pytest.mark.parametrize("url", ["http://", "http://[", "https://a\x00b/", "http://127.0.0.1:99999/a", "http:///a.png"])
def test_no_url_gives_a_traceback(url: str) -> None:
    with pytest.raises(BadImage):
        fetch(url)


def test_a_root_that_is_no_url_names_itself() -> None:
    with pytest.raises(InputError, match="image root is not a usable URL"):
        WebFolder("http://", "image root", frozenset())


@pytest.mark.parametrize("host", ["https://a.org", "a.org/x", "*.org", "a.org:80", ""])
def test_a_listed_host_is_a_host_name(host: str) -> None:
    with pytest.raises(ValueError, match="is no host name"):
        FileOptions(urls=[host])


def test_one_host_may_be_given_without_a_list() -> None:
    assert FileOptions.model_validate({"urls": "Images.example.org"}).urls == ["images.example.org"]


@pytest.mark.parametrize("root", ["https://me:hush@a.org/set", "https://a.org/set?key=hush"])
def test_a_root_with_a_secret_is_refused_and_the_secret_not_told(root: str) -> None:
    with pytest.raises(InputError, match=r"would be written into run\.json") as caught:
        WebFolder(root, "image root", frozenset())
    assert "hush" not in str(caught.value)
