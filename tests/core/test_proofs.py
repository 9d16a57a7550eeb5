"""Proofs of events: what they survive on the way through a Broker, and what they do not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from darkroom.cloudevents import http
from darkroom.cloudevents.event import Event, type_of
from darkroom.cloudevents.proofs import KEY_ID, PROOF, PROVEN, Proofs
from darkroom.errors import ProofRefused
from darkroom.jobs import JobEvent
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

OLD, NEW, OTHER = (SecretStr(letter * 32) for letter in "abc")
PROOFS = Proofs((NEW,))

EVENT = Event(
    id="0198f000-0000-7000-8000-000000000000:7",
    source="https://darkroom.test",
    type=type_of(JobEvent.COMPLETED),
    subject="0198f000-0000-7000-8000-000000000000",
    time="2026-11-20T15:00:00.120Z",
    datacontenttype="application/json",
    extensions={"sequence": "00000000000000000007", "tenant": "studio", "traceparent": "00-a-b-01", KEY_ID: "k"},
    data={
        "status": "completed",
        "steps": 4,
        "guidance": 1.5,
        "text": "Zwölf Boxkämpfer\u2028",
        "none": None,
        "b": [True, 1],
    },
)


def received(headers: dict[str, str], body: bytes) -> Event:
    (event,) = http.parse_http(headers, body).events
    assert isinstance(event, Event)
    return event


def binary(event: Event) -> Event:
    return received(*event.encode_binary())


def structured(event: Event) -> Event:
    return received(*http.encode_structured(event))


def reencoded(event: Event) -> Event:
    """As a Broker that parses and writes JSON in its own way: order, white space, escapes, 4 as 4.0."""
    members = json.loads(http.encode_structured(event)[1], parse_int=float)
    members = dict(reversed(members.items()))
    members["data"] = dict(reversed(members["data"].items()))
    body = json.dumps(members, indent=2, ensure_ascii=True)
    return received({"content-type": "application/cloudevents+json; charset=utf-8"}, body.encode())


def rewritten(event: Event) -> Event:
    """As a Broker in Go: times without trailing zeros, attributes of its own, and another trace."""
    added = {"knativearrivaltime": "2026-11-20T15:00:01Z", "knativebrokerttl": "254", "traceparent": "00-c-d-01"}
    return replace(
        event,
        time="2026-11-20T15:00:00.12Z",
        datacontenttype="application/json; charset=utf-8",
        extensions={**event.extensions, **added},
    )


def elsewhere(event: Event) -> Event:
    return replace(event, time="2026-11-20T16:00:00.120000+01:00")


PATHS: dict[str, Callable[[Event], Event]] = {
    "binary": binary,
    "structured": structured,
    "binary, structured": lambda event: structured(binary(event)),
    "structured, binary": lambda event: binary(structured(event)),
    "encoded again": reencoded,
    "rewritten": rewritten,
    "another zone": elsewhere,
    "all": lambda event: binary(reencoded(rewritten(binary(event)))),
}


@pytest.mark.parametrize("path", PATHS)
def test_a_proof_survives_what_a_broker_does(path: str) -> None:
    PROOFS.check(PATHS[path](PROOFS.prove(EVENT)))


def test_the_extension_is_one_that_every_transport_carries() -> None:
    """CloudEvents 1.0.2: lower-case letters and digits, at most 20."""
    for name in (PROOF, KEY_ID):
        assert name.isalnum()
        assert name.islower()
        assert len(name) <= 20
    assert len(PROOFS.prove(EVENT).extensions[PROOF]) == 43  # type: ignore[arg-type]


CHANGED: dict[str, Any] = {
    "id": "other",
    "source": "https://elsewhere.test",
    "type": type_of(JobEvent.FAILED),
    "subject": "0198f000-0000-7000-8000-000000000001",
    "time": "2026-11-20T15:00:00.121Z",
    "tenant": "agency",
    "sequence": "00000000000000000008",
    "expirytime": "2026-11-20T15:00:00Z",
    KEY_ID: "l",
}


@pytest.mark.parametrize("name", PROVEN)
def test_an_event_with_another_attribute_is_refused(name: str) -> None:
    proven = PROOFS.prove(EVENT)
    members = proven.encode_structured() | {name: CHANGED[name]}

    with pytest.raises(ProofRefused, match="does not match"):
        PROOFS.check(Event.decode_structured(members))


@pytest.mark.parametrize("name", ["subject", "time", "tenant", "sequence", KEY_ID])
def test_an_event_without_an_attribute_is_refused(name: str) -> None:
    members = PROOFS.prove(EVENT).encode_structured()
    del members[name]

    with pytest.raises(ProofRefused):
        PROOFS.check(Event.decode_structured(members))


@pytest.mark.parametrize(
    "data",
    [None, {}, {**EVENT.data, "steps": 5}, {**EVENT.data, "steps": "4"}, {**EVENT.data, "b": [1, 1]}, [EVENT.data]],
    ids=["none", "empty", "number", "text for number", "number for true", "nested"],
)
def test_an_event_with_other_data_is_refused(data: Any) -> None:
    with pytest.raises(ProofRefused):
        PROOFS.check(replace(PROOFS.prove(EVENT), data=data))


@pytest.mark.parametrize("proof", [None, "", "x", "A" * 43, "ä" * 43])
def test_an_event_without_a_right_proof_is_refused(proof: str | None) -> None:
    extensions = {**EVENT.extensions, **({} if proof is None else {PROOF: proof})}

    with pytest.raises(ProofRefused) as refused:
        PROOFS.check(replace(EVENT, extensions=extensions))

    right = str(PROOFS.prove(EVENT).extensions[PROOF])
    assert right not in refused.value.detail
    assert refused.value.status == 403


def test_a_proof_of_another_event_is_refused() -> None:
    other = PROOFS.prove(replace(EVENT, id="other"))

    with pytest.raises(ProofRefused):
        PROOFS.check(replace(EVENT, extensions={**EVENT.extensions, PROOF: other.extensions[PROOF]}))


def test_while_keys_are_rotated_both_are_accepted_and_the_newest_proves() -> None:
    before, during, after = Proofs((OLD,)), Proofs((NEW, OLD)), Proofs((NEW,))

    during.check(before.prove(EVENT))
    after.check(during.prove(EVENT))
    for proofs, event in ((after, before.prove(EVENT)), (before, during.prove(EVENT)), (Proofs((OTHER,)), EVENT)):
        with pytest.raises(ProofRefused):
            proofs.check(event)


_NUMBERS = st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
_TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
_DATA = st.recursive(
    st.none() | st.booleans() | _NUMBERS | _TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXTS, inner, max_size=4),
    max_leaves=12,
)


@given(data=_DATA)
def test_any_data_keeps_its_proof_in_both_modes(data: Any) -> None:
    proven = PROOFS.prove(replace(EVENT, data=data))

    for path in (binary, structured):
        PROOFS.check(path(proven))


@given(data=_DATA, other=_DATA)
def test_no_two_different_data_have_one_proof(data: Any, other: Any) -> None:
    proofs = [PROOFS.prove(replace(EVENT, data=value)).extensions[PROOF] for value in (data, other)]

    assert (proofs[0] == proofs[1]) == (_same(data, other))


def _same(one: Any, other: Any) -> bool:
    """Whether two JSON values are equal: unlike in Python, true is not 1."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[name], other[name]) for name in one)
    return bool(one == other)
