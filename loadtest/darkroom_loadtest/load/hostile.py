"""Hostile input: invalid requests, each of which must be refused quickly with a 4xx and problem details."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

JSON = "application/json"
JOBS = "/api/v1/generation-jobs/"
UNKNOWN_JOB = "01890000-0000-7000-8000-000000000000"
"""The id of a job that does not exist."""

UNKNOWN_KEY = "dk_0123456789ab_0123456789ABCDEFGHIJKLMNOPQRSTUV3MnFCC"
"""A key with the right checksum that no server has."""

TOO_LARGE = 2 * 1024 * 1024 + 1
"""One byte more than the functions' default limit."""

EVENT = {
    "specversion": "1.0",
    "id": "hostile",
    "source": "/loadtest/hostile",
    "type": "dev.darkroom.job.requested",
    "datacontenttype": JSON,
    "data": {"prompt": "x"},
}


@dataclass(frozen=True)
class Case:
    """One request. `body` is called when the request is sent, since some bodies are large."""

    name: str
    method: str
    path: str
    body: Callable[[], bytes] = bytes
    headers: Mapping[str, str] = field(default_factory=dict)


def cases(model: str, *, with_keys: bool) -> list[Case]:
    """All cases, for this model; those of credentials for a server that requires keys."""
    structured = {"content-type": "application/cloudevents+json"}
    batch = {"content-type": "application/cloudevents-batch+json"}
    rest = {"content-type": JSON}

    def event(name: str, **changes: object) -> Case:
        return Case(f"event: {name}", "POST", "/", _json({**EVENT, **changes}), structured)

    def to_model(name: str, value: object) -> Case:
        return Case(f"REST: {name}", "POST", f"/{model}", _json(value), rest)

    def binary(name: str, **changes: str) -> Case:
        attributes = {key: str(value) for key, value in EVENT.items() if key not in ("data", "datacontenttype")}
        headers = {f"ce-{key}": value for key, value in {**attributes, **changes}.items() if value}
        return Case(f"event: {name}", "POST", "/", _json({"prompt": "x"}), {**headers, **rest})

    return [
        Case("event: no JSON", "POST", "/", lambda: b'{"specversion": "1.0", ', structured),
        Case("event: not UTF-8", "POST", "/", lambda: b'{"id": "\xff\xfe"}', structured),
        Case("event: nested too deep", "POST", "/", lambda: b"[" * 100_000, structured),
        Case("event: no attributes", "POST", "/", _json({"prompt": "x"}), rest),
        event("another version", specversion="0.3"),
        event("an empty id", id=""),
        event("a source of the wrong type", source=7),
        event("an unknown type", type="dev.darkroom.job.completed"),
        event("a time that is none", time="yesterday"),
        event("data of the wrong type", data=[1, 2, 3]),
        event("an unknown field", data={"prompt": "x", "steps_": 4}),
        binary("binary without an id", id=""),
        Case("batch: no array", "POST", "/", _json(EVENT), batch),
        Case("batch: of nothing that is an event", "POST", "/", _json([1, None, {}]), batch),
        Case("REST: too large", "POST", JOBS, lambda: b'{"prompt": "' + b"x" * TOO_LARGE + b'"}', rest),
        Case("event: too large", "POST", "/", lambda: b'{"data": "' + b"x" * TOO_LARGE + b'"}', structured),
        Case("REST: not JSON by its type", "POST", JOBS, lambda: b"prompt=x", {"content-type": "text/plain"}),
        Case("REST: no such model", "POST", "/no-such-model", _json({"prompt": "x"}), rest),
        Case("REST: a method that is none", "PUT", JOBS, _json({"prompt": "x"}), rest),
        Case("REST: no such job", "GET", JOBS + UNKNOWN_JOB),
        Case("REST: an id that is none", "GET", JOBS + "..%2f..%2fetc"),
        Case("REST: cancel an unknown job", "POST", f"{JOBS}{UNKNOWN_JOB}/cancel"),
        to_model("an array", ["x"]),
        to_model("a prompt of the wrong type", {"prompt": {"a": 1}}),
        to_model("a seed of the wrong type", {"prompt": "x", "seed": "7; DROP TABLE jobs"}),
        to_model("steps below the limit", {"prompt": "x", "steps": -1}),
        to_model("an unknown parameter", {"prompt": "x", "__class__": "x"}),
        to_model("a webhook inside", {"prompt": "x", "webhook": "http://169.254.169.254/"}),
        *(_of_credentials(model) if with_keys else ()),
    ]


def _of_credentials(model: str) -> list[Case]:
    """Requests without a valid credential. A header here replaces that of the user's key."""

    def with_credential(name: str, text: str, path: str = f"/{model}") -> Case:
        headers = {"content-type": JSON, "authorization": text}
        return Case(f"credential: {name}", "POST", path, _json({"prompt": "x"}), headers)

    return [
        with_credential("none", ""),
        with_credential("of an unknown scheme", "Digest username=x"),
        with_credential("that is no key", "Bearer dk_x"),
        with_credential("with a wrong checksum", f"Bearer {UNKNOWN_KEY[:-1]}0"),
        with_credential("of an unknown key", f"Bearer {UNKNOWN_KEY}"),
        with_credential("that is not base64", "Basic %%%"),
        with_credential("in the address", f"Bearer {UNKNOWN_KEY}", f"/{model}?key={UNKNOWN_KEY}"),
    ]


def is_refused(status: int, content_type: str) -> bool:
    """Whether the response is a correct refusal."""
    return 400 <= status < 500 and content_type.partition(";")[0].strip() == "application/problem+json"


def _json(value: object) -> Callable[[], bytes]:
    return lambda: json.dumps(value).encode()
