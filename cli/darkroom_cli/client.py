"""The HTTP client of a running darkroom, for every command but `up` and those for operators.

`following.py` follows a job over a WebSocket; `credential.py` reads the key that requests carry; `problems.py` has the
errors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx
from cloudevents.conversion import to_structured
from cloudevents.http import CloudEvent
from darkroom.errors import InvalidInput
from darkroom.settings import WebUrl, load
from pydantic import TypeAdapter, ValidationError

from darkroom_cli.address import DEFAULT_URL, is_loopback
from darkroom_cli.credential import ClientCredential, ClientSettings, credential_of
from darkroom_cli.problems import Unreachable, error_of

JOBS = "/api/v1/generation-jobs/"
MODELS = "/api/v1/models"
DEAD_LETTERS = "/api/v1/dead-letters"
SUBSCRIPTIONS = "/api/v1/subscriptions"
TENANTS = "/api/v1/tenants"
KEYS = "/api/v1/keys"
USAGE = "/api/v1/usage"

REQUEST_TIMEOUT_S = 30.0
"""For one request. A submission takes milliseconds; a picture of some megabytes may take seconds."""

CONNECT_TIMEOUT_S = 5.0

NO_CREDENTIAL = ClientCredential()


def client_of(url: str | None) -> Client:
    """A client of the server at `url`, or of the one that DARKROOM_URL names. Raises SettingError, InvalidInput."""
    settings = load(ClientSettings)
    credential = credential_of(settings)
    if url is None:
        return Client(settings.url, credential=credential)
    try:
        return Client(TypeAdapter(WebUrl).validate_python(url), credential=credential)
    except ValidationError:
        raise InvalidInput(f"--url {url} is not an address such as {DEFAULT_URL}") from None


class Client:
    """A client of the darkroom at `url`, to be closed after use."""

    def __init__(self, url: str, *, credential: ClientCredential = NO_CREDENTIAL) -> None:
        self.url = url
        self.credential = credential
        self._http = httpx.Client(
            timeout=httpx.Timeout(REQUEST_TIMEOUT_S, connect=CONNECT_TIMEOUT_S), trust_env=not is_loopback(url)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def submit(self, event: CloudEvent) -> dict[str, Any]:
        """Submit a job; returns the receipt with its `id`. The same event submitted again is the same job."""
        headers, content = to_structured(event)
        return self._json("POST", "/", headers=headers, content=content)

    def job(self, job_id: str) -> dict[str, Any]:
        """The job's current view."""
        return self._json("GET", JOBS + quote(job_id, safe=""))

    def cancel(self, job_id: str) -> dict[str, Any]:
        """Cancel a job; returns the receipt."""
        return self._json("POST", f"{JOBS}{quote(job_id, safe='')}/cancel")

    def jobs(self, filters: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        """All jobs that match the filters, newest first. Pages are requested as needed."""
        return self._pages(JOBS, "jobs", filters)

    def delete(self, job_id: str) -> None:
        """Delete a finished job and its pictures."""
        self._send("DELETE", self.url + JOBS + quote(job_id, safe=""))

    def subscriptions(self) -> list[dict[str, Any]]:
        """All subscriptions, oldest first."""
        found: list[dict[str, Any]] = self._json("GET", SUBSCRIPTIONS)["subscriptions"]
        return found

    def subscribe(self, members: Mapping[str, Any]) -> dict[str, Any]:
        """Create a subscription."""
        return self._json("POST", SUBSCRIPTIONS, json=dict(members))

    def subscription_secret(self, subscription_id: str) -> dict[str, Any]:
        """The secret that verifies the deliveries of a subscription."""
        return self._json("GET", f"{_subscription(subscription_id)}/secret")

    def unsubscribe(self, subscription_id: str) -> None:
        """Delete a subscription."""
        self._send("DELETE", self.url + _subscription(subscription_id))

    def tenants(self) -> list[dict[str, Any]]:
        """All tenants, by name."""
        found: list[dict[str, Any]] = self._json("GET", TENANTS)["tenants"]
        return found

    def tenant(self, name: str) -> dict[str, Any]:
        """The tenant with its limits."""
        return self._json("GET", f"{TENANTS}/{quote(name, safe='')}")

    def create_tenant(self, members: Mapping[str, Any]) -> dict[str, Any]:
        """Create a tenant."""
        return self._json("POST", TENANTS, json=dict(members))

    def change_tenant(self, name: str, members: Mapping[str, Any]) -> dict[str, Any]:
        """Change a tenant's fields."""
        return self._json("PATCH", f"{TENANTS}/{quote(name, safe='')}", json=dict(members))

    def delete_tenant(self, name: str) -> None:
        """Delete a tenant without keys."""
        self._send("DELETE", f"{self.url}{TENANTS}/{quote(name, safe='')}")

    def keys(self, *, tenant: str | None) -> list[dict[str, Any]]:
        """The keys, of one tenant or all."""
        query = {} if tenant is None else {"tenant": tenant}
        found: list[dict[str, Any]] = self._json("GET", KEYS, params=query)["keys"]
        return found

    def key(self, key_id: str) -> dict[str, Any]:
        """The key, without its secret."""
        return self._json("GET", f"{KEYS}/{quote(key_id, safe='')}")

    def create_key(self, members: Mapping[str, Any]) -> dict[str, Any]:
        """Create a key; the answer has its secret."""
        return self._json("POST", KEYS, json=dict(members))

    def change_key(self, key_id: str, members: Mapping[str, Any]) -> dict[str, Any]:
        """Change a key's fields."""
        return self._json("PATCH", f"{KEYS}/{quote(key_id, safe='')}", json=dict(members))

    def rotate_key(self, key_id: str, members: Mapping[str, Any]) -> dict[str, Any]:
        """Give a key a new secret; the answer has it."""
        return self._json("POST", f"{KEYS}/{quote(key_id, safe='')}/rotate", json=dict(members))

    def delete_key(self, key_id: str) -> None:
        """Delete a key."""
        self._send("DELETE", f"{self.url}{KEYS}/{quote(key_id, safe='')}")

    def usage(self, filters: Mapping[str, str]) -> dict[str, Any]:
        """The report of usage."""
        return self._json("GET", USAGE, params=dict(filters))

    def usage_as_csv(self, filters: Mapping[str, str]) -> str:
        """The report of usage as CSV."""
        return self._send("GET", self.url + USAGE, params={**filters, "format": "csv"}).text

    def models(self) -> dict[str, Any]:
        """The models and their parameters."""
        return self._json("GET", MODELS)

    def dead_letters(self) -> Iterator[dict[str, Any]]:
        """All dead letters, most recently failed first. Pages are requested as needed."""
        return self._pages(DEAD_LETTERS, "dead_letters", {})

    def dead_letter(self, job_id: str) -> dict[str, Any]:
        """The dead letter of a job."""
        return self._json("GET", _letter(job_id))

    def redrive(self, job_id: str, edits: Mapping[str, Any]) -> dict[str, Any]:
        """Make a new job of a dead letter, with `edits` over its input; returns the receipt of the new job."""
        return self._json("POST", f"{_letter(job_id)}/redrive", json={"input": dict(edits)})

    def purge(self, job_id: str) -> None:
        """Remove a dead letter from the list."""
        self._send("DELETE", self.url + _letter(job_id))

    def purge_all(self) -> dict[str, Any]:
        """Purge all dead letters; returns their number."""
        return self._json("DELETE", DEAD_LETTERS)

    def picture(self, link: str) -> bytes:
        """The content of an artifact's link, whose signature is its credential."""
        return self._send("GET", link).content

    def _pages(self, path: str, name: str, filters: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        query = dict(filters)
        while True:
            page = self._json("GET", path, params=query)
            yield from page[name]
            if page["next"] is None:
                return
            query["after"] = page["next"]

    def _json(self, method: str, path: str, **content: Any) -> dict[str, Any]:
        response = self._send(method, self.url + path, **content)
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise Unreachable(f"{self.url} is not a darkroom server")
        return answer

    def _send(self, method: str, url: str, **content: Any) -> httpx.Response:
        """The response. The key is sent to the server alone, and not to another host that a link may name."""
        if url.startswith(f"{self.url}/api/") or url == f"{self.url}/":
            content["headers"] = {**content.get("headers", {}), **self.credential.headers}
        try:
            response = self._http.request(method, url, **content)
        except httpx.TransportError as error:
            raise Unreachable(f"{self.url} cannot be reached: {error}") from error
        except httpx.InvalidURL as error:
            raise Unreachable(f"{url} is not a valid address: {error}") from error
        if response.is_success:
            return response
        raise error_of(response, server=self.url, credential=self.credential)


def _letter(job_id: str) -> str:
    return f"{DEAD_LETTERS}/{quote(job_id, safe='')}"


def _subscription(subscription_id: str) -> str:
    return f"{SUBSCRIPTIONS}/{quote(subscription_id, safe='')}"
