"""Bodies of requests: read up to a limit, as the JSON object that a REST request has or as a single CloudEvent."""

from __future__ import annotations

from darkroom.cloudevents import attributes, strict_json
from darkroom.cloudevents.event import Event
from darkroom.cloudevents.http import BATCH_TYPE, STRUCTURED_TYPE, Mode, parse_http
from darkroom.errors import BodyTooLarge, FieldError, MalformedRequest, UnsupportedMediaType
from starlette.requests import Request

MAX_BODY_BYTES = 2 * 1024 * 1024
"""The default limit: twenty times a batch of a hundred ordinary requests. A prompt of a megabyte still gets the refusal
of its length."""


async def read_body(request: Request, *, limit: int = MAX_BODY_BYTES) -> bytes:
    """The whole body. Raises BodyTooLarge as soon as more than `limit` bytes are declared or have arrived.

    The server then reads and drops the rest, so that the refusal reaches a client that sends first and reads later.
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
    """The JSON object of a REST request. An empty body, where it is allowed, is an object without members.

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


async def read_event(request: Request, *, limit: int) -> Event:
    """The CloudEvent of a request in binary or structured mode. Raises UnsupportedMediaType for a batch."""
    parsed = parse_http(request.headers, await read_body(request, limit=limit))
    (event, *_) = parsed.events or (None,)
    if parsed.mode is Mode.BATCH or not isinstance(event, Event):
        detail = f"must be {STRUCTURED_TYPE}, or that of the data in binary mode: batches are not accepted here"
        raise UnsupportedMediaType(f"Content-Type {detail}", fields=[FieldError("content-type", detail)])
    return event


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body must have at most {limit} bytes")
