"""Local disks and object storage: how a URI is opened, what is tried again, and what is said when it fails for good."""

import errno
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import pyarrow as pa
from pyarrow import fs
from pyarrow.fs import FileSystem, LocalFileSystem
from tenacity import Retrying, before_sleep_log, retry_if_exception, stop_after_delay, wait_random_exponential

from pipeline.errors import InputError, RunFailed

log = logging.getLogger(__name__)

ATTEMPTS = 8
"""Of one request to S3, by pyarrow; its pauses double from 50 ms on, 6 s in all."""
REQUEST_SECONDS, CONNECT_SECONDS = 20.0, 5.0
"""A request to S3 has failed when for so long no byte came or went (on Linux too, whatever pyarrow's pages say)."""
PATIENCE_SECONDS = 60.0
"""For how long an operation is begun anew, as what it asks for may fail in ways that pyarrow does not retry."""
LONGEST_WAIT = 10.0

_FIXES = {errno.ENOSPC: "make room there", errno.EDQUOT: "make room there"}
_REMOTE_FIX = "see to that storage, its credentials and endpoint (AWS_* variables, or ?endpoint_override= in the URI)"

T = TypeVar("T")


class StorageFailed(RunFailed, OSError):
    """Storage failed, retries included; the message names the file and the fix."""


def open_storage(location: str) -> tuple[FileSystem, str]:
    """File system and path of a local path or a URI that pyarrow knows (`s3://`, `gs://`, `fsspec+https://` …).

    S3's endpoint is AWS_ENDPOINT_URL, AWS_ENDPOINT_URL_S3 or the URI's `endpoint_override`, credentials are where AWS's
    own tools find them.

    Raises:
        InputError: the URI is malformed, has a password in it, or its storage is unknown or not installed.
    """
    if "://" not in location:
        return LocalFileSystem(), str(Path(location).absolute())
    if urlsplit(location).password:
        # It would be printed, and written into run.json.
        raise InputError(f"{_without_secret(location)}: a URI must hold no key; set AWS_ACCESS_KEY_ID and the like")
    try:
        storage, path = fs.FileSystem.from_uri(location)
    except (pa.ArrowInvalid, ValueError, ImportError, OSError) as error:
        raise InputError(f"{location}: no path or URI that this machine can open: {reason(error)}") from error
    if isinstance(storage, fs.S3FileSystem):
        return _patient_s3(storage), path
    return storage, path


def _without_secret(location: str) -> str:
    parts = urlsplit(location)
    return parts._replace(netloc=f"…@{parts.netloc.rpartition('@')[2]}", query="").geturl()


def _patient_s3(storage: fs.S3FileSystem) -> fs.S3FileSystem:
    # `from_uri` knows the URI's options and AWS's variables, but takes no others; what a file system pickles are the
    # arguments of its constructor.
    arguments = storage.__reduce__()[1][0]
    return fs.S3FileSystem(
        **arguments
        | {
            "retry_strategy": fs.AwsDefaultS3RetryStrategy(max_attempts=ATTEMPTS),
            "request_timeout": REQUEST_SECONDS,
            "connect_timeout": CONNECT_SECONDS,
            # One PUT for what is small, instead of the three requests of an upload in parts.
            "allow_delayed_open": True,
        }
    )


class Storage:
    """What `open_storage` opens, as it is to be kept: a forked process opens it anew, for two that share connections
    would get each other's answers."""

    def __init__(self, location: str) -> None:
        """Raises InputError: see `open_storage`."""
        self.location = location
        self._opened_by, (self._fs, self.path) = os.getpid(), open_storage(location)

    def __reduce__(self) -> tuple[type["Storage"], tuple[str]]:
        return Storage, (self.location,)

    @property
    def fs(self) -> FileSystem:
        """The file system, for this process; `path` is the location's in it."""
        if self._opened_by != os.getpid():
            self._opened_by, (self._fs, self.path) = os.getpid(), open_storage(self.location)
        return self._fs

    @property
    def is_local(self) -> bool:
        """Whether it is this machine's disk."""
        return isinstance(self._fs, LocalFileSystem)

    def may_pass(self, error: BaseException) -> bool:
        """Whether another try may help: pyarrow's errors of object storage have no number."""
        passing = isinstance(error, ConnectionError | TimeoutError) or (type(error) is OSError and error.errno is None)
        return passing and not self.is_local

    def retried(self, operation: Callable[[], T], seconds: float) -> T:
        """The result of an operation, begun anew for so long while another try may help; raises as it does."""
        retrying = Retrying(
            retry=retry_if_exception(self.may_pass),
            stop=stop_after_delay(seconds),
            wait=wait_random_exponential(multiplier=0.2, max=LONGEST_WAIT),
            before_sleep=before_sleep_log(log, logging.WARNING),
            reraise=True,
        )
        return retrying(operation)

    def patiently(self, what: str, operation: Callable[[], T]) -> T:
        """The result of an operation; `what` says in an error which one, as "FILE cannot be read".

        Raises:
            FileNotFoundError: as the operation does.
            StorageFailed: it failed, after `PATIENCE_SECONDS` where another try may help.
        """
        try:
            return self.retried(operation, PATIENCE_SECONDS)
        except FileNotFoundError:
            raise
        except OSError as error:
            local = _FIXES.get(error.errno or 0, "mend its permissions or its disk")
            raise StorageFailed(f"{what}: {reason(error)}; {local if self.is_local else _REMOTE_FIX}") from error


def reason(error: Exception) -> str:
    """What an error of storage says, in one line and without the path."""
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return (said.strip().splitlines() or [type(error).__name__])[0]
