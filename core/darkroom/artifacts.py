"""The object store: where workers put pictures and the jobs function reads them.

A key is written once and never again, and holds the attempt that wrote it, so a worker whose lease was lost cannot
change what another one published. Redis never holds a byte of a picture.
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
"""What is read from the store at a time while it is sent on."""

READ_PATIENCE = timedelta(seconds=10)
"""How long obstore repeats a request to a bucket that does not answer. Its own three minutes are too long for a caller
and for a process that drains; a worker that holds finished pictures repeats the whole call (`storing.py`)."""

PROBE_KEY = ".probe/{worker}"
"""Where a worker writes to find out whether the store accepts anything. No tenant's name begins with a dot."""

REFUSED_KEYS = re.compile(r"File name too long|KeyTooLong|XMinioInvalidObjectName|InvalidObjectName|EntityTooLarge")
"""How file systems and S3 servers word that they will never accept an object of this name or size."""

PAGE = 1000
"""Objects in one page of a list: as many as an S3 server gives at once."""

AT_ONCE = 16
"""Threads of a store, and so the requests that a process has under way at it."""

T = TypeVar("T")

_log = logger(__name__)


class StoreUnavailable(TemporaryError):
    slug, title = "store-unavailable", "The object store does not answer"


class StoreRefused(PermanentError):
    """The store will never accept this object: its key or its size is at fault, and not the store."""

    slug, title = "store-refused", "The object store refuses the object"


def artifact_key(*, tenant: str, job_id: str, attempt: int, index: int, sha256: str, extension: str) -> str:
    """`<tenant>/<job>/<attempt>/<n>-<sha256>.<ext>`. Raises StoreRefused for a name that is no tenant's."""
    if not is_tenant(tenant):
        raise StoreRefused(f"the tenant's name {tenant!r} cannot begin a key of the object store")
    return f"{tenant}/{job_id}/{attempt}/{index}-{sha256}.{extension}"


def artifact_folder(*, tenant: str, job_id: str) -> str:
    """What the keys of all artifacts of a job begin with."""
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

    What is awaited runs in threads of this process. obstore's own coroutines are finished by threads of Rust's, and one
    that still is in Python while the interpreter ends takes the process down with SIGABRT, its work done
    (https://github.com/PyO3/pyo3-async-runtimes/issues/40): one in ten short commands ended so.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._folder = Path(unquote(parts.path)) if parts.scheme == "file" else None
        self._opened: Any = None
        if self._folder is None:
            prefix = parts.path.strip("/") or None
            self._opened = S3Store(parts.netloc, prefix=prefix, retry_config={"retry_timeout": READ_PATIENCE})
        with suppress(StoreUnavailable):  # the first call raises it again
            self._opened = self._store
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="darkroom-store")

    def put(self, key: str, content: bytes) -> None:
        """Create an object. One that is there stays as it is: its key holds its hash, so it is the same bytes.

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
        """Write `content` where no job's pictures are, and remove it. Raises StoreUnavailable."""
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
        """An object and its content in chunks, or that of `part`: the first byte, and the first byte after it.

        Raises NotFound, StoreUnavailable. The chunks may raise StoreUnavailable, too.
        """
        options: GetOptions = {} if part is None else {"range": part}
        found = await self._read(lambda: obstore.get(self._store, key, options=options))
        stored = Stored(key, found.meta["last_modified"], found.meta["size"])
        return stored, self._chunks(iter(found.stream(min_chunk_size=CHUNK_BYTES)))

    async def remove(self, folder: str) -> None:
        """Remove everything below a folder; there may be nothing, and others may be removing it. StoreUnavailable."""
        try:
            await self._in_a_thread(lambda: self._remove(folder))
        except Exception as error:
            if _is_of_the_key(error):
                return  # no object can have such a key
            _log.warning("artifacts_not_removed", folder=folder, error=str(error))
            raise StoreUnavailable("the object store did not remove the artifacts", retry_after=5) from error

    async def discard(self, keys: Sequence[str]) -> None:
        """Remove these objects, some of which may be gone already. Raises StoreUnavailable."""
        try:
            await self._in_a_thread(lambda: self._delete(keys))
        except Exception as error:
            raise _unavailable("the object store did not remove the artifacts", error) from error

    async def pages(self) -> AsyncIterator[list[Stored]]:
        """Everything that is in the store, page by page. Raises StoreUnavailable."""
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
        """obstore's store. A folder that cannot be made, as on a disk that is read-only, may be made later."""
        if self._opened is None:
            try:
                self._opened = LocalStore(self._folder, mkdir=True, automatic_cleanup=True)
            except OSError as error:
                raise StoreUnavailable(f"the folder of the object store cannot be made: {error.strerror}") from error
        return self._opened

    async def _read(self, call: Callable[[], T]) -> T:
        try:
            return await self._in_a_thread(call)
        except (NotFoundError, FileNotFoundError):
            raise NotFound("there is no such artifact") from None
        except Exception as error:
            if _is_of_the_key(error):
                raise NotFound("there is no such artifact") from None
            raise _unavailable("the object store gave no artifact", error) from error

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
            raise _unavailable("the object store broke off in an artifact", error) from error

    async def _in_a_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)


def _unavailable(detail: str, error: Exception) -> StoreUnavailable:
    """The store's own words may name folders and hosts: they are for the log, not for callers."""
    _log.warning("store_failed", detail=detail, error=str(error))
    return StoreUnavailable(detail)


def _is_of_the_key(error: Exception) -> bool:
    """Whether the store will never accept this key. obstore raises ValueError for what is no path (`..`, `a//b`)."""
    return isinstance(error, InvalidPathError | ValueError) or REFUSED_KEYS.search(str(error)) is not None
