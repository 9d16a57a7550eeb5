"""CloudEvents: parsed in three modes as strictly as the specification allows, and written for any other library.

The requests are in `tests/core/vectors/` (see `tests/event_vectors.py`); the other cases are here.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import FrozenInstanceError, replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from urllib.parse import quote, unquote

import pytest
from cloudevents.http import CloudEvent, from_http
from darkroom import times
from darkroom.cloudevents import event as events
from darkroom.cloudevents.attributes import Attribute, canonical
from darkroom.cloudevents.event import Event, accepted_event, job_event
from darkroom.cloudevents.http import MAX_BATCH_EVENTS, Mode, Parsed, encode_structured, parse_http
from darkroom.errors import DarkroomError, InvalidEvent, MalformedRequest, UnsupportedMediaType
from darkroom.jobs import JobEvent, State
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from tests.event_vectors import MODES, Vector, encode_batch, load

VECTORS = load()
STRUCTURED = {"content-type": "application/cloudevents+json"}
BATCH = {"content-type": "application/cloudevents-batch+json"}
BINARY = {"content-type": "application/json"} | {
    f"ce-{name}": value for name, value in {"specversion": "1.0", "id": "1", "source": "/s", "type": "t"}.items()
}


def vectors(*, valid: bool) -> pytest.MarkDecorator:
    chosen = [vector for vector in VECTORS if vector.valid is valid]
    return pytest.mark.parametrize("vector", chosen, ids=[vector.id for vector in chosen])


def one(parsed: Parsed) -> Event:
    (event,) = parsed.events
    assert isinstance(event, Event)
    return event


def fields(error: DarkroomError) -> list[str]:
    return [fault.field for fault in error.fields]


# The vectors


@vectors(valid=True)
def test_a_valid_vector_is_read(vector: Vector) -> None:
    parsed = parse_http(vector.headers, vector.body)
    assert parsed.mode == vector.mode
    assert [event for event in parsed.events if not isinstance(event, Event)] == []
    if vector.verdicts is not None:
        assert len(parsed.events) == len(vector.verdicts)


@vectors(valid=False)
def test_an_invalid_vector_is_refused_by_the_name_of_what_is_wrong(vector: Vector) -> None:
    if vector.verdicts is not None:
        verdicts = parse_http(vector.headers, vector.body).events
        assert len(verdicts) == len(vector.verdicts)
        for verdict, field in zip(verdicts, vector.verdicts, strict=True):
            assert isinstance(verdict, Event if field is None else InvalidEvent)
            if isinstance(verdict, InvalidEvent):
                assert fields(verdict) == [field]
        return
    with pytest.raises(DarkroomError) as caught:
        parse_http(vector.headers, vector.body)
    assert caught.value.slug == vector.error
    assert vector.field in fields(caught.value)
    assert json.dumps(caught.value.problem()).isascii()


def test_the_vectors_cover_every_mode_under_ids_of_their_own() -> None:
    assert {vector.mode for vector in VECTORS} == set(MODES) == set(Mode)
    assert [name for name, count in Counter(vector.id for vector in VECTORS).items() if count > 1] == []
    valid = sum(vector.valid for vector in VECTORS)
    assert valid >= 25
    assert len(VECTORS) - valid >= 60
    for vector in VECTORS:
        assert vector.valid or (vector.verdicts is None) == (vector.field is not None and vector.error is not None)


def test_the_vectors_that_ask_for_a_job_are_of_the_requested_type_with_a_prompt_at_most() -> None:
    for vector in VECTORS:
        if vector.job:
            for event in parse_http(vector.headers, vector.body).events:
                assert isinstance(event, Event)
                assert event.type == events.REQUESTED
                assert event.data is None or set(event.data) == {"prompt"}


# What is read


def vector_event(vector_id: str) -> Event:
    (vector,) = (vector for vector in VECTORS if vector.id == vector_id)
    return one(parse_http(vector.headers, vector.body))


@pytest.mark.parametrize(
    ("vector_id", "subject"),
    [
        ("binary-percent-encoded", "Euro € 😀"),
        ("binary-percent-encoded-lower-case", "€"),
        ("binary-percent-encoded-once", "100%25"),
        ("binary-double-quoted", 'an "order" of prints'),
        ("binary-spaces", "an order of prints"),
        ("binary-quote-within", '12"x16" print'),
        ("structured-surrogate-pair", "😀"),
        ("structured-null-attributes", None),
    ],
)
def test_a_subject_is_read_as_it_was_meant(vector_id: str, subject: str | None) -> None:
    assert vector_event(vector_id).subject == subject


def test_an_event_keeps_all_that_it_was_given() -> None:
    event = vector_event("structured-all-attributes")
    assert event == Event(
        id="structured-all-attributes",
        source="/vectors",
        type="dev.darkroom.job.requested",
        subject="order-42",
        time="2026-11-20T15:00:00.123Z",
        datacontenttype="application/json",
        dataschema="https://client.example/schemas/job",
        extensions={
            "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "sequence": "00000000000000000001",
            "expirytime": "2026-11-21T15:00:00Z",
        },
        data={"prompt": "a lighthouse at dusk"},
    )
    assert event.time is not None
    assert times.parse(event.time) == datetime(2026, 11, 20, 15, 0, 0, 123000, UTC)


def test_the_time_is_kept_as_it_was_written() -> None:
    event = vector_event("binary-time-nanoseconds")
    assert event.time == "2026-11-20T15:00:00.123456789Z"
    assert times.parse(event.time) == datetime(2026, 11, 20, 15, 0, 0, 123456, UTC)


def test_extensions_keep_their_types_in_json_and_are_text_in_headers() -> None:
    structured = vector_event("structured-extension-boolean")
    assert structured.extensions == {"urgent": True, "draft": False}
    headers, body = replace(structured, extensions={"urgent": True, "low": -7}).encode_binary()
    assert (headers["ce-urgent"], headers["ce-low"]) == ("true", "-7")
    assert one(parse_http(headers, body)).extensions == {"urgent": "true", "low": "-7"}


@pytest.mark.parametrize(
    ("vector_id", "data"),
    [
        ("binary-no-data", None),
        ("binary-data-null", None),
        ("binary-data-string", "a lighthouse"),
        ("binary-data-big-integer", {"prompt": "x", "seed": 123456789012345678901234567890}),
        ("structured-data-null", None),
        ("structured-data-string", '{"prompt":"x"}'),
        ("structured-base64", {"prompt": "x"}),
        ("structured-base64-empty", None),
        ("structured-base64-null", {"prompt": "a lighthouse at dusk"}),
    ],
)
def test_data_is_the_json_value_that_was_sent(vector_id: str, data: object) -> None:
    assert vector_event(vector_id).data == data


def test_the_body_counts_in_structured_mode_and_not_the_headers() -> None:
    assert vector_event("structured-headers-too").id == "structured-headers-too"


def test_all_faults_of_an_event_are_reported_together() -> None:
    headers = {
        **BINARY,
        "ce-id": "",
        "ce-time": "soon",
        "ce-subject": "100%",
        "ce-a-b": "x",
        "content-type": "text/css",
    }
    with pytest.raises(InvalidEvent) as caught:
        parse_http(headers, b"{}")
    assert sorted(fields(caught.value)) == ["a-b", "datacontenttype", "id", "subject", "time"]
    for field in fields(caught.value):
        assert f"{field} must " in caught.value.detail


def test_a_refusal_does_not_grow_with_what_was_sent() -> None:
    members = {"n" * 100_000: "x"} | {f"NAME{index}": index for index in range(10_000)}
    with pytest.raises(InvalidEvent) as caught:
        parse_http(STRUCTURED, json.dumps(members).encode())
    assert len(json.dumps(caught.value.problem())) < 5_000


def test_a_request_without_an_event_is_refused_with_what_to_send() -> None:
    with pytest.raises(InvalidEvent) as caught:
        parse_http({"content-type": "application/json"}, b'{"prompt":"a lighthouse"}')
    assert fields(caught.value) == ["content-type", "ce-specversion"]
    for word in ("application/cloudevents+json", "ce-id", "ce-source", "ce-type"):
        assert word in caught.value.detail


@pytest.mark.parametrize("value", ["caf\xe9", "a\tb", "a\x00b", "a\x7fb", "日本"])
def test_a_header_that_no_sender_may_write_is_refused(value: str) -> None:
    with pytest.raises(InvalidEvent) as caught:
        parse_http({**BINARY, "ce-subject": value}, b"")
    assert fields(caught.value) == ["subject"]


def test_white_space_around_a_header_is_none_of_its_value() -> None:
    assert one(parse_http({**BINARY, "ce-id": " \t7 ", "content-type": " application/json\t"}, b"")).id == "7"


@pytest.mark.parametrize(
    ("name", "error", "field"),
    [
        (b"ce-id", InvalidEvent, "id"),
        (b"ce-source", InvalidEvent, "source"),
        (b"content-type", UnsupportedMediaType, "content-type"),
    ],
)
def test_a_header_that_comes_twice_is_refused(name: bytes, error: type[DarkroomError], field: str) -> None:
    raw = [(key.encode(), value.encode()) for key, value in BINARY.items()]
    again = next(value for key, value in raw if key == name)
    with pytest.raises(error) as caught:
        parse_http(Headers(raw=[*raw, (name, again)]), b"")
    assert fields(caught.value) == [field]


def test_a_batch_may_hold_its_limit_and_no_more() -> None:
    element = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t"}
    full = parse_http(BATCH, json.dumps([element] * MAX_BATCH_EVENTS).encode())
    assert len(full.events) == MAX_BATCH_EVENTS
    with pytest.raises(InvalidEvent, match="at most 100 events, not 101"):
        parse_http(BATCH, json.dumps([element] * (MAX_BATCH_EVENTS + 1)).encode())


# What can never be


def test_an_event_that_exists_is_valid() -> None:
    with pytest.raises(InvalidEvent) as caught:
        Event(id="", source="a b", type="t", subject="", time="now", dataschema="/x", extensions={"A": 1, "data": "x"})
    assert fields(caught.value) == ["id", "source", "subject", "time", "dataschema", "A", "data"]


def test_an_event_cannot_be_changed() -> None:
    event = Event(id="1", source="/s", type="t")
    with pytest.raises(FrozenInstanceError):
        event.id = "2"  # type: ignore[misc]


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"data":' * 100_000, b"[" * 100_000 + b"]" * 100_000])
@pytest.mark.parametrize("headers", [BINARY, STRUCTURED, BATCH], ids=MODES)
def test_no_depth_brings_the_parser_down(headers: Mapping[str, str], body: bytes) -> None:
    with pytest.raises(MalformedRequest):
        parse_http(headers, body)


@pytest.mark.parametrize("name", ["source", "dataschema", "time", "subject", "id", "traceparent", "content-type"])
@pytest.mark.parametrize("piece", ["a", "%41", "a:", "/", "a@", "; ", ";a=b", '"', "\\", "[::", "0", "a.", "-", "?#"])
def test_no_length_brings_the_checks_down(name: str, piece: str) -> None:
    key = name if name == "content-type" else f"ce-{name}"
    for prefix in ("", "http://", "application/json", '"'):
        for suffix in ("", "\x01"):
            try:
                parse_http({**BINARY, key: prefix + piece * 100_000 + suffix}, b"")
            except DarkroomError:
                continue


HEADER_NAMES = st.sampled_from([*BINARY, "ce-subject", "ce-time", "ce-dataschema", "ce-", "ce-data", "ce-x", "host"])
HEADER_VALUES = (
    st.text()
    | st.text('%"\\ 0123456789abcdefABCDEF:/?#[]@;=', max_size=12)
    | st.sampled_from(["1.0", *STRUCTURED.values(), *BATCH.values(), "application/json", "application/cloudevents"])
)
BODIES = st.binary() | st.text().map(str.encode) | st.sampled_from([vector.body for vector in VECTORS])


@given(st.dictionaries(HEADER_NAMES | st.text(), HEADER_VALUES), BODIES)
def test_no_request_raises_anything_but_a_darkroom_error(headers: dict[str, str], body: bytes) -> None:
    try:
        parsed = parse_http(headers, body)
    except DarkroomError:
        return
    assert all(isinstance(event, Event | InvalidEvent) for event in parsed.events)


@given(st.sampled_from(VECTORS), st.data())
def test_no_damaged_request_raises_anything_but_a_darkroom_error(vector: Vector, data: st.DataObject) -> None:
    headers = dict(vector.headers)
    spare_headers = data.draw(st.booleans())
    if headers and not spare_headers:
        headers[data.draw(st.sampled_from(sorted(headers)))] = data.draw(HEADER_VALUES)
    body = bytearray(vector.body)
    if body:
        place = data.draw(st.integers(0, len(body) - 1))
        body[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    try:
        parse_http(headers, bytes(body))
    except DarkroomError:
        return


# What is written

# Neither control characters nor surrogates; noncharacters are among the unassigned (Cn).
TEXTS = st.text(st.characters(exclude_categories=["Cc", "Cs", "Cn"]), min_size=1)
ENCODED = TEXTS.map(lambda text: quote(text, safe="/:@!$&'()*+,;="))
URIS = st.builds("{}:{}".format, st.sampled_from(["urn:x", "https://client.example", "mailto"]), ENCODED).filter(
    lambda uri: not uri.startswith("https") or uri[len("https://client.example:")].isdigit()
)
SOURCES = st.sampled_from(["/", "urn:uuid:6e8bc430-9c3a-11d9-9669-0800200c9a66", "https://u@[::1]:80/a?b#c"]) | (
    ENCODED.map(lambda path: "/a/" + path)
)
TIMES = st.builds(
    lambda time, minutes: time.replace(tzinfo=timezone(timedelta(minutes=minutes))).isoformat(),
    st.datetimes(),
    st.integers(-1439, 1439),
)
DEFINED = {"specversion", "id", "source", "type", "subject", "time", "datacontenttype", "dataschema", "data"}
# The SDK keeps all extensions under this name and mistakes one that is called so.
NAMES = st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=1).filter(lambda n: n not in {*DEFINED, "extensions"})
EXTENSIONS: st.SearchStrategy[dict[str, Attribute]] = st.dictionaries(
    NAMES, TEXTS | st.just("") | st.integers(-(2**31), 2**31 - 1) | st.booleans(), max_size=4
)
JSON_TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
DATA: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | JSON_TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(JSON_TEXTS, inner, max_size=4),
    max_leaves=12,
)
JSON_TYPES = st.sampled_from(["application/json", "application/json; charset=utf-8", "application/vnd.x+json"])
EVENTS = st.builds(
    Event,
    id=TEXTS,
    source=SOURCES,
    type=TEXTS,
    subject=st.none() | TEXTS,
    time=st.none() | TIMES,
    datacontenttype=st.none() | JSON_TYPES,
    dataschema=st.none() | st.just("https://client.example/schema?v=1") | ENCODED.map(lambda rest: "urn:x:" + rest),
    extensions=EXTENSIONS,
    data=DATA,
)


def as_text(event: Event) -> Event:
    """The event after binary mode: extensions are text, and the type of the data is always set."""
    return replace(
        event,
        extensions={name: canonical(value) for name, value in event.extensions.items()},
        datacontenttype=event.datacontenttype or (None if event.data is None else "application/json"),
    )


@given(EVENTS)
def test_an_event_in_structured_mode_is_read_back_whole(event: Event) -> None:
    headers, body = encode_structured(event)
    parsed = parse_http(headers, body)
    assert parsed == Parsed(Mode.STRUCTURED, (event,))
    assert Event.decode_structured(event.encode_structured()) == event
    assert {name: type(value) for name, value in one(parsed).extensions.items()} == {
        name: type(value) for name, value in event.extensions.items()
    }


@given(EVENTS)
def test_an_event_in_binary_mode_is_read_back_whole(event: Event) -> None:
    headers, body = event.encode_binary()
    assert parse_http(headers, body) == Parsed(Mode.BINARY, (as_text(event),))


@given(EVENTS)
def test_headers_are_printable_ascii_without_spaces_or_quotes(event: Event) -> None:
    headers, _ = event.encode_binary()
    for name, value in headers.items():
        assert name == name.lower()
        if name != "content-type":
            assert value.isascii()
            assert value.isprintable()
            assert not set(' "') & set(value)


@given(st.lists(EVENTS, max_size=3))
def test_a_batch_is_read_back_in_order(batch: list[Event]) -> None:
    headers, body = encode_batch(batch)
    assert parse_http(headers, body) == Parsed(Mode.BATCH, tuple(batch))


def foreign(event: CloudEvent) -> dict[str, Any]:
    """All attributes and the data of an event as the SDK read it."""
    return {**event.get_attributes(), "data": event.get_data()}


@given(EVENTS)
def test_the_cloudevents_sdk_reads_our_structured_mode(event: Event) -> None:
    expected = {"data": None, **event.encode_structured()}
    read = foreign(from_http(*encode_structured(event)))
    # It takes the time for present where it is absent, and an empty string for no data.
    assert {name: read[name] for name in expected if name != "data"} == {
        k: v for k, v in expected.items() if k != "data"
    }
    assert read["data"] == (expected["data"] if expected["data"] != "" else None)


@given(EVENTS)
def test_the_cloudevents_sdk_reads_our_binary_mode(event: Event) -> None:
    """The SDK does not decode percent-encoded headers (HTTP binding, 3.1.3.2), so the test does."""
    expected = {"data": None, **as_text(event).encode_structured()}
    read = foreign(from_http(*event.encode_binary()))
    read = {
        k: unquote(v) if isinstance(v, str) and k not in {"data", "datacontenttype"} else v for k, v in read.items()
    }
    assert {name: read[name] for name in expected if name != "data"} == {
        k: v for k, v in expected.items() if k != "data"
    }
    assert read["data"] == (expected["data"] if expected["data"] != "" else None)


# Our own events


def an_event(**changes: Any) -> Event:
    return job_event(
        **{
            "job_id": "0199a2b4-7d3c-7abc-8def-0123456789ab",
            "kind": JobEvent.COMPLETED,
            "event_id": "0199a2b4-7d3c-7abc-8def-0123456789ab:end",
            "seq": 12,
            "time_ms": 1_795_186_800_123,
            "source": "/darkroom",
            "data": {"artifacts": []},
            **changes,
        }
    )


def test_a_log_entry_is_published_as_an_event_about_its_job() -> None:
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    event = an_event(traceparent=trace, tenant="default")
    assert event.encode_structured() == {
        "specversion": "1.0",
        "id": "0199a2b4-7d3c-7abc-8def-0123456789ab:end",
        "source": "/darkroom",
        "type": "dev.darkroom.job.completed",
        "subject": "0199a2b4-7d3c-7abc-8def-0123456789ab",
        "time": "2026-11-20T15:00:00.123Z",
        "datacontenttype": "application/json",
        "sequence": "00000000000000000012",
        "traceparent": trace,
        "tenant": "default",
        "data": {"artifacts": []},
    }


@given(st.integers(1, 2**64 - 1), st.integers(1, 2**64 - 1))
def test_sequences_sort_as_text(one_seq: int, other_seq: int) -> None:
    texts = [str(an_event(seq=seq).extensions["sequence"]) for seq in (one_seq, other_seq)]
    assert (texts[0] < texts[1]) == (one_seq < other_seq)
    assert {len(text) for text in texts} == {events.SEQUENCE_DIGITS}


@pytest.mark.parametrize("kind", list(JobEvent))
def test_every_kind_of_entry_has_a_type_of_its_own(kind: JobEvent) -> None:
    assert an_event(kind=kind).type == events.type_of(kind) == f"dev.darkroom.job.{kind.value}" != events.REQUESTED


def test_the_answer_to_an_event_is_an_event_with_the_id_under_every_name() -> None:
    event = accepted_event(job_id="j", tenant="default", event_id="j:1", time_ms=0, source="/darkroom")
    headers, body = event.encode_binary()
    assert json.loads(body) == {"id": "j", "job_id": "j", "task_id": "j", "status": State.PENDING}
    assert one(parse_http(headers, body)) == event
    assert (event.type, event.subject, event.extensions["sequence"]) == (
        "dev.darkroom.job.accepted",
        "j",
        "00000000000000000001",
    )


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", True),
        ("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more", True),
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more", False),
        ("ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", False),
        ("00-00000000000000000000000000000000-00f067aa0ba902b7-01", False),
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01", False),
        ("00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01", False),
        ("00-4bf92f3577b34da6a3ce929d0e0e4736", False),
        ("", False),
        (7, False),
    ],
)
def test_a_malformed_trace_is_ignored(text: str | int, *, kept: bool) -> None:
    event = Event(id="1", source="/s", type="t", extensions={"traceparent": text})
    assert event.traceparent == (text if kept else None)


def test_base64_is_read_as_what_it_holds() -> None:
    members = {**Event(id="1", source="/s", type="t").encode_structured()}
    members["data_base64"] = base64.b64encode('{"prompt":"Ålesund"}'.encode()).decode()
    assert one(parse_http(STRUCTURED, json.dumps(members).encode())).data == {"prompt": "Ålesund"}
