"""Dead letters over HTTP: what they show, how they are redriven and purged."""

from __future__ import annotations

from typing import Any

import pytest
from darkroom.jobs import ErrorKind, State
from darkroom.ledger import calls
from darkroom.ledger.calls import AttemptEnd

from tests.driven_jobs import WORKER
from tests.functions.api import EVENT_TYPE, JOBS, Api, binary, faults, slug
from tests.parts import PUBLIC_URL

LETTERS = "/api/v1/dead-letters"
NOBODYS_ID = "01a1f999-2b9e-7804-88d9-9fd5d3c06016"
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(autouse=True)
def empty(api: Api) -> None:
    """The tests of this file share a ledger; each begins without dead letters."""
    api.request("DELETE", LETTERS)


def kill(api: Api, job_id: str) -> str:
    """Use up the attempts of the job."""
    for number in range(3):
        api.jobs.start(job_id, token=f"{number}")
        error = {"kind": ErrorKind.TRANSIENT, "message": f"hiccup {number}"}
        ended = api.jobs.run(calls.retry(job_id, token=f"{number}", error=error, delay_ms=0))
    assert ended is AttemptEnd.FAILED
    return job_id


def dead(api: Api, body: object | None = None) -> str:
    return kill(api, api.submit(body))


def shown(api: Api, job_id: str) -> dict[str, Any]:
    response = api.get(f"{LETTERS}/{job_id}")
    assert response.status_code == 200, response.text
    view: dict[str, Any] = response.json()
    return view


def listed(api: Api, **query: Any) -> list[str]:
    return [letter["id"] for letter in api.get(LETTERS, params=query).json()["dead_letters"]]


# -- what is shown -----------------------------------------------------------------------------------------------------


def test_a_letter_shows_why_it_failed_and_each_attempt(api: Api) -> None:
    job_id = dead(api, {"prompt": "a lighthouse", "user_id": "anna"})
    letter, job = shown(api, job_id), api.job(job_id)
    assert letter["error"] == {"kind": "transient", "message": "hiccup 2"}
    assert (letter["model"], letter["user_id"], letter["ended_at"]) == ("flux", "anna", job["ended_at"])
    assert letter["attempts"] == job["attempts"]
    attempts = [(each["number"], each["worker"], each["outcome"], each["reason"]) for each in letter["attempts"]]
    assert attempts == [
        (1, WORKER, "retried", "transient"),
        (2, WORKER, "retried", "transient"),
        (3, WORKER, "failed", "transient"),
    ]


def test_a_letter_carries_the_event_that_asked_for_it(api: Api) -> None:
    headers = binary("dead-1", time="2026-01-02T03:04:05Z", traceparent=TRACE)
    job_id = api.post("/", headers=headers, json={"model": "sd", "prompt": "x", "seed": 7, "user_id": "ben"}).json()[
        "id"
    ]
    kill(api, job_id)
    event = shown(api, job_id)["event"]
    data = event.pop("data")
    assert event == {
        "specversion": "1.0",
        "id": "dead-1",
        "source": "/tests",
        "type": EVENT_TYPE,
        "subject": job_id,
        "time": "2026-01-02T03:04:05Z",
        "datacontenttype": "application/json",
        "tenant": "default",
        "traceparent": TRACE,
    }
    assert data == {
        "model": "sd",
        "input": api.job(job_id)["input"],
        "run_timeout": api.job(job_id)["run_timeout"],
        "job_type": "image",
        "user_id": "ben",
    }


def test_a_letter_of_a_rest_request_carries_the_event_that_was_made_for_it(api: Api) -> None:
    job_id = dead(api)
    event = shown(api, job_id)["event"]
    assert (event["id"], event["source"], event["subject"]) == (job_id, PUBLIC_URL, job_id)


def test_the_list_has_every_letter_page_by_page_the_last_first(api: Api) -> None:
    ids = [dead(api) for _ in range(3)]
    first = api.get(LETTERS, params={"limit": 2}).json()
    second = api.get(LETTERS, params={"limit": 2, "after": first["next"]}).json()
    pages = [[letter["id"] for letter in page["dead_letters"]] for page in (first, second)]
    assert pages == [[ids[2], ids[1]], [ids[0]]]
    assert second["next"] is None
    assert first["dead_letters"][0] == shown(api, ids[2])


@pytest.mark.parametrize(
    ("query", "fields"),
    [
        ("limit=0", ["limit"]),
        ("after=1", ["after"]),
        ("state=failed", ["state"]),
        ("limit=x&after=y", ["limit", "after"]),
    ],
    ids=["limit", "after", "no parameter of it", "two"],
)
def test_a_query_that_cannot_be_taken_is_refused_by_name(api: Api, query: str, fields: list[str]) -> None:
    response = api.get(f"{LETTERS}?{query}")
    assert response.status_code == 422
    assert faults(response) == fields


def test_a_failure_that_is_not_retried_is_no_dead_letter(api: Api) -> None:
    job_id = api.submit()
    api.jobs.start(job_id)
    api.jobs.fail(job_id, message="no")
    assert listed(api) == []
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/redrive")):
        assert api.request(method, f"{LETTERS}/{job_id}{path}").status_code == 404


@pytest.mark.parametrize("job_id", [NOBODYS_ID, "123"], ids=["unknown", "no id"])
@pytest.mark.parametrize(("method", "path"), [("GET", ""), ("DELETE", ""), ("POST", "/redrive")])
def test_an_unknown_id_is_404(api: Api, method: str, path: str, job_id: str) -> None:
    response = api.request(method, f"{LETTERS}/{job_id}{path}")
    assert (response.status_code, slug(response)) == (404, "not-found")


def test_a_letter_of_another_tenant_is_not_there(api: Api) -> None:
    job_id = api.jobs.submit(tenant="stranger", max_attempts=1)
    api.jobs.start(job_id)
    error = {"kind": ErrorKind.TRANSIENT, "message": "hiccup"}
    assert api.jobs.run(calls.retry(job_id, token="token", error=error, delay_ms=0)) is AttemptEnd.FAILED
    assert listed(api) == []
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/redrive")):
        assert api.request(method, f"{LETTERS}/{job_id}{path}").status_code == 404
    assert api.request("DELETE", LETTERS).json() == {"purged": 0}


# -- redriven ----------------------------------------------------------------------------------------------------------


def test_a_redrive_makes_a_new_job_like_the_old_one(api: Api) -> None:
    hook = {"webhook": "https://client.example/", "webhook_events_filter": ["started"]}
    letter = dead(api, {"model": "sd", "prompt": "x", "priority": 2, "run_timeout": 33, "user_id": "anna", **hook})
    response = api.post(f"{LETTERS}/{letter}/redrive")
    assert response.status_code == 202, response.text
    new_id = response.json()["id"]
    assert response.headers["location"] == JOBS + new_id
    old, new = api.job(letter), api.job(new_id)
    assert (new["state"], new["redrive_of"], old["redrive_of"]) == ("pending", letter, None)
    for name in ("model", "input", "priority", "run_timeout", "user_id", "max_attempts", *hook):
        assert new[name] == old[name], name
    assert old["state"] == State.FAILED
    assert listed(api) == []
    assert api.get(f"{LETTERS}/{letter}").status_code == 404


def test_a_redrive_may_edit_the_input(api: Api) -> None:
    letter = dead(api, {"model": "sd", "prompt": "x", "seed": 7, "width": 64, "height": 64})
    edits = {"input": {"prompt": "y", "size": "128x64"}}
    new = api.job(api.post(f"{LETTERS}/{letter}/redrive", json=edits).json()["id"])
    old = api.job(letter)
    assert new["input"] == {**old["input"], "prompt": "y", "width": 128}


def test_a_redrive_that_is_repeated_answers_with_the_first_new_job(api: Api) -> None:
    letter = dead(api)
    first = api.post(f"{LETTERS}/{letter}/redrive")
    again = api.post(f"{LETTERS}/{letter}/redrive", json={"input": {"prompt": "another"}})
    assert (again.status_code, again.headers["darkroom-repeated"]) == (200, "true")
    assert (again.json(), again.headers["location"]) == (first.json(), first.headers["location"])
    api.jobs.cancel(first.json()["id"])
    assert api.post(f"{LETTERS}/{letter}/redrive").json()["status"] == "cancelled"


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({"input": {"steps": -1, "colour": "red"}}, ["input.steps", "input.colour"]),
        ({"input": 5}, ["input"]),
        ({"prompt": "y"}, ["prompt"]),
    ],
    ids=["parameters", "no object", "no field of it"],
)
def test_edits_that_cannot_be_taken_are_refused_by_name_and_the_letter_stays(
    api: Api, body: object, fields: list[str]
) -> None:
    letter = dead(api)
    response = api.post(f"{LETTERS}/{letter}/redrive", json=body)
    assert response.status_code == 422, response.text
    assert sorted(faults(response)) == sorted(fields)
    assert listed(api) == [letter]


def test_the_message_of_a_redriven_job_carries_its_own_event(api: Api) -> None:
    letter = dead(api)
    new_id = api.post(f"{LETTERS}/{letter}/redrive", headers={"traceparent": TRACE}).json()["id"]
    event = shown(api, kill(api, new_id))["event"]
    assert (event["id"], event["subject"], event["source"], event["traceparent"]) == (new_id, new_id, PUBLIC_URL, TRACE)
    assert event["data"] == {**event["data"], "input": api.job(letter)["input"]}


# -- purged ------------------------------------------------------------------------------------------------------------


def test_a_purged_letter_is_gone_and_its_job_is_still_there(api: Api) -> None:
    letter = dead(api)
    for _ in range(2):
        assert api.request("DELETE", f"{LETTERS}/{letter}").status_code == 204
    assert listed(api) == []
    assert api.post(f"{LETTERS}/{letter}/redrive").status_code == 404
    assert api.job(letter)["state"] == State.FAILED


def test_all_letters_are_purged_at_once_and_counted(api: Api) -> None:
    for _ in range(3):
        dead(api)
    assert api.request("DELETE", LETTERS).json() == {"purged": 3}
    assert api.request("DELETE", LETTERS).json() == {"purged": 0}
    assert listed(api) == []
