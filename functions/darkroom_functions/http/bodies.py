"""The body of a request: read no further than a limit, and taken as the JSON object that it must be over REST."""

from __future__ import annotations

from darkroom.cloudevents import attributes, strict_json
from darkroom.cloudevents.http import BATCH_TYPE, STRUCTURED_TYPE
from darkroom.errors import BodyTooLarge, FieldError, MalformedRequest, UnsupportedMediaType
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


def json_object(request: Request, body: bytes, *, may_be_empty: bool) -> dict[str, object]:
    """The object that a REST body is; an empty body, where it may be, is one without members.

    Raises UnsupportedMediaType, MalformedRequest.
    """
    if not body and may_be_empty:
        return {}
    content_type = request.headers.get("content-type")
    media_type = None if content_type is None else attributes.media_type(content_type)
    if body and (media_type is None or not media_type.is_json):
        detail = "must be application/json, in UTF-8"
        raise UnsupportedMediaType(f"Content-Type {detail}", fields=[FieldError("content-type", detail)])
    if media_type is not None and media_type.essence in (STRUCTURED_TYPE, BATCH_TYPE):
        detail = "is that of a CloudEvent: send it to POST /"
        raise UnsupportedMediaType(f"Content-Type {detail}", fields=[FieldError("content-type", detail)])
    try:
        data = strict_json.parse(body)
    except strict_json.JsonError as error:
        raise MalformedRequest(f"the body {error}", fields=[FieldError("body", str(error))]) from None
    if not isinstance(data, dict):
        detail = "must be a JSON object"
        raise MalformedRequest(f"the body {detail}", fields=[FieldError("body", detail)])
    return data


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body must have at most {limit} bytes")
