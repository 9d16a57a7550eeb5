"""The object store: where workers put pictures and the jobs function reads them.

A key is written once and never again, and holds the attempt that wrote it, so a worker whose lease was lost cannot
change what another one published. Redis never holds a byte of a picture.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, NotFoundError
from obstore.store import LocalStore, S3Store

from darkroom.errors import NotFound, TemporaryError
from darkroom.logs import logger

CHUNK_BYTES = 256 * 1024
"""What is read from the store at a time while it is sent on."""

READ_PATIENCE = timedelta(seconds=10)
"""How long a bucket that does not answer is asked again for what somebody waits for. obstore asks for three minutes,
which is right for a picture that a GPU has just made, and too long for a caller and for a process that is to end."""

AT_ONCE = 16
"""Threads of a store, and so the requests that a process has under way at it."""

T = TypeVar("T")

_log = logger(__name__)


class StoreUnavailable(TemporaryError):
    slug, title = "store-unavailable", "The object store does not answer"


def artifact_key(*, tenant: str, job_id: str, attempt: int, index: int, sha256: str, extension: str) -> str:
    """`<tenant>/<job>/<attempt>/<n>-<sha256>.<ext>`."""
    return f"{tenant}/{job_id}/{attempt}/{index}-{sha256}.{extension}"


def artifact_folder(*, tenant: str, job_id: str) -> str:
    """What the keys of all artifacts of a job begin with."""
    return f"{tenant}/{job_id}/"


def sha256_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class ArtifactStore:
    """A store by its address: `file:///folder` (made if absent) or `s3://bucket/prefix`.

    What is awaited runs in threads of this process. obstore's own coroutines are finished by threads of Rust's, and one
    that still is in Python while the interpreter ends takes the process down with SIGABRT, its work done
    (https://github.com/PyO3/pyo3-async-runtimes/issues/40): one in ten short commands ended so.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._store: Any
        self._read_from: Any
        if parts.scheme == "file":
            folder = Path(unquote(parts.path))
            self._store = self._read_from = LocalStore(folder, mkdir=True, automatic_cleanup=True)
        else:
            prefix = parts.path.strip("/") or None
            self._store = S3Store(parts.netloc, prefix=prefix)
            self._read_from = S3Store(parts.netloc, prefix=prefix, retry_config={"retry_timeout": READ_PATIENCE})
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="darkroom-store")

    def put(self, key: str, content: bytes) -> None:
        """Create an object. One that is there stays as it is: its key holds its hash, so it is the same bytes."""
        try:
            obstore.put(self._store, key, content, mode="create")
        except AlreadyExistsError:
            return
        except Exception as error:
            raise _unavailable("the object store took no artifact", error) from error

    async def open(self, key: str) -> tuple[int, AsyncIterator[bytes]]:
        """The size in bytes of an object and its content in chunks.

        Raises NotFound, StoreUnavailable. The chunks may raise StoreUnavailable, too.
        """
        try:
            found = await self._in_a_thread(lambda: obstore.get(self._read_from, key))
        except (NotFoundError, FileNotFoundError):
            raise NotFound("there is no such artifact") from None
        except Exception as error:
            raise _unavailable("the object store gave no artifact", error) from error
        return found.meta["size"], self._chunks(iter(found.stream(min_chunk_size=CHUNK_BYTES)))

    async def remove(self, folder: str) -> None:
        """Remove everything below a folder; there may be nothing, and others may be removing it. StoreUnavailable."""
        try:
            await self._in_a_thread(lambda: self._remove(folder))
        except Exception as error:
            _log.warning("artifacts_not_removed", folder=folder, error=str(error))
            raise StoreUnavailable("the object store did not remove the artifacts", retry_after=5) from error

    async def keys(self, prefix: str) -> list[str]:
        """The keys below a prefix, in order."""
        return await self._in_a_thread(lambda: self._keys(prefix))

    def _remove(self, folder: str) -> None:
        while keys := self._keys(folder):
            with suppress(NotFoundError, FileNotFoundError):
                obstore.delete(self._read_from, keys)

    def _keys(self, prefix: str) -> list[str]:
        return sorted(item["path"] for page in obstore.list(self._read_from, prefix=prefix) for item in page)

    async def _chunks(self, stream: Iterator[Any]) -> AsyncIterator[bytes]:
        try:
            while (chunk := await self._in_a_thread(lambda: next(stream, None))) is not None:
                yield bytes(chunk)
        except Exception as error:
            raise _unavailable("the object store broke off in an artifact", error) from error

    async def _in_a_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)


def _unavailable(detail: str, error: Exception) -> StoreUnavailable:
    """The store's own words may name folders and hosts: they are for the log, not for callers."""
    _log.warning("store_failed", detail=detail, error=str(error))
    return StoreUnavailable(detail)
