"""The function `undelivered`: events that Knative could not deliver are stored, shown without secrets, and replayed."""

from __future__ import annotations

import base64
import json
import re
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from darkroom.cloudevents import http
from darkroom.cloudevents.event import Event
from darkroom.cloudevents.proofs import PROOF
from darkroom.ledger.undelivered import id_of
from darkroom_functions.http import routes
from darkroom_functions.resources.redaction import redacted

from tests.conftest import RedisServers
from tests.courier.sink import HANG, Answer, Sink
from tests.functions.api import Api, faults, serving, slug
from tests.parts import PROOFS, Functions, environment
from tests.redis_server import RedisKind, RedisServer

UNDELIVERED = routes.UNDELIVERED
NOBODYS_ID = f"und_{0:032x}"
MARKS = {
    "knativeerrordest": "http://subscriber.test/hooks",
    "knativeerrorcode": "500",
    "knativeerrordata": base64.b64encode(b"it broke").decode(),
    "knativebrokerttl": "255",
    "knativearrivaltime": "2026-11-20T15:00:00Z",
}
"""The extensions that a Broker adds to an event that it could not deliver."""


@pytest.fixture(scope="module")
def sink() -> Iterator[Sink]:
    with Sink().running() as sink:
        yield sink


@pytest.fixture(scope="module")
def api(redis_servers: RedisServers, sink: Sink, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """All functions behind one port, with a sink."""
    redis_url = redis_servers(RedisKind.EMBEDDED).url
    folder = tmp_path_factory.mktemp("functions")
    with serving(
        redis_url, f"t-{secrets.token_hex(8)}", folder, K_SINK=sink.url, DARKROOM_FOREIGN_EVENTS="true"
    ) as api:
        yield api


@pytest.fixture(autouse=True)
def emptied(api: Api, sink: Sink) -> None:
    """The tests of this file share a ledger and a sink; each begins with no event stored and a sink that accepts."""
    for event_id in listed(api):
        assert api.request("DELETE", f"{UNDELIVERED}/{event_id}").status_code == 204
    sink.events.clear()
    sink.behave = lambda _event: Answer()


def event(name: str = "1", *, extensions: dict[str, str] | None = None, **members: Any) -> Event:
    named = {"id": name, "source": "/tests", "type": "test.happened", "subject": "job", "data": {"n": 1}, **members}
    return Event(**named, extensions={**MARKS, **(extensions or {})})


def give_up(url: str, undelivered: Event, *, structured: bool = False) -> httpx.Response:
    """Post the event as a Broker does."""
    encoded = http.encode_structured(undelivered) if structured else undelivered.encode_binary()
    headers, body = encoded
    return httpx.post(url, headers=headers, content=body, trust_env=False, timeout=60)


def kept(api: Api, undelivered: Event) -> str:
    """Store the event; returns its id in the store."""
    response = give_up(api.functions.url + routes.UNDELIVERED_SINK, undelivered)
    assert (response.status_code, response.content) == (204, b"")
    return id_of(undelivered, tenant="default")


def listed(api: Api, **query: Any) -> list[str]:
    return [each["id"] for each in api.get(UNDELIVERED, params=query).json()["undelivered_events"]]


def shown(api: Api, event_id: str) -> dict[str, Any]:
    response = api.get(f"{UNDELIVERED}/{event_id}")
    assert response.status_code == 200, response.text
    view: dict[str, Any] = response.json()
    return view


# -- what comes in -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("structured", [False, True], ids=["binary", "structured"])
def test_an_event_is_stored_and_shown_with_its_failure(api: Api, structured: bool) -> None:
    sent = event(time="2026-11-20T15:00:00Z", extensions={"sequence": "07"})
    response = give_up(api.functions.url + routes.UNDELIVERED_SINK, sent, structured=structured)
    assert (response.status_code, response.content) == (204, b"")
    (event_id,) = listed(api)
    view = shown(api, event_id)
    assert view["event"] == {
        "specversion": "1.0",
        "id": "1",
        "source": "/tests",
        "type": "test.happened",
        "subject": "job",
        "time": "2026-11-20T15:00:00Z",
        "sequence": "07",
        "data": {"n": 1},
        **({} if structured else {"datacontenttype": "application/json"}),
    }
    assert (view["destination"], view["code"], view["answer"]) == (MARKS["knativeerrordest"], 500, "it broke")
    assert (view["state"], view["replayed_at"]) == ("undelivered", None)
    (in_list,) = api.get(UNDELIVERED).json()["undelivered_events"]
    assert in_list == {**view, "event": {name: each for name, each in view["event"].items() if name != "data"}}


def test_large_events_of_one_source_leave_those_of_others_in_place(api: Api) -> None:
    others = [kept(api, event(f"{number}", source=f"/others/{number}")) for number in range(3)]
    flood = [kept(api, event(f"{number}", source="/flood", data="x" * 2_000_000)) for number in range(35)]
    found = listed(api, limit=100)
    assert found[-3:] == others[::-1]
    assert found[:-3] == flood[:1:-1], "the newest that 64 MB hold"


def test_in_a_cluster_the_function_accepts_events_at_its_root(redis_url: str, namespace: str, tmp_path: Path) -> None:
    function = Functions("undelivered", environment=environment(redis_url, namespace), log=tmp_path / "log")
    function.start()
    try:
        refused = give_up(function.url, event())
        assert (refused.status_code, slug(refused)) == (403, "proof-refused")
        assert give_up(function.url, PROOFS.prove(event())).status_code == 204
        (found,) = httpx.get(function.url + UNDELIVERED, trust_env=False).json()["undelivered_events"]
        assert found["event"]["id"] == "1"
        elsewhere = httpx.get(f"{function.url}/openapi.json", trust_env=False)
        assert (elsewhere.status_code, slug(elsewhere)) == (404, "not-found")
        refused = httpx.put(function.url, trust_env=False)
        assert (refused.status_code, refused.headers["allow"]) == (405, "POST")
    finally:
        assert function.stop() == 0


def test_a_repeat_is_a_success_and_stored_once(api: Api) -> None:
    first, other = kept(api, event("1")), kept(api, event("2"))
    assert listed(api) == [other, first]
    assert kept(api, event("1")) == first
    assert listed(api) == [first, other], "the one that failed last comes first"


def test_an_event_of_another_tenant_is_not_there(api: Api) -> None:
    theirs = PROOFS.prove(event(extensions={"tenant": "stranger"}))
    assert kept(api, theirs)
    assert listed(api) == []
    event_id = id_of(theirs, tenant="stranger")
    for method, path in (("GET", ""), ("POST", "/replay")):
        assert api.request(method, f"{UNDELIVERED}/{event_id}{path}").status_code == 404
    api.request("DELETE", f"{UNDELIVERED}/{event_id}")
    assert api.jobs.redis.exists(f"{api.jobs.namespace}:undelivered:{event_id}")


def test_an_event_without_a_proof_belongs_to_the_default_tenant_whatever_it_names(api: Api) -> None:
    for proof in ({}, {PROOF: "A" * 43}):
        event_id = kept(api, event(str(len(proof)), extensions={"tenant": "stranger", **proof}))
        assert event_id in listed(api)


@pytest.mark.parametrize(
    ("headers", "body", "fields"),
    [
        pytest.param({}, b"{}", ["content-type", "ce-specversion"], id="no attributes"),
        pytest.param({"ce-id": "1", "ce-type": "t", "ce-source": "/s"}, b"", ["specversion"], id="no specversion"),
        pytest.param({"content-type": "application/cloudevents+json"}, b"{", ["body"], id="half an object"),
        pytest.param({"content-type": "application/cloudevents-batch+json"}, b"[]", ["content-type"], id="a batch"),
        pytest.param(
            {"content-type": "text/xml", "ce-specversion": "1.0", "ce-id": "1", "ce-type": "t", "ce-source": "/s"},
            b"<a/>",
            ["datacontenttype"],
            id="XML",
        ),
    ],
)
def test_a_request_without_an_event_is_refused_permanently(
    api: Api, headers: dict[str, str], body: bytes, fields: list[str]
) -> None:
    url = api.functions.url + routes.UNDELIVERED_SINK
    response = httpx.post(url, headers=headers, content=body, trust_env=False)
    assert response.status_code == 422
    assert response.headers["content-type"] == "application/problem+json"
    assert faults(response) == fields
    assert listed(api) == []


def test_a_body_above_the_limit_is_413(api: Api) -> None:
    response = give_up(api.functions.url + routes.UNDELIVERED_SINK, event(data="x" * 3_000_000))
    assert response.status_code == 413


def test_while_redis_is_unavailable_the_broker_is_asked_to_retry(
    own_redis: RedisServer, namespace: str, tmp_path: Path
) -> None:
    function = Functions("undelivered", environment=environment(own_redis.url, namespace), log=tmp_path / "log")
    function.start()
    try:
        own_redis.stop()
        response = give_up(function.url, PROOFS.prove(event()))
        assert response.status_code == 503
        assert int(response.headers["retry-after"]) >= 1
    finally:
        function.stop()


# -- the list ----------------------------------------------------------------------------------------------------------


def test_the_list_has_every_event_page_by_page(api: Api) -> None:
    ids = [kept(api, event(f"{number}")) for number in range(5)]
    pages: list[str] = []
    after: str | None = None
    while True:
        page = api.get(UNDELIVERED, params={"limit": 2} | ({"after": after} if after else {})).json()
        pages += [each["id"] for each in page["undelivered_events"]]
        after = page["next"]
        if after is None:
            break
    assert sorted(pages) == sorted(ids)
    assert len(pages) == 5


@pytest.mark.parametrize(
    ("query", "fields"),
    [("limit=0", ["limit"]), ("after=1", ["after"]), ("type=x", ["type"]), ("limit=x&after=y", ["limit", "after"])],
)
def test_a_query_that_cannot_be_taken_is_refused_by_name(api: Api, query: str, fields: list[str]) -> None:
    response = api.get(f"{UNDELIVERED}?{query}")
    assert response.status_code == 422
    assert faults(response) == fields


@pytest.mark.parametrize("event_id", [NOBODYS_ID, "123"], ids=["unknown", "no id"])
@pytest.mark.parametrize(("method", "path"), [("GET", ""), ("POST", "/replay")])
def test_an_unknown_id_is_404(api: Api, method: str, path: str, event_id: str) -> None:
    response = api.request(method, f"{UNDELIVERED}/{event_id}{path}")
    assert (response.status_code, slug(response)) == (404, "not-found")


def test_a_deleted_event_is_gone_and_may_be_deleted_again(api: Api) -> None:
    event_id = kept(api, event())
    for _ in range(2):
        assert api.request("DELETE", f"{UNDELIVERED}/{event_id}").status_code == 204
    assert api.get(f"{UNDELIVERED}/{event_id}").status_code == 404
    assert api.request("DELETE", f"{UNDELIVERED}/123").status_code == 404


# -- replay ------------------------------------------------------------------------------------------------------------


def test_a_replay_posts_the_event_as_its_source_sent_it(api: Api, sink: Sink) -> None:
    sent = event(extensions={"sequence": "07"}, datacontenttype="application/json", data={"text": "é", "n": 1.5})
    event_id = kept(api, sent)
    sink.behave = lambda _event: Answer(202, body=b"thank you")
    response = api.post(f"{UNDELIVERED}/{event_id}/replay")
    assert response.json() == {"id": event_id, "status": 202, "delivered": True, "answer": "thank you"}
    (posted,) = sink.events
    assert posted.extensions == {"sequence": "07"}, "Knative's marks are gone: a Broker would count on from them"
    assert (posted.id, posted.source, posted.data) == (sent.id, sent.source, sent.data)
    view = shown(api, event_id)
    assert view["state"] == "replayed"
    assert view["replayed_at"] >= view["failed_at"]


@pytest.mark.parametrize("status", [302, 400, 429, 500])
def test_the_sinks_response_is_returned_and_the_event_stays_stored(api: Api, sink: Sink, status: int) -> None:
    event_id = kept(api, event())
    sink.behave = lambda _event: Answer(status, body=b"no: Bearer abcdefghijkl", headers={"location": "/elsewhere"})
    replayed = api.post(f"{UNDELIVERED}/{event_id}/replay").json()
    assert replayed == {"id": event_id, "status": status, "delivered": False, "answer": "no: (hidden)"}
    assert shown(api, event_id)["state"] == "undelivered"
    assert len(sink.events) == 1, "no redirect is followed"


def test_a_response_that_does_not_end_is_truncated(api: Api, sink: Sink) -> None:
    event_id = kept(api, event())
    sink.behave = lambda _event: Answer(body=b"x" * 1_000_000)
    replayed = api.post(f"{UNDELIVERED}/{event_id}/replay").json()
    assert (replayed["delivered"], replayed["answer"]) == (True, "x" * 1024)


def test_an_event_that_fails_again_is_undelivered_again(api: Api) -> None:
    event_id = kept(api, event())
    assert api.post(f"{UNDELIVERED}/{event_id}/replay").json()["delivered"]
    assert kept(api, event()) == event_id
    view = shown(api, event_id)
    assert (view["state"], view["replayed_at"]) == ("undelivered", None)


def test_an_event_that_fails_again_while_it_is_replayed_is_not_reported_as_delivered(api: Api, sink: Sink) -> None:
    event_id = kept(api, event())

    def fails_at_once(_event: Event) -> Answer:
        kept(api, event())
        return Answer(202)

    sink.behave = fails_at_once
    assert not api.post(f"{UNDELIVERED}/{event_id}/replay").json()["delivered"]
    assert shown(api, event_id)["state"] == "undelivered"


@pytest.mark.parametrize("trouble", ["away", "silent", "not set"])
def test_a_sink_without_a_response_is_503_and_nothing_is_lost(
    redis_url: str, namespace: str, tmp_path: Path, sink: Sink, trouble: str
) -> None:
    variables: dict[str, Any] = {"DARKROOM_REPLAY_TIMEOUT_S": "0.5"}
    if trouble != "not set":
        variables["K_SINK"] = sink.url if trouble == "silent" else "http://127.0.0.1:1/"
    sink.behave = lambda _event: HANG
    with serving(redis_url, namespace, tmp_path, **variables, DARKROOM_FOREIGN_EVENTS="true") as api:
        event_id = kept(api, event())
        response = api.post(f"{UNDELIVERED}/{event_id}/replay")
        assert (response.status_code, slug(response)) == (503, "sink-unavailable")
        assert int(response.headers["retry-after"]) >= 1
        assert shown(api, event_id)["state"] == "undelivered"


def test_the_commands_of_the_page_do_what_it_describes(api: Api, sink: Sink, repository: Path) -> None:
    page = (repository / "docs" / "undelivered.md").read_text().replace("http://localhost:8000", api.functions.url)
    keep, rest = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    assert "204" in typed(keep)
    (event_id,) = listed(api)
    listing, reading, replaying, deleting = rest.replace("$id", event_id).splitlines()
    assert json.loads(typed(listing))["undelivered_events"][0]["id"] == event_id
    shown = json.loads(typed(reading))
    assert shown["event"]["data"] == {"lens": "cracked", "password": "(hidden)"}
    assert (shown["destination"], shown["code"]) == ("http://repairs.example/", 500)
    assert json.loads(typed(replaying))["delivered"]
    assert sink.events[0].data == {"lens": "cracked", "password": "open sesame"}
    assert "204" in typed(deleting)
    assert listed(api) == []


def typed(line: str) -> str:
    """The output of a shell command."""
    done = subprocess.run(["bash", "-ec", line], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout


# -- secrets -----------------------------------------------------------------------------------------------------------

SECRET = "open-sesame"


@pytest.mark.parametrize(
    "hidden",
    [
        pytest.param({"password": SECRET}, id="by its name"),
        pytest.param({"deep": [{"api_key": {"value": SECRET}}]}, id="by a name around it"),
        pytest.param({"Authorization": f"Basic {SECRET}"}, id="a header"),
        pytest.param({"webhook": f"https://hooks.test/services/{SECRET}"}, id="a webhook's path"),
        pytest.param({"output_paths": [f"http://host/a.png?expires=1&signature={SECRET}"]}, id="a signed link"),
        pytest.param({"text": f"see redis://user:{SECRET}@host:6379/0 there"}, id="an address in a text"),
        pytest.param({"text": f"whsec_{SECRET}"}, id="a signing secret"),
        pytest.param({"text": f"Authorization: bearer {SECRET}"}, id="a bearer token"),
        pytest.param({f"https://host/?token={SECRET}": 1}, id="a member's name"),
    ],
)
def test_no_view_shows_a_secret_and_a_replay_has_it(api: Api, sink: Sink, hidden: dict[str, Any]) -> None:
    event_id = kept(api, event(data={"prompt": "a lighthouse", **hidden}))
    response = api.get(f"{UNDELIVERED}/{event_id}")
    assert SECRET not in response.text
    assert "(hidden)" in response.text
    assert response.json()["event"]["data"]["prompt"] == "a lighthouse"
    api.post(f"{UNDELIVERED}/{event_id}/replay")
    assert SECRET in json.dumps(sink.events[0].data)


def test_the_failure_is_shown_without_secrets(api: Api) -> None:
    answer = base64.b64encode(f'dispatch error: Post "http://u:{SECRET}@host/?key={SECRET}"'.encode()).decode()
    where = f"http://u:{SECRET}@host/path?token={SECRET}"
    marked = event(extensions={"knativeerrordata": answer, "knativeerrordest": where, "authtoken": SECRET})
    event_id = kept(api, marked)
    for response in (api.get(UNDELIVERED), api.get(f"{UNDELIVERED}/{event_id}")):
        assert SECRET not in response.text
    view = shown(api, event_id)
    assert view["destination"] == "http://(hidden)@host/path?(hidden)"
    assert view["answer"] == 'dispatch error: Post "http://(hidden)@host/?(hidden)"'
    assert all(SECRET not in json.dumps(line) for line in api.functions.said("undelivered"))


@pytest.mark.parametrize(
    "plain",
    ["a lighthouse at dusk", "Basic colours", "the token of love", "http://host/path", "s3://bucket/key", "12:30"],
)
def test_other_text_is_shown_unchanged(plain: str) -> None:
    assert redacted({"prompt": plain, "n": 1, "b": True, "x": None}) == {"prompt": plain, "n": 1, "b": True, "x": None}


@pytest.mark.parametrize("broken", ["http://[::1/", "http://[v1.x]:y/?q", "x://"])
def test_an_invalid_address_is_not_shown(broken: str) -> None:
    assert "q" not in redacted(broken)
