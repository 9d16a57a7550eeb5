"""CloudEvents over HTTP: strict parsing of the three modes of the HTTP binding, and encoding in structured mode.

`submit` and `result` pass the headers and the body of a request to `parse_http`, which returns events or raises. The
mode follows from the content type alone (HTTP Protocol Binding 1.0.2, section 3): `application/cloudevents+json` is one
event, `application/cloudevents-batch+json` an array of events; any other type is binary mode, with `ce-` headers.

    https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/http-protocol-binding.md
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from urllib.parse import unquote_to_bytes

from darkroom.cloudevents import strict_json
from darkroom.cloudevents.attributes import media_type
from darkroom.cloudevents.event import Event, invalid
from darkroom.errors import FieldError, InvalidEvent, MalformedRequest, UnsupportedMediaType

STRUCTURED_TYPE = "application/cloudevents+json"
BATCH_TYPE = "application/cloudevents-batch+json"
MAX_BATCH_EVENTS = 100
"""The limit of a batch; a larger one is refused. An estimate: so many requests are usually 50 KB, a few ms of work."""

_FAMILY = "application/cloudevents"
_ATTRIBUTE_PREFIX = "ce-"
_QUOTED_STRING = re.compile(r'"((?>(?:[^"\\]|\\.)*))"')
_ESCAPED_PAIR = re.compile(r"\\(.)")
_STRAY_PERCENT = re.compile("%(?![0-9A-Fa-f]{2})")


class Mode(StrEnum):
    """The mode of an HTTP message with events."""

    BINARY = "binary"
    STRUCTURED = "structured"
    BATCH = "batch"


@dataclass(frozen=True)
class Parsed:
    """The events of one request, in order. Only a batch can have an InvalidEvent in place of an event."""

    mode: Mode
    events: tuple[Event | InvalidEvent, ...]


def parse_http(headers: Mapping[str, str], body: bytes) -> Parsed:
    """The events of a request.

    `headers` have lower-case names; a header that `items()` repeats, as Starlette's does, is refused. Raises
    InvalidEvent for a single event that violates the specification, naming each invalid attribute, and for a batch of
    more than MAX_BATCH_EVENTS; MalformedRequest for a body that is not the required JSON; UnsupportedMediaType for an
    event format other than JSON. The events of a batch are validated one by one.
    """
    content_types: list[str] = []
    attributes: list[tuple[str, str]] = []
    for name, value in headers.items():
        if name == "content-type":
            content_types.append(value)
        elif name.startswith(_ATTRIBUTE_PREFIX):
            attributes.append((name[len(_ATTRIBUTE_PREFIX) :], value))
    if len(content_types) > 1:
        raise _unsupported("must be sent once")
    content_type = content_types[0].strip(" \t") if content_types else None
    mode = _mode_of(content_type)
    if mode is Mode.BATCH:
        return Parsed(mode, _parse_batch(body))
    event = _parse_structured(body) if mode is Mode.STRUCTURED else _parse_binary(attributes, content_type, body)
    return Parsed(mode, (event,))


def encode_structured(event: Event) -> tuple[dict[str, str], bytes]:
    """Headers, by lower-case name, and body of an event in structured mode."""
    return {"content-type": STRUCTURED_TYPE}, strict_json.encode(event.encode_structured())


def _mode_of(content_type: str | None) -> Mode:
    if content_type == STRUCTURED_TYPE:
        return Mode.STRUCTURED
    if content_type is None or content_type[: len(_FAMILY)].lower() != _FAMILY:
        return Mode.BINARY
    parsed = media_type(content_type)
    if parsed is not None and parsed.is_json:
        if parsed.essence == STRUCTURED_TYPE:
            return Mode.STRUCTURED
        if parsed.essence == BATCH_TYPE:
            return Mode.BATCH
    raise _unsupported(f"must be {STRUCTURED_TYPE} or {BATCH_TYPE}, in UTF-8, for an event in structured or batch mode")


def _parse_structured(body: bytes) -> Event:
    try:
        members = strict_json.parse(body)
    except strict_json.JsonError as error:
        raise _malformed("body", str(error)) from None
    if not isinstance(members, dict):
        raise _malformed("body", "must be a JSON object")
    return Event.decode_structured(members)


def _parse_batch(body: bytes) -> tuple[Event | InvalidEvent, ...]:
    try:
        elements = strict_json.parse_elements(body)
    except strict_json.JsonError as error:
        raise _malformed("body", str(error)) from None
    if len(elements) > MAX_BATCH_EVENTS:
        raise invalid([FieldError("batch", f"must hold at most {MAX_BATCH_EVENTS} events, not {len(elements)}")])
    return tuple(_batch_event(element) for element in elements)


def _batch_event(element: Any) -> Event | InvalidEvent:
    if isinstance(element, strict_json.JsonError):
        return invalid([FieldError("event", str(element))])
    if not isinstance(element, dict):
        return invalid([FieldError("event", "must be a JSON object")])
    try:
        return Event.decode_structured(element)
    except InvalidEvent as error:
        return error


def _parse_binary(headers: list[tuple[str, str]], content_type: str | None, body: bytes) -> Event:
    if not headers:
        raise invalid(
            [
                FieldError("content-type", f"must be {STRUCTURED_TYPE} or {BATCH_TYPE} where the body is CloudEvents"),
                FieldError(
                    "ce-specversion", "must be sent, with ce-id, ce-source and ce-type, where the body is the data"
                ),
            ]
        )
    attributes: dict[str, str] = {}
    faults: list[FieldError] = []
    for name, value in headers:
        try:
            if name == "datacontenttype":
                raise ValueError("must not be a separate header: Content-Type has it")
            if name in attributes:
                raise ValueError("must be sent once")
            attributes[name] = _attribute_value(value)
        except ValueError as error:
            attributes.setdefault(name, "")
            faults.append(FieldError(name, str(error)))
    if content_type is not None:
        attributes["datacontenttype"] = content_type
    data, flaw = None, None
    if body:
        try:
            data = strict_json.parse(body)
        except strict_json.JsonError as error:
            flaw = str(error)
    event = Event.from_attributes(attributes, data=data, faults=faults)
    if flaw is not None:
        raise _malformed("data", flaw)
    return event


def _attribute_value(header: str) -> str:
    """The attribute in a header (section 3.1.3.2): unquoted, then percent-decoded once. Raises ValueError."""
    if not (header.isascii() and header.replace("\t", " ").isprintable()):
        raise ValueError("must be printable ASCII in a header, with all other characters percent-encoded")
    value = header.strip(" \t")
    if value.startswith('"'):
        quoted = _QUOTED_STRING.fullmatch(value)
        if quoted is None:
            raise ValueError("must close its double-quoted string, with nothing after it")
        value = _ESCAPED_PAIR.sub(r"\1", quoted[1])
    if "%" not in value:
        return value
    if _STRAY_PERCENT.search(value):
        raise ValueError("must have two hexadecimal digits after each percent sign in a header")
    try:
        return unquote_to_bytes(value).decode()
    except UnicodeDecodeError:
        raise ValueError("must be UTF-8 where it is percent-encoded") from None


def _malformed(field: str, detail: str) -> MalformedRequest:
    return MalformedRequest(f"the {field} {detail}", fields=[FieldError(field, detail)])


def _unsupported(detail: str) -> UnsupportedMediaType:
    return UnsupportedMediaType(f"Content-Type {detail}", fields=[FieldError("content-type", detail)])
