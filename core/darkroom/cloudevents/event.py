"""The CloudEvent as darkroom uses it: what one is, what ours are called, and how one is written.

Events come in over HTTP (`event_http.py`) as requests for jobs, and go out as facts about jobs: a job log's entry is
told to webhooks and to the Knative Broker in the shape that `job_event` makes. An `Event` that exists is valid: its
constructor holds it to CloudEvents 1.0.2 (https://github.com/cloudevents/spec/tree/v1.0.2), and nothing later looks
again.

The CloudEvents SDK is not used. 1.12 puts integers and unencoded text into headers, checks next to nothing, and reads
no batches; the tests hold our output against it as a foreign reader.
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
"""Reverse-DNS; after it stands the fact, in the past tense: `dev.darkroom.job.completed`."""

REQUESTED = TYPE_PREFIX + "requested"
"""What a caller sends to have a job made. Every other type of ours is a `JobEvent`'s."""

TOLD_FIELDS = ("job_type", "user_id")
"""The fields of a job that the event which asks for it has beside model, input and run timeout."""

NAMELESS_SOURCE = "/"
"""The `source` of an event that asks for a job which did not come through submit, as in benchmarks."""

SEQUENCE_DIGITS = 20
"""As many as the greatest number in the id of a Redis stream entry has (2^64 - 1): `sequence` is that number."""

_MAX_FAULTS = 16
"""So many faults of one event are named: an answer must not grow with what a caller makes up."""
_SHOWN_CHARS = 64
"""And so much of a name that a caller chose."""

# HTTP binding, section 3.1.3.2: all printable ASCII but space, double quote and percent goes into a header as it is.
_HEADER_SAFE = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) not in '"%')


@dataclass(frozen=True, kw_only=True)
class Event:
    """One CloudEvent 1.0 with JSON data.

    `id` and `source` identify it for ever, on every transport. `time` is the RFC 3339 text as it came, `instant` what
    it says. Attributes that the specification does not define are `extensions`: `traceparent`, `sequence`, and others.
    `data` is a JSON value; None is no data, and an explicit `null` is read as that.

    Raises InvalidEvent, naming every attribute that is wrong.
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
        """The extension of that name where it is well-formed: W3C Trace Context has a malformed one ignored."""
        return traces.traceparent_of(self.extensions.get("traceparent"))

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any], *, data: Any, faults: Sequence[FieldError] = ()) -> Event:
        """An event of all its attributes by name, `specversion` among them, and its data.

        `faults` are those that the reader found; they are told with those found here. Raises InvalidEvent.
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
        """An event from the JSON object that it is in structured mode and in a batch. Raises InvalidEvent.

        An attribute that is `null` is as good as absent (JSON format, section 2.2). Binary data (`data_base64`, section
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
        """The JSON object that the event is in structured mode and in a batch (JSON format, section 3)."""
        members = {"specversion": SPEC_VERSION, **self._core(), **self.extensions}
        if self.data is not None:
            members["data"] = self.data
        return members

    def encode_binary(self) -> tuple[dict[str, str], bytes]:
        """Headers, by lower-case name, and body of the event in binary mode (HTTP binding, section 3.1).

        Data without a declared type goes as the `application/json` that it is (JSON format, section 3.1.2).
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
    """The error for an event with these faults, at least one; of two for one name the first is told."""
    by_name: dict[str, str] = {}
    for fault in faults[:_MAX_FAULTS]:
        by_name.setdefault(fault.field[:_SHOWN_CHARS].encode("ascii", "backslashreplace").decode(), fault.detail)
    return InvalidEvent(
        "; ".join(f"{name} {detail}" for name, detail in by_name.items()),
        fields=[FieldError(name, detail) for name, detail in by_name.items()],
    )


def type_of(kind: JobEvent | UnknownValue) -> str:
    """The `type` of the event that tells of such an entry of a job's log."""
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
    """The event that tells of entry `seq` of a job's log; one entry is one event wherever it is told.

    `sequence` has leading zeros because the sequence extension has it ordered as text. Its `sequencetype` is left out:
    the one value that is defined, Integer, bounds it to 32 bits. `tenant` is an attribute, for a Trigger to filter on.
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
    """The structured CloudEvent that asked for a job, made from the job's record: a dead letter is shown with it.

    `fields["event"]` has its `id`, `source` and `time`; where there is none, the job's id and `time_ms` stand for them.
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
    about = {name: fields[name] for name in TOLD_FIELDS if name in fields}
    return {**event, "data": {"model": model, "input": job_input, "run_timeout": run_timeout, **about}}


def accepted_answer(job_id: str, state: State | UnknownValue | None) -> dict[str, str | None]:
    """The body that reports an accepted job, over REST and in a CloudEvent: one id, under each name that clients know,
    and the job's state now; None where a repeated submission names a job that Redis no longer has.
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
    """The answer to a CloudEvent that was accepted: one itself, for a Trigger's subscriber may answer nothing else.

    It tells of the first entry of the job's log.
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
        raise ValueError("must not come beside data")
    if not isinstance(encoded, str):
        raise ValueError("must be a string")
    try:
        text = binascii.a2b_base64(encoded, strict_mode=True)
    except ValueError:
        raise ValueError("must be Base64 (RFC 4648, section 4)") from None
    return strict_json.parse(text) if text else None
