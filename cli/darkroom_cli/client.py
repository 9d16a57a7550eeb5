"""A client of a running darkroom: HTTP to ask and to send, a WebSocket to be told.

Every command but `up` comes here. What the server refuses and what keeps it from being reached are errors of the two
kinds; `main.py` makes sentences and exit statuses of them. A job is followed until its end, however often the
connection breaks: messages carry numbers (`seq`), each connection goes on behind the last one (`since`), and where no
socket can be had the job is asked for instead.
"""

from __future__ import annotations

import ipaddress
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlsplit

import httpx
from cloudevents.conversion import to_structured
from cloudevents.http import CloudEvent
from darkroom.backoff import Backoff
from darkroom.errors import FieldError, InvalidInput, PermanentError, TemporaryError
from darkroom.jobs import State, read_value
from darkroom.settings import Settings, WebUrl, load
from pydantic import TypeAdapter, ValidationError
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

from darkroom_cli.local.welcome import DEFAULT_URL

JOBS = "/api/v1/generation-jobs/"
MODELS = "/api/v1/models"
DEAD_LETTERS = "/api/v1/dead-letters"
SUBSCRIPTIONS = "/api/v1/subscriptions"

REQUEST_LIMIT_S = 30.0
"""For one request. A submission takes milliseconds; a picture of some megabytes may take seconds."""

CONNECT_LIMIT_S = 5.0
CLOSE_LIMIT_S = 1.0

QUIET_S = 1.0
"""After so long without a message the follower gets a word: time to ask for the place in the queue."""

SILENT_S = 15.0
"""After so long without a message the job is asked for: a socket may be open and yet say nothing."""

BACKOFF = Backoff(first_s=0.25, longest_s=5.0)
"""Between attempts to connect again."""

PATIENCE_S = 60.0
"""So long a server that was reached before may be away while its job is followed: a restart takes less."""

GAP = "gap"
"""The `type` of the message that says: what you missed cannot be told any more."""

OLDER_WORDS = {State.RUNNING: "processing", State.EXPIRED: "failed"}
"""What messages call a state where they do not call it by its name (`darkroom.updates`)."""

Message = Mapping[str, Any]
"""A message of a socket, as `darkroom.updates.message` makes it."""


class Unreachable(TemporaryError):
    slug, title = "unreachable", "The server cannot be reached"


class Refused(PermanentError):
    """The server will not do it, and said why (RFC 9457)."""

    def __init__(self, problem: Mapping[str, Any]) -> None:
        super().__init__(_detail(problem), fields=_fields(problem))
        self._problem = dict(problem)

    def problem(self) -> dict[str, object]:
        """As the server said it."""
        return self._problem


class NotNow(TemporaryError):
    """The server cannot do it now, and said why."""

    def __init__(self, problem: Mapping[str, Any], *, retry_after: int) -> None:
        super().__init__(_detail(problem), retry_after=retry_after, fields=_fields(problem))
        self._problem = dict(problem)

    def problem(self) -> dict[str, object]:
        """As the server said it."""
        return self._problem


class ClientSettings(Settings):
    """What the environment says to the commands that talk to a server."""

    url: WebUrl = DEFAULT_URL
    """The server's address."""


def client_of(url: str | None) -> Client:
    """A client of the server at `url`, or where the environment says. Raises SettingError, InvalidInput."""
    if url is None:
        return Client(load(ClientSettings).url)
    try:
        return Client(TypeAdapter(WebUrl).validate_python(url))
    except ValidationError:
        raise InvalidInput(f"--url {url}: is not an address such as {DEFAULT_URL}") from None


class Client:
    """A client of the darkroom at `url`, to be closed after use."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._direct = _is_on_this_machine(url)
        self._http = httpx.Client(
            timeout=httpx.Timeout(REQUEST_LIMIT_S, connect=CONNECT_LIMIT_S), trust_env=not self._direct
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def submit(self, event: CloudEvent) -> dict[str, Any]:
        """Send a request for a job; answers the slip, with its `id`. The same event again is the same job."""
        headers, content = to_structured(event)
        return self._json("POST", "/", headers=headers, content=content)

    def job(self, job_id: str) -> dict[str, Any]:
        """The job as it is now."""
        return self._json("GET", JOBS + quote(job_id, safe=""))

    def cancel(self, job_id: str) -> dict[str, Any]:
        """Ask for the job's end; answers the receipt."""
        return self._json("POST", f"{JOBS}{quote(job_id, safe='')}/cancel")

    def jobs(self, filters: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        """Every job that the filters name, the newest first; pages are asked for as they are needed."""
        return self._pages(JOBS, "jobs", filters)

    def delete(self, job_id: str) -> None:
        """Delete a finished job with its pictures."""
        self._send("DELETE", self.url + JOBS + quote(job_id, safe=""))

    def subscriptions(self) -> list[dict[str, Any]]:
        """Every subscription, the oldest first."""
        found: list[dict[str, Any]] = self._json("GET", SUBSCRIPTIONS)["subscriptions"]
        return found

    def subscribe(self, members: Mapping[str, Any]) -> dict[str, Any]:
        """Create a subscription."""
        return self._json("POST", SUBSCRIPTIONS, json=dict(members))

    def subscription_secret(self, subscription_id: str) -> dict[str, Any]:
        """The secret that verifies the posts of a subscription."""
        return self._json("GET", f"{_subscription(subscription_id)}/secret")

    def unsubscribe(self, subscription_id: str) -> None:
        """Delete a subscription."""
        self._send("DELETE", self.url + _subscription(subscription_id))

    def models(self) -> dict[str, Any]:
        """What models there are, and what they take."""
        return self._json("GET", MODELS)

    def dead_letters(self) -> Iterator[dict[str, Any]]:
        """Every dead letter, the last that ended first; pages are asked for as they are needed."""
        return self._pages(DEAD_LETTERS, "dead_letters", {})

    def dead_letter(self, job_id: str) -> dict[str, Any]:
        """One dead letter."""
        return self._json("GET", _letter(job_id))

    def redrive(self, job_id: str, edits: Mapping[str, Any]) -> dict[str, Any]:
        """Have a new job made of a dead letter, with `edits` over its input; answers the slip of that job."""
        return self._json("POST", f"{_letter(job_id)}/redrive", json={"input": dict(edits)})

    def purge(self, job_id: str) -> None:
        """Have a dead letter be one no more."""
        self._send("DELETE", self.url + _letter(job_id))

    def purge_all(self) -> dict[str, Any]:
        """As `purge`, all there are; answers how many."""
        return self._json("DELETE", DEAD_LETTERS)

    def picture(self, link: str) -> bytes:
        """The content of a link to an artifact."""
        return self._send("GET", link).content

    def updates(self, job_id: str) -> Iterator[Message | None]:
        """The job's messages, each once and in order, the terminal one last. None: there was nothing for a second.

        Where the job had to be asked for, the answer comes as a message without numbers, if it says something new.
        Raises Unreachable, or NotNow, when nothing could be learnt of the job for too long.
        """
        seen, told, reached, pauses = 0, None, time.monotonic(), BACKOFF.pauses()
        while True:
            goes_on = False
            with suppress(OSError, WebSocketException):
                for message in self._socket(job_id, since=seen):
                    reached, pauses = time.monotonic(), BACKOFF.pauses()
                    if message is None:
                        yield None
                    elif message.get("type") == GAP:
                        seen = 0  # the log is another than it was: what comes next is how the job is now
                    elif message["seq"] > seen:
                        seen, told, goes_on = message["seq"], _standing(message), True
                        yield message
                        if is_last(message):
                            return
            if not goes_on:
                message = self._asked(job_id, reached=reached)
                if message is None or _standing(message) != told:
                    yield message
                if message is not None:
                    reached, told = time.monotonic(), _standing(message)
                    if is_last(message):
                        return
            time.sleep(next(pauses))

    def _asked(self, job_id: str, *, reached: float) -> Message | None:
        """The job as it is now; None while the server, `reached` last at that time, may still come back."""
        try:
            return as_message(self.job(job_id))
        except TemporaryError:
            if time.monotonic() - reached > PATIENCE_S:
                raise
            return None

    def _socket(self, job_id: str, *, since: int) -> Iterator[Message | None]:
        """Messages of one connection, None after each quiet second; ends, or raises, with the connection.

        It begins behind number `since`, with what was missed while there was no connection; with 0, and after a gap,
        with how the job is then.
        """
        cursor = f"?since={since}" if since else ""
        url = f"ws{self.url.removeprefix('http')}/ws/jobs/{quote(job_id, safe='')}{cursor}"
        limits: dict[str, Any] = {"open_timeout": CONNECT_LIMIT_S, "close_timeout": CLOSE_LIMIT_S}
        with connect(url, proxy=None if self._direct else True, **limits) as socket:
            heard = time.monotonic()
            while time.monotonic() - heard < SILENT_S:
                try:
                    text = socket.recv(timeout=QUIET_S)
                except TimeoutError:
                    yield None
                    continue
                message = json.loads(text)
                if "seq" in message or message.get("type") == GAP:  # all else is the server's word on the connection
                    heard = time.monotonic()
                    yield message

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
            raise Unreachable(f"{self.url} answers, but not as darkroom does")
        return answer

    def _send(self, method: str, url: str, **content: Any) -> httpx.Response:
        try:
            response = self._http.request(method, url, **content)
        except httpx.TransportError as error:
            raise Unreachable(f"{self.url} cannot be reached: {error}") from error
        except httpx.InvalidURL as error:
            raise Unreachable(f"{url} is no address: {error}") from error
        if response.is_success:
            return response
        problem = _problem(response)
        if problem is None:
            raise Unreachable(f"{self.url} answers {response.status_code}, but not as darkroom does")
        if response.status_code in (httpx.codes.TOO_MANY_REQUESTS, httpx.codes.SERVICE_UNAVAILABLE):
            raise NotNow(problem, retry_after=_seconds(response.headers.get("retry-after")))
        if response.is_server_error:
            raise NotNow(problem, retry_after=1)
        raise Refused(problem)


def is_last(message: Message) -> bool:
    """Whether the job has ended with this message."""
    return read_value(State, message["state"]).is_terminal


def _standing(message: Message) -> tuple[str, int]:
    """What of a message people wait for."""
    return message["state"], message.get("progress") or 0


def as_message(job: Mapping[str, Any]) -> Message:
    """A job as it was read, in the form of a message, without the numbers that only the log has."""
    state = job["state"]
    message = {"job_id": job["id"], "status": OLDER_WORDS.get(state, state), "state": state}
    message["progress"] = job["progress"]
    if state == State.COMPLETED:
        message |= {"output_paths": job["output_paths"], "content_id": job["content_id"]}
    if job["error"] is not None:
        message["error"] = job["error"]["message"]
    return message


def _letter(job_id: str) -> str:
    return f"{DEAD_LETTERS}/{quote(job_id, safe='')}"


def _subscription(subscription_id: str) -> str:
    return f"{SUBSCRIPTIONS}/{quote(subscription_id, safe='')}"


def _detail(problem: Mapping[str, Any]) -> str:
    return str(problem.get("detail") or problem.get("title") or "the server refused it and did not say why")


def _fields(problem: Mapping[str, Any]) -> list[FieldError]:
    return [FieldError(str(fault["field"]), str(fault["detail"])) for fault in problem.get("errors", [])]


def _problem(response: httpx.Response) -> dict[str, Any] | None:
    """The problem details of an answer, or None where it holds none."""
    if response.headers.get("content-type", "").split(";")[0] != "application/problem+json":
        return None
    try:
        members = response.json()
    except ValueError:
        return None
    return members if isinstance(members, dict) else None


def _seconds(header: str | None) -> int:
    return int(header) if header is not None and header.isdecimal() else 1


def _is_on_this_machine(url: str) -> bool:
    """Whether a proxy of the environment must not come between."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
