"""The object store: workers store artifacts in it, and the jobs function reads them.

A key is written only once, and contains the attempt that wrote it, so that a worker whose lease was lost cannot change
artifacts that another one published. Redis stores no artifacts.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, InvalidPathError, NotFoundError
from obstore.store import LocalStore, S3Store

from darkroom.errors import NotFound, PermanentError, TemporaryError
from darkroom.jobs import is_tenant
from darkroom.logs import logger

if TYPE_CHECKING:
    from obstore import GetOptions

CHUNK_BYTES = 256 * 1024
"""The size of the chunks in which an artifact is read and sent."""

RETRY_TIMEOUT = timedelta(seconds=10)
"""How long obstore repeats a request to a bucket that does not respond. Its default of three minutes is too long for
callers and for a process that drains; a worker with finished artifacts repeats the whole call (`upload.py`)."""

PROBE_KEY = ".probe/{worker}"
"""The key that a worker writes to test whether the store accepts objects. No tenant's name begins with a dot."""

REFUSED_KEYS = re.compile(r"File name too long|KeyTooLong|XMinioInvalidObjectName|InvalidObjectName|EntityTooLarge")
"""The errors of file systems and S3 servers that never accept an object of this name or size."""

PAGE = 1000
"""Objects in one page of a list: the limit of S3 servers."""

AT_ONCE = 16
"""Threads of a store, and so the limit of a process's concurrent requests to it."""

T = TypeVar("T")

_log = logger(__name__)


class StoreUnavailable(TemporaryError):
    slug, title = "store-unavailable", "The object store is unavailable"


class StoreRefused(PermanentError):
    """The store will never accept this object: its key or its size is invalid."""

    slug, title = "store-refused", "The object store refuses the object"


def artifact_key(*, tenant: str, job_id: str, attempt: int, index: int, sha256: str, extension: str) -> str:
    """The key `<tenant>/<job>/<attempt>/<n>-<sha256>.<ext>`. Raises StoreRefused for an invalid name of a tenant."""
    if not is_tenant(tenant):
        raise StoreRefused(f"the tenant's name {tenant!r} cannot begin a key of the object store")
    return f"{tenant}/{job_id}/{attempt}/{index}-{sha256}.{extension}"


def artifact_folder(*, tenant: str, job_id: str) -> str:
    """The common prefix of the keys of a job's artifacts."""
    return f"{tenant}/{job_id}/"


def sha256_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass(frozen=True)
class Stored:
    """An object in the store, of `size` bytes."""

    key: str
    written: datetime
    size: int


class ArtifactStore:
    """A store by its address: `file:///folder` (made if absent) or `s3://bucket/prefix`.

    Asynchronous methods run in threads of this process. obstore's own coroutines are finished by threads of Rust, and
    one that is in Python while the interpreter exits aborts the process with SIGABRT after its work is done
    (https://github.com/PyO3/pyo3-async-runtimes/issues/40): one in ten short commands did.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._folder = Path(unquote(parts.path)) if parts.scheme == "file" else None
        self._opened: Any = None
        if self._folder is None:
            prefix = parts.path.strip("/") or None
            self._opened = S3Store(parts.netloc, prefix=prefix, retry_config={"retry_timeout": RETRY_TIMEOUT})
        with suppress(StoreUnavailable):  # the first call raises it again
            self._opened = self._store
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="darkroom-store")

    def put(self, key: str, content: bytes) -> None:
        """Create an object. An existing one stays unchanged: its key contains its hash, so the bytes are the same.

        Raises StoreUnavailable, and StoreRefused for an object that the store will never accept.
        """
        try:
            obstore.put(self._store, key, content, mode="create")
        except AlreadyExistsError:
            return
        except Exception as error:
            if _is_of_the_key(error):
                raise StoreRefused("the object store refuses the name of the artifact") from error
            raise _unavailable("the object store accepted no artifact", error) from error

    def probe(self, worker: str, content: bytes) -> None:
        """Write `content` under a key of no job, and remove it. Raises StoreUnavailable."""
        key = PROBE_KEY.format(worker=worker)
        try:
            obstore.put(self._store, key, content)
        except Exception as error:
            raise _unavailable("the object store accepts nothing", error) from error
        with suppress(Exception):  # a worker may lack the right to delete; the next probe overwrites the object
            obstore.delete(self._store, key)

    async def find(self, key: str) -> Stored:
        """An object, without its content. Raises NotFound, StoreUnavailable."""
        found = await self._read(lambda: obstore.head(self._store, key))
        return Stored(key, found["last_modified"], found["size"])

    async def open(self, key: str, *, part: tuple[int, int] | None = None) -> tuple[Stored, AsyncIterator[bytes]]:
        """An object and its content in chunks, or the range `part` of it: the first byte, and the first byte behind it.

        Raises NotFound, StoreUnavailable. The chunks may raise StoreUnavailable, too.
        """
        options: GetOptions = {} if part is None else {"range": part}
        found = await self._read(lambda: obstore.get(self._store, key, options=options))
        stored = Stored(key, found.meta["last_modified"], found.meta["size"])
        return stored, self._chunks(iter(found.stream(min_chunk_size=CHUNK_BYTES)))

    async def remove(self, folder: str) -> None:
        """Remove all objects below a folder, which may be empty or removed concurrently. Raises StoreUnavailable."""
        try:
            await self._in_a_thread(lambda: self._remove(folder))
        except Exception as error:
            if _is_of_the_key(error):
                return  # no object can have such a key
            _log.warning("artifacts_not_removed", folder=folder, error=str(error))
            raise StoreUnavailable("the object store did not remove the artifacts", retry_after=5) from error

    async def discard(self, keys: Sequence[str]) -> None:
        """Remove these objects; those that do not exist are ignored. Raises StoreUnavailable."""
        try:
            await self._in_a_thread(lambda: self._delete(keys))
        except Exception as error:
            raise _unavailable("the object store did not remove the artifacts", error) from error

    async def pages(self) -> AsyncIterator[list[Stored]]:
        """All objects of the store, page by page. Raises StoreUnavailable."""
        try:
            listing = iter(await self._in_a_thread(lambda: obstore.list(self._store, chunk_size=PAGE)))
            while (page := await self._in_a_thread(lambda: next(listing, None))) is not None:
                yield [Stored(item["path"], item["last_modified"], item["size"]) for item in page]
        except GeneratorExit:
            raise
        except Exception as error:
            raise _unavailable("the object store did not list the artifacts", error) from error

    async def keys(self, prefix: str) -> list[str]:
        """The keys below a prefix, in order."""
        return await self._in_a_thread(lambda: self._keys(prefix))

    @property
    def _store(self) -> Any:
        """obstore's store. A folder that cannot be created, as on a read-only disk, is created by a later call."""
        if self._opened is None:
            try:
                self._opened = LocalStore(self._folder, mkdir=True, automatic_cleanup=True)
            except OSError as error:
                raise StoreUnavailable(f"the folder of the object store cannot be created: {error.strerror}") from error
        return self._opened

    async def _read(self, call: Callable[[], T]) -> T:
        try:
            return await self._in_a_thread(call)
        except (NotFoundError, FileNotFoundError):
            raise NotFound("there is no such artifact") from None
        except Exception as error:
            if _is_of_the_key(error):
                raise NotFound("there is no such artifact") from None
            raise _unavailable("the object store returned no artifact", error) from error

    def _remove(self, folder: str) -> None:
        while keys := self._keys(folder):
            self._delete(keys)

    def _delete(self, keys: Sequence[str]) -> None:
        with suppress(NotFoundError, FileNotFoundError):
            obstore.delete(self._store, keys)

    def _keys(self, prefix: str) -> list[str]:
        return sorted(item["path"] for page in obstore.list(self._store, prefix=prefix) for item in page)

    async def _chunks(self, stream: Iterator[Any]) -> AsyncIterator[bytes]:
        try:
            while (chunk := await self._in_a_thread(lambda: next(stream, None))) is not None:
                yield bytes(chunk)
        except Exception as error:
            raise _unavailable("the object store interrupted an artifact", error) from error

    async def _in_a_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)


def _unavailable(detail: str, error: Exception) -> StoreUnavailable:
    """Log the store's own error, which may name folders and hosts, and hide it from callers."""
    _log.warning("store_failed", detail=detail, error=str(error))
    return StoreUnavailable(detail)


def _is_of_the_key(error: Exception) -> bool:
    """Whether the store will never accept this key. obstore raises ValueError for an invalid path (`..`, `a//b`)."""
    return isinstance(error, InvalidPathError | ValueError) or REFUSED_KEYS.search(str(error)) is not None
