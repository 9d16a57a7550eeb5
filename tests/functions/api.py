"""The HTTP API as tests use it: a real process, and a client that validates every response against `/openapi.json`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from darkroom.catalogue.models import Catalogue
from darkroom.ledger import calls
from darkroom_functions.http.routes import ApiRoute
from darkroom_functions.http.semantics import canonical
from jsonschema import Draft202012Validator
from referencing import Registry
from referencing.jsonschema import DRAFT202012

from tests.databases import migrated
from tests.driven_jobs import DrivenJobs
from tests.parts import Functions, environment

TIMEOUT_S = 60.0
EVENT_TYPE = "dev.darkroom.job.requested"
JOBS = "/api/v1/generation-jobs/"
PROBLEM = "application/problem+json"

_DOCUMENT = "urn:darkroom:openapi"
_GENERIC = f"{_DOCUMENT}#/components/schemas/Problem"


class Contract:
    """The document of `/openapi.json`. `seen` has the operations and statuses that responses were validated against."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        self.seen: set[tuple[str, str]] = set()
        resource = DRAFT202012.create_resource(document)
        self._registry: Registry[Any] = Registry().with_resource(_DOCUMENT, resource)
        # A path without names in it comes before those that could also be it.
        self._templates = sorted(document["paths"], key=lambda template: "{" in template)

    def promised(self) -> set[tuple[str, str]]:
        """Every operation with every status in the document."""
        return {
            (operation["operationId"], status)
            for path in self.document["paths"].values()
            for operation in path.values()
            for status in operation["responses"]
        }

    def check(self, response: httpx.Response) -> None:
        """Fail unless the response matches the document; without an operation for the request it must be a problem."""
        method = {"HEAD": "get"}.get(response.request.method, response.request.method.lower())
        template = self._template_of(response.request.url.path)
        if template is None:
            assert response.status_code in (404, 405), response.text
            self._check_body(response, _GENERIC)
            return
        operations = self.document["paths"][template]
        if method not in operations:
            assert response.status_code == 405 or template == "/{model}", response.text
            for name in operations:
                self._check_body(response, self._schema_of(template, name, "default", PROBLEM))
            return
        operation = operations[method]
        status = str(response.status_code)
        if status not in operation["responses"]:
            assert response.status_code in (400, 500), f"{operation['operationId']} answered {status}: {response.text}"
            status = "default"
        self.seen.add((operation["operationId"], status))
        promised = operation["responses"][status]
        for name, header in promised.get("headers", {}).items():
            if name in response.headers:
                value: Any = response.headers[name]
                value = int(value) if header["schema"].get("type") == "integer" else value
                Draft202012Validator(header["schema"]).validate(value)
        if response.status_code in (429, 503):
            assert int(response.headers["retry-after"]) >= 1
        if "content" not in promised:
            assert response.content == b""
            return
        media_type = response.headers["content-type"]
        assert media_type in promised["content"], f"{operation['operationId']} answered {media_type}"
        if "schema" in promised["content"][media_type]:
            self._check_body(response, self._schema_of(template, method, status, media_type))

    def is_valid(self, value: object, name: str) -> bool:
        """Whether `value` is valid under the schema of that name."""
        return self._validator(f"{_DOCUMENT}#/components/schemas/{name}").is_valid(value)

    @staticmethod
    def _schema_of(template: str, method: str, status: str, media_type: str) -> str:
        """A reference to the schema of one response."""
        parts = ("paths", template, method, "responses", status, "content", media_type, "schema")
        return f"{_DOCUMENT}#/" + "/".join(part.replace("~", "~0").replace("/", "~1") for part in parts)

    def _check_body(self, response: httpx.Response, schema: str) -> None:
        if response.request.method == "HEAD":
            assert response.content == b""
            return
        is_text = response.headers["content-type"].startswith("text/")
        body: Any = response.text if is_text else response.json()
        self._validator(schema).validate(body)
        if response.status_code >= 400:
            assert response.headers["content-type"] == PROBLEM
            assert body["status"] == response.status_code

    def _validator(self, schema: str) -> Draft202012Validator:
        return Draft202012Validator({"$ref": schema}, registry=self._registry)

    def _template_of(self, path: str) -> str | None:
        """The template of a path, with a slash at its end or without one."""
        path = canonical(path)
        path = JOBS if path == JOBS.rstrip("/") else path
        for template in self._templates:
            pattern = re.sub(r"\\\{(\w+)\\\}", lambda name: ".+" if name[1] == "key" else "[^/]+", re.escape(template))
            if re.fullmatch(pattern, path):
                return str(template)
        return None


class Api:
    """A client of one process of functions, and the ledger behind it."""

    def __init__(self, functions: Functions, jobs: DrivenJobs, store: Path) -> None:
        self.functions = functions
        self.jobs = jobs
        self.store = store
        self.client = httpx.Client(base_url=functions.url, timeout=TIMEOUT_S, trust_env=False)
        self.contract = Contract(self.client.get("/openapi.json").json())

    def request(self, method: str, path: str, **more: Any) -> httpx.Response:
        """The response, validated against the document."""
        response = self.client.request(method, path, **more)
        self.contract.check(response)
        return response

    def get(self, path: str, **more: Any) -> httpx.Response:
        return self.request("GET", path, **more)

    def post(self, path: str, **more: Any) -> httpx.Response:
        return self.request("POST", path, **more)

    def submit(self, body: object | None = None, **more: Any) -> str:
        """Submit a job over REST; returns its id."""
        response = self.post(JOBS, json={} if body is None else body, **more)
        assert response.status_code == 202, response.text
        job_id: str = response.json()["id"]
        return job_id

    def job(self, job_id: str) -> dict[str, Any]:
        response = self.get(JOBS + job_id)
        assert response.status_code == 200, response.text
        view: dict[str, Any] = response.json()
        return view

    def close(self) -> None:
        self.client.close()


@contextmanager
def serving(
    redis_url: str,
    namespace: str,
    folder: Path,
    *,
    name: str = "all",
    announce: bool = True,
    migrate_history: bool = True,
    **more: str,
) -> Iterator[Api]:
    """A process of functions (`name` as in `darkroom_functions.serve`) with the environment's `more`, and its client.

    The pools of the shipped models are announced, and the history has its table, unless an argument disables that.
    """
    store = folder / "store"
    variables = environment(redis_url, namespace, DARKROOM_STORE=f"file://{store}", **more)
    functions = Functions(name, environment=variables, log=folder / f"{name}.log")
    if migrate_history:
        migrated(variables["DARKROOM_DATABASE_URL"])
    functions.start()
    try:
        jobs = DrivenJobs(redis_url, namespace)
        if announce:
            for model in Catalogue.load():
                jobs.run(calls.announce_pool(model.pool, models=[model.name]))
        api = Api(functions, jobs, store)
        yield api
        api.close()
        jobs.close()
    finally:
        functions.stop()


def send(
    api: Api, route: ApiRoute, *, headers: dict[str, str], job_id: str, tenant: str, method: str | None = None
) -> httpx.Response:
    """A request to a route, about this job and this tenant. Its body, where it has one, is an empty object."""
    path = route.template
    values = {"{id}": job_id, "{delivery}": f"{job_id}.1.job", "{model}": "sd", "{name}": tenant}
    for name, value in values.items():
        path = path.replace(name, value)
    body: dict[str, Any] = {"json": {}} if route.method in {"POST", "PATCH"} else {}
    return api.request(method or route.method, path, headers=headers, **body)


def faults(response: httpx.Response) -> list[str]:
    """The fields that a problem names, in its order."""
    return [error["field"] for error in response.json().get("errors", [])]


def slug(response: httpx.Response) -> str:
    """The last part of a problem's type."""
    return str(response.json()["type"]).rsplit("/", 1)[-1]


def binary(event_id: str, *, source: str = "/tests", **attributes: str) -> dict[str, str]:
    """The headers of an event in binary mode that requests a job."""
    named = {"specversion": "1.0", "id": event_id, "source": source, "type": EVENT_TYPE, **attributes}
    return {"content-type": "application/json"} | {f"ce-{name}": value for name, value in named.items()}


def structured(event_id: str, *, source: str = "/tests", **members: object) -> dict[str, object]:
    """An event in structured mode that requests a job."""
    return {"specversion": "1.0", "id": event_id, "source": source, "type": EVENT_TYPE, **members}
