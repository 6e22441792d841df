"""Images from http(s) URLs: bounded in bytes, time, tries and redirects, and only from hosts the manifest allows."""

import ipaddress
import socket
import time
from functools import cache
from urllib.parse import quote

import httpx2
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt

from manifests.readers.files import MAX_FILE_BYTES, Folder
from pipeline.errors import BadImage, InputError

CONNECT_S, READ_S, WHOLE_S = 10.0, 30.0, 120.0
"""Seconds to wait for a connection, for the next bytes, and for one whole answer."""

TRIES = 4
FIRST_WAIT_S = 1.0
"""Seconds before the second try; each further wait is twice as long, unless the server says Retry-After."""
LONGEST_WAIT_S = 60.0
MAX_REDIRECTS = 5

_LATER = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses that may be another one next time."""


class _Later(Exception):
    """No answer this time; `wait` is what the server asks for in seconds, if it does."""

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


def is_url(name: str) -> bool:
    """Whether a name is an http(s) URL."""
    return name[:8].lower().startswith(("http://", "https://"))


class Web:
    """Fetches URLs. A host in `hosts` may be anywhere, also in this network; with `public`, so may every other host be
    that has public addresses only. So no data file makes a worker ask an internal service that nobody named."""

    def __init__(self, hosts: frozenset[str], public: bool) -> None:
        self._hosts = hosts
        self._public = public

    def fetch(self, url: str) -> bytes:
        """The body of the answer, redirects followed: to the hosts named and to any public one.

        Connection errors and statuses such as 429 and 503 are tried again, `TRIES` times in all, after the seconds that
        Retry-After asks for, at most `LONGEST_WAIT_S`.

        Raises:
            BadImage: the host is not allowed or gives no such file, or one larger than `MAX_FILE_BYTES`; the message
                names the URL without its query, which may hold a signature.
        """
        tries = Retrying(
            retry=retry_if_exception_type(_Later), stop=stop_after_attempt(TRIES), wait=_seconds, reraise=True
        )
        try:
            return tries(self._once, url)
        except _Later as error:
            raise BadImage(f"{_shown(url)}: {error}, {TRIES} times") from error
        except BadImage as error:
            raise BadImage(f"{_shown(url)}: {error}") from error

    def _once(self, url: str) -> bytes:
        until = time.monotonic() + WHOLE_S
        target = _parsed(url)
        self._check(target, self._public)
        for _ in range(MAX_REDIRECTS + 1):
            try:
                with _client().stream("GET", target) as answer:
                    if answer.next_request is None:
                        return _body(answer, until)
                    target = answer.next_request.url
            except (httpx2.UnsupportedProtocol, httpx2.InvalidURL, httpx2.DecodingError) as error:
                raise BadImage(_reason(error)) from error
            except httpx2.RequestError as error:
                raise _Later(_reason(error)) from error
            # Whoever may be asked at all may also send us on, as to a content network; but never inwards.
            self._check(target, True)
        raise BadImage(f"more than {MAX_REDIRECTS} redirects")

    def _check(self, url: httpx2.URL, public: bool) -> None:
        if url.scheme not in ("http", "https"):
            raise BadImage(f"leads to '{url.scheme}:', only http and https are fetched")
        if url.host in self._hosts:
            return
        if not public:
            raise BadImage(f"host {url.host} is not one that the manifest's options.urls lists")
        try:
            found = socket.getaddrinfo(url.raw_host.decode("ascii"), url.port, type=socket.SOCK_STREAM)
        except socket.gaierror as error:
            if error.errno == socket.EAI_AGAIN:
                raise _Later(f"host {url.host} cannot be looked up now") from error
            raise BadImage(f"no such host {url.host}") from error
        except (UnicodeError, OverflowError) as error:
            raise BadImage(f"not a usable host name: {error}") from error
        if not all(_public(str(address[4][0])) for address in found):
            raise BadImage(f"host {url.host} is not public; if it is meant, list it: options: {{urls: [{url.host}]}}")


class WebFolder(Folder):
    """An image root at an http(s) URL."""

    def __init__(self, location: str, label: str, hosts: frozenset[str]) -> None:
        try:
            url = _parsed(location)
        except BadImage as error:
            raise InputError(f"{_shown(location)}: the {label} is {error}; mend it in the manifest") from error
        if url.userinfo or url.query:
            # A run keeps its manifest as it was read.
            problem = "holds a password or a query, which would be written into run.json; use a URL without"
            raise InputError(f"{_shown(location)}: the {label} {problem}")
        self.location = location
        self._label = label
        self._web = Web(hosts | {url.host}, public=False)

    def exists(self) -> bool:
        """Always: a web server need not answer for a folder."""
        return True

    def read(self, path: str) -> bytes:
        """All bytes of a file; see `Web.fetch`.

        Raises:
            BadImage: `path` is outside the folder, or the server does not give it.
        """
        return self._web.fetch(f"{self.location.rstrip('/')}/{quote(self._inside(path), errors='replace')}")


@cache
def _client() -> httpx2.Client:
    """One per process, shared by its threads: connections are kept open. Bodies are taken as they are."""
    return httpx2.Client(
        timeout=httpx2.Timeout(READ_S, connect=CONNECT_S),
        headers={"User-Agent": "ivm-mix", "Accept-Encoding": "identity"},
    )


def _body(answer: httpx2.Response, until: float) -> bytes:
    status = answer.status_code
    if status in _LATER:
        asked = answer.headers.get("retry-after", "").strip()
        raise _Later(_status(answer), float(asked) if asked.isdecimal() else None)
    if status != 200:
        raise BadImage(_status(answer))
    length = answer.headers.get("content-length", "")
    body = bytearray()
    if not (length.isdecimal() and int(length) > MAX_FILE_BYTES):
        for block in answer.iter_bytes():
            body += block
            if len(body) > MAX_FILE_BYTES:
                break
            if time.monotonic() > until:
                raise _Later(f"no whole answer in {WHOLE_S:.0f} s")
        else:
            return bytes(body)
    raise BadImage(f"larger than the limit of {MAX_FILE_BYTES:,} bytes")


def _seconds(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    asked = error.wait if isinstance(error, _Later) else None
    return min(FIRST_WAIT_S * 2 ** (state.attempt_number - 1) if asked is None else asked, LONGEST_WAIT_S)


def _parsed(url: str) -> httpx2.URL:
    try:
        parsed = httpx2.URL(url)
    except (httpx2.InvalidURL, UnicodeError) as error:
        raise BadImage(f"not a usable URL: {error}") from error
    if not parsed.host or (parsed.port or 0) > 65535:
        raise BadImage("not a usable URL: it names no host, or no port that there is")
    return parsed


def _public(address: str) -> bool:
    # An IPv4 address in an IPv6 one is what counts; a multicast address can be "global" too.
    parsed = ipaddress.ip_address(address.partition("%")[0])
    inner = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return (inner or parsed).is_global and not (inner or parsed).is_multicast


def _status(answer: httpx2.Response) -> str:
    return f"the server says {answer.status_code} {answer.reason_phrase}".rstrip()


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _shown(url: str) -> str:
    """The URL without user, password, query and fragment."""
    scheme, _, rest = url.partition("://")
    host, slash, path = rest.partition("?")[0].partition("#")[0].partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"
