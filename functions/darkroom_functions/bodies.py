"""The body of a request, read no further than a limit."""

from __future__ import annotations

from darkroom.errors import BodyTooLarge
from starlette.requests import Request

MAX_BODY_BYTES = 2 * 1024 * 1024
"""The limit where no setting says another: twenty times a batch of a hundred ordinary requests, and a prompt of a
megabyte is still told what is wrong with it."""


async def read_body(request: Request, *, limit: int = MAX_BODY_BYTES) -> bytes:
    """The whole body. Raises BodyTooLarge as soon as it is known to be above `limit` bytes, whether declared or not.

    The server then reads and drops what still comes, so that the refusal reaches a caller who sends first and reads
    later.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise _too_large(limit)
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise _too_large(limit)
        chunks.append(chunk)
    return b"".join(chunks)


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body must have at most {limit} bytes")
