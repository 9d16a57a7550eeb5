"""The object store: where workers put pictures and the jobs function reads them.

A key is written once and never again, and holds the attempt that wrote it, so a worker whose lease was lost cannot
change what another one published. Redis never holds a byte of a picture.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, NotFoundError
from obstore.store import LocalStore, S3Store

from darkroom.errors import DarkroomError, NotFound, TemporaryError
from darkroom.logs import logger

CHUNK_BYTES = 256 * 1024
"""What is read from the store at a time while it is sent on."""

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
    """A store by its address: `file:///folder` (made if absent) or `s3://bucket/prefix`."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme == "file":
            folder = Path(unquote(parts.path))
            self._store: Any = LocalStore(folder, mkdir=True, automatic_cleanup=True)
        else:
            self._store = S3Store(parts.netloc, prefix=parts.path.strip("/") or None)

    def put(self, key: str, content: bytes) -> None:
        """Create an object. One that is there stays as it is: its key holds its hash, so it is the same bytes."""
        try:
            obstore.put(self._store, key, content, mode="create")
        except AlreadyExistsError:
            return
        except Exception as error:
            raise _unavailable("the object store took no artifact", error) from error

    async def open(self, key: str) -> tuple[int, AsyncIterator[bytes]]:
        """The size in bytes of an object and its content in chunks. Raises NotFound, StoreUnavailable."""
        try:
            found = await obstore.get_async(self._store, key)
        except (NotFoundError, FileNotFoundError):
            raise NotFound("there is no such artifact") from None
        except DarkroomError:
            raise
        except Exception as error:
            raise _unavailable("the object store gave no artifact", error) from error
        return found.meta["size"], _chunks(found)

    async def remove(self, folder: str) -> None:
        """Remove everything below a folder; there may be nothing, and others may be removing it. StoreUnavailable."""
        try:
            while keys := await self.keys(folder):
                with suppress(NotFoundError, FileNotFoundError):
                    await obstore.delete_async(self._store, keys)
        except Exception as error:
            _log.warning("artifacts_not_removed", folder=folder, error=str(error))
            raise StoreUnavailable("the object store did not remove the artifacts", retry_after=5) from error

    async def keys(self, prefix: str) -> list[str]:
        """The keys below a prefix, in order."""
        found: list[str] = []
        async for page in obstore.list(self._store, prefix=prefix):
            found += [item["path"] for item in page]
        return sorted(found)


def _unavailable(detail: str, error: Exception) -> StoreUnavailable:
    """The store's own words may name folders and hosts: they are for the log, not for callers."""
    _log.warning("store_failed", detail=detail, error=str(error))
    return StoreUnavailable(detail)


async def _chunks(found: Any) -> AsyncIterator[bytes]:
    async for chunk in found.stream(min_chunk_size=CHUNK_BYTES):
        yield bytes(chunk)
