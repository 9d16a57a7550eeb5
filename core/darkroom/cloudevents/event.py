"""The CloudEvent: its type, the types of darkroom's events, and their encoding.

Events arrive over HTTP (`cloudevents/http.py`) as requests for jobs, and leave as facts about jobs: `job_event` makes
the event that webhooks and the Knative Broker receive for an entry of a job's log. An `Event` is valid: its constructor
validates it against CloudEvents 1.0.2 (https://github.com/cloudevents/spec/tree/v1.0.2), once.

The CloudEvents SDK is not used. Version 1.12 puts integers and unencoded text into headers, validates little, and reads
no batches; the tests read darkroom's events with it.
"""

from __future__ import annotations

import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from darkroom import times, traces
from darkroom.cloudevents import strict_json
from darkroom.cloudevents.attributes import (
    JSON_TYPE,
    OPTIONAL,
    REQUIRED,
    Attribute,
    absolute_uri_fault,
    canonical,
    extension_fault,
    json_type_fault,
    text_fault,
    time_fault,
    uri_reference_fault,
)
from darkroom.errors import FieldError, InvalidEvent
from darkroom.jobs import JobEvent, State, UnknownValue

SPEC_VERSION = "1.0"
TYPE_PREFIX = "dev.darkroom.job."
"""Reverse-DNS, followed by the fact in the past tense: `dev.darkroom.job.completed`."""

REQUESTED = TYPE_PREFIX + "requested"
"""The type of an event that requests a job. The other types are those of `JobEvent`."""

REQUESTED_FIELDS = ("job_type", "user_id")
"""The fields of a job that the event which requests it contains, beside model, input and run timeout."""

NAMELESS_SOURCE = "/"
"""The `source` of an event that requests a job without submit, as in benchmarks."""

SEQUENCE_DIGITS = 20
"""The digits of the greatest number in the id of a Redis stream entry (2^64 - 1): `sequence` is that number."""

_MAX_FAULTS = 16
"""The most faults of one event that a response names: its size must not depend on the request."""
_SHOWN_CHARS = 64
"""The longest part of a caller's name for an attribute that a response repeats."""

# HTTP binding, section 3.1.3.2: printable ASCII except space, double quote and percent stands unencoded in a header.
_HEADER_SAFE = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) not in '"%')


@dataclass(frozen=True, kw_only=True)
class Event:
    """One CloudEvent 1.0 with JSON data.

    `id` and `source` identify it permanently, on every transport. `time` is the RFC 3339 text as it was received.
    Attributes that the specification does not define are `extensions`: `traceparent`, `sequence`, and others. `data` is
    a JSON value; None is no data, and an explicit `null` is read as None.

    Raises InvalidEvent, which names every invalid attribute.
    """

    id: str
    source: str
    type: str
    subject: str | None = None
    time: str | None = None
    datacontenttype: str | None = None
    dataschema: str | None = None
    extensions: Mapping[str, Attribute] = field(default_factory=dict)
    data: Any = None

    def __post_init__(self) -> None:
        faults = [
            ("id", text_fault(self.id)),
            ("source", uri_reference_fault(self.source)),
            ("type", text_fault(self.type)),
        ]
        if self.subject is not None:
            faults.append(("subject", text_fault(self.subject)))
        if self.time is not None:
            faults.append(("time", time_fault(self.time)))
        if self.datacontenttype is not None:
            faults.append(("datacontenttype", json_type_fault(self.datacontenttype)))
        if self.dataschema is not None:
            faults.append(("dataschema", absolute_uri_fault(self.dataschema)))
        for name, value in self.extensions.items():
            faults.append((name, extension_fault(name, value)))
        found = [FieldError(name, fault) for name, fault in faults if fault]
        if found:
            raise invalid(found)

    @property
    def traceparent(self) -> str | None:
        """The extension of that name if it is well-formed: by W3C Trace Context a malformed one is ignored."""
        return traces.traceparent_of(self.extensions.get("traceparent"))

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any], *, data: Any, faults: Sequence[FieldError] = ()) -> Event:
        """An event of its attributes by name, including `specversion`, and its data.

        `faults` are those of the reader; they are reported with those of the attributes. Raises InvalidEvent.
        """
        found = list(faults)
        extensions = dict(attributes)
        version = extensions.pop("specversion", None)
        if version != SPEC_VERSION:
            found.append(FieldError("specversion", text_fault(version) or f'must be "{SPEC_VERSION}"'))
        core = {name: extensions.pop(name, None) for name in (*REQUIRED, *OPTIONAL)}
        try:
            event = cls(**core, extensions=extensions, data=data)
        except InvalidEvent as error:
            raise invalid([*found, *error.fields]) from None
        if found:
            raise invalid(found)
        return event

    @classmethod
    def decode_structured(cls, members: Mapping[str, Any]) -> Event:
        """An event from its JSON object in structured mode or in a batch. Raises InvalidEvent.

        An attribute that is `null` counts as absent (JSON format, section 2.2). Binary data (`data_base64`, section
        3.1.2) is decoded, then read as the JSON that `datacontenttype` declares.
        """
        attributes = {
            name: value for name, value in members.items() if value is not None and name not in {"data", "data_base64"}
        }
        data, faults = members.get("data"), []
        if members.get("data_base64") is not None:
            try:
                data = _decode_base64(members["data_base64"], beside_data="data" in members)
            except ValueError as error:
                faults.append(FieldError("data_base64", str(error)))
        return cls.from_attributes(attributes, data=data, faults=faults)

    def encode_structured(self) -> dict[str, Any]:
        """The JSON object of the event in structured mode and in a batch (JSON format, section 3)."""
        members = {"specversion": SPEC_VERSION, **self._core(), **self.extensions}
        if self.data is not None:
            members["data"] = self.data
        return members

    def encode_binary(self) -> tuple[dict[str, str], bytes]:
        """Headers, by lower-case name, and body of the event in binary mode (HTTP binding, section 3.1).

        Data without a declared type is sent as `application/json` (JSON format, section 3.1.2).
        """
        core = self._core()
        media_type = core.pop("datacontenttype", None if self.data is None else JSON_TYPE)
        headers = {} if media_type is None else {"content-type": media_type}
        headers["ce-specversion"] = SPEC_VERSION
        for name, value in (*core.items(), *self.extensions.items()):
            headers[f"ce-{name}"] = quote(canonical(value), safe=_HEADER_SAFE)
        return headers, b"" if self.data is None else strict_json.encode(self.data)

    def _core(self) -> dict[str, Any]:
        attributes = {"id": self.id, "source": self.source, "type": self.type}
        for name in OPTIONAL:
            value = getattr(self, name)
            if value is not None:
                attributes[name] = value
        return attributes


def invalid(faults: Sequence[FieldError]) -> InvalidEvent:
    """The error for an event with these faults, at least one; of several for one name it reports the first."""
    by_name: dict[str, str] = {}
    for fault in faults[:_MAX_FAULTS]:
        by_name.setdefault(fault.field[:_SHOWN_CHARS].encode("ascii", "backslashreplace").decode(), fault.detail)
    return InvalidEvent(
        "; ".join(f"{name} {detail}" for name, detail in by_name.items()),
        fields=[FieldError(name, detail) for name, detail in by_name.items()],
    )


def type_of(kind: JobEvent | UnknownValue) -> str:
    """The `type` of the event for such an entry of a job's log."""
    return TYPE_PREFIX + kind.value


def job_event(
    *,
    job_id: str,
    kind: JobEvent | UnknownValue,
    event_id: str,
    seq: int,
    time_ms: int,
    source: str,
    data: Any,
    traceparent: str | None = None,
    tenant: str | None = None,
    extensions: Mapping[str, Attribute] | None = None,
) -> Event:
    """The event for entry `seq` of a job's log, the same for every receiver.

    `sequence` has leading zeros because the sequence extension orders it as text. Its `sequencetype` is left out: the
    only defined value, Integer, limits it to 32 bits. `tenant` is an attribute, so that a Trigger can filter by it.
    `extensions` are added to these.
    """
    attributes: dict[str, Attribute] = {"sequence": f"{seq:0{SEQUENCE_DIGITS}d}"}
    if traceparent is not None:
        attributes["traceparent"] = traceparent
    if tenant is not None:
        attributes["tenant"] = tenant
    return Event(
        id=event_id,
        source=source,
        type=type_of(kind),
        subject=job_id,
        time=times.iso(time_ms),
        datacontenttype=JSON_TYPE,
        extensions={**attributes, **(extensions or {})},
        data=data,
    )


def requested_event(
    *,
    job_id: str,
    tenant: str,
    model: str,
    job_input: Mapping[str, Any],
    run_timeout: float,
    fields: Mapping[str, Any],
    time_ms: int,
    traceparent: str | None,
) -> dict[str, Any]:
    """The structured CloudEvent that requested a job, made from the job's record, for the view of a dead letter.

    `fields["event"]` has its `id`, `source` and `time`; without it, the job's id and `time_ms` are used.
    """
    named: Mapping[str, str] = fields.get("event", {})
    event: dict[str, Any] = {
        "specversion": SPEC_VERSION,
        "id": named.get("id", job_id),
        "source": named.get("source", NAMELESS_SOURCE),
        "type": REQUESTED,
        "subject": job_id,
        "time": named.get("time") or times.iso(time_ms),
        "datacontenttype": JSON_TYPE,
        "tenant": tenant,
    }
    if traceparent is not None:
        event["traceparent"] = traceparent
    about = {name: fields[name] for name in REQUESTED_FIELDS if name in fields}
    return {**event, "data": {"model": model, "input": job_input, "run_timeout": run_timeout, **about}}


def accepted_answer(job_id: str, state: State | UnknownValue | None) -> dict[str, str | None]:
    """The body of the response for an accepted job, over REST and in a CloudEvent: its id, under each name that clients
    use, and its current state; None where a repeated submission names a job that is no longer in Redis.
    """
    return {"id": job_id, "job_id": job_id, "task_id": job_id, "status": None if state is None else state.value}


def accepted_event(
    *,
    job_id: str,
    tenant: str,
    event_id: str,
    time_ms: int,
    source: str,
    state: State | UnknownValue | None = State.PENDING,
    seq: int = 1,
    traceparent: str | None = None,
) -> Event:
    """The response to an accepted CloudEvent: an event itself, as a Trigger's subscriber may return nothing else.

    It is the event for the first entry of the job's log.
    """
    return job_event(
        job_id=job_id,
        kind=JobEvent.ACCEPTED,
        event_id=event_id,
        seq=seq,
        time_ms=time_ms,
        source=source,
        data=accepted_answer(job_id, state),
        traceparent=traceparent,
        tenant=tenant,
    )


def _decode_base64(encoded: object, *, beside_data: bool) -> Any:
    if beside_data:
        raise ValueError("must not be set together with data")
    if not isinstance(encoded, str):
        raise ValueError("must be a string")
    try:
        text = binascii.a2b_base64(encoded, strict_mode=True)
    except ValueError:
        raise ValueError("must be Base64 (RFC 4648, section 4)") from None
    return strict_json.parse(text) if text else None
