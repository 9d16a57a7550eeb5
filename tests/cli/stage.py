"""A server for the command line's tests with defined responses, over real HTTP and WebSockets.

It provides rare behaviour of the functions: a broken socket, a refusal, a failed job. Normal behaviour is tested
against the functions (tests/system).
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket

JOB = "019aa000-0000-7000-8000-000000000000"
PICTURE = b"\x89PNG the picture"

Scene = Callable[[WebSocket], Awaitable[None]]
"""The messages of one connection of a socket."""


class Stage:
    """One job and its responses, which tests set. `asked` has the received requests, `since` the cursor of each socket,
    and `credentials` the path and the header `Authorization` of each request and socket.
    """

    def __init__(self) -> None:
        self.url = ""
        self.submission: Response = JSONResponse({"id": JOB, "job_id": JOB, "task_id": JOB, "status": "pending"}, 202)
        self.cancellation: Response = JSONResponse({"job_id": JOB, "receipt": "dequeued", "status": "cancelled"})
        self.views: list[dict[str, Any]] = []
        self.scenes: list[Scene] = []
        self.asked: list[tuple[str, str, bytes]] = []
        self.since: list[str | None] = []
        self.jobs: list[dict[str, Any]] = []
        self.queries: list[dict[str, str]] = []
        self.subscriptions: list[dict[str, Any]] = []
        self.credentials: list[tuple[str, str | None]] = []
        self._connections = 0

    def app(self) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
        app = self._app()

        async def recorded(scope: Scope, receive: Receive, send: Send) -> None:
            self.credentials.append((scope["path"], Headers(scope=scope).get("authorization")))
            await app(scope, receive, send)

        return recorded

    def _app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/", self._submit, methods=["POST"]),
                Route("/api/v1/generation-jobs/", self._list),
                Route("/api/v1/generation-jobs/{id}", self._read),
                Route("/api/v1/generation-jobs/{id}", self._delete, methods=["DELETE"]),
                Route("/api/v1/models", self._models),
                Route("/api/v1/subscriptions", self._subscriptions, methods=["GET", "POST"]),
                Route("/api/v1/subscriptions/{id}", self._unsubscribe, methods=["DELETE"]),
                Route("/api/v1/subscriptions/{id}/secret", self._secret),
                Route("/api/v1/generation-jobs/{id}/cancel", self._cancel, methods=["POST"]),
                Route("/artifacts/{name}", self._artifact),
                WebSocketRoute("/ws/jobs/{id}", self._watch),
            ]
        )

    async def _submit(self, request: Request) -> Response:
        await self._note(request)
        return self.submission

    async def _cancel(self, request: Request) -> Response:
        await self._note(request)
        return self.cancellation

    async def _read(self, _request: Request) -> Response:
        """The views in sequence; the last one is repeated."""
        if not self.views:
            detail = {"title": "There is no such resource", "detail": "there is no such job", "status": 404}
            return JSONResponse(detail, 404, media_type="application/problem+json")
        return JSONResponse(self.views.pop(0) if len(self.views) > 1 else self.views[0])

    async def _list(self, request: Request) -> Response:
        """Two jobs per page."""
        query = dict(request.query_params)
        begin = int(query.pop("after", "0"))
        self.queries.append(query)
        end = begin + 2
        return JSONResponse({"jobs": self.jobs[begin:end], "next": str(end) if end < len(self.jobs) else None})

    async def _delete(self, request: Request) -> Response:
        await self._note(request)
        return Response(status_code=204)

    async def _models(self, _request: Request) -> Response:
        model = {"name": "sd", "title": "SD", "description": "A model.", "served": "sd", "default": True}
        return JSONResponse({"models": [{**model, "parameters": {"properties": {}}}]})

    async def _subscriptions(self, request: Request) -> Response:
        if request.method == "GET":
            return JSONResponse({"subscriptions": self.subscriptions})
        await self._note(request)
        self.subscriptions.append({"id": "sub_1", "state": "enabled", "reason": None, **await request.json()})
        return JSONResponse(self.subscriptions[-1], 201)

    async def _unsubscribe(self, _request: Request) -> Response:
        self.subscriptions.clear()
        return Response(status_code=204)

    async def _secret(self, _request: Request) -> Response:
        return JSONResponse({"secret": "whsec_x", "generation": 1, "previous": None, "previous_until": None})

    async def _artifact(self, _request: Request) -> Response:
        return Response(PICTURE, media_type="image/png")

    async def _watch(self, websocket: WebSocket) -> None:
        """Each connection plays the next scene; without one it is refused."""
        if self._connections >= len(self.scenes):
            await websocket.close()
            return
        self._connections += 1
        self.since.append(websocket.query_params.get("since"))
        await websocket.accept()
        await self.scenes[self._connections - 1](websocket)

    async def _note(self, request: Request) -> None:
        self.asked.append((request.method, request.url.path, await request.body()))


def view(url: str, *, state: str, pictures: int = 0, **members: Any) -> dict[str, Any]:
    """A job as returned by `GET /api/v1/generation-jobs/{id}`, with the fields that the command line reads."""
    return {
        "id": JOB,
        "state": state,
        "status": state,
        "model": "flux",
        "model_served": "flux stand-in, untrained weights",
        "input": {"prompt": "a lighthouse", "seed": 7},
        "place": None,
        "progress": 100 if state == "completed" else 0,
        "output_paths": [f"{url}/artifacts/{number}.png?signature=x" for number in range(pictures)],
        "content_id": "abc" if pictures else None,
        "error": None,
    } | members


def message(seq: int, state: str, **members: Any) -> dict[str, Any]:
    """A socket's message, as `darkroom.updates` makes it."""
    words = {"running": "processing", "expired": "failed"}
    return {"job_id": JOB, "status": words.get(state, state), "seq": seq, "state": state} | members


def says(messages: Sequence[dict[str, Any]], *, then: str = "close") -> Scene:
    """A scene that sends the messages and then closes, or stays open."""

    async def scene(websocket: WebSocket) -> None:
        for each in messages:
            await websocket.send_json(each)
        if then == "close":
            await websocket.close(1011)
        else:
            await asyncio.Event().wait()

    return scene


@contextmanager
def on_stage(stage: Stage) -> Iterator[Stage]:
    """Serve the stage on a free port of loopback."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        stage.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        config = uvicorn.Config(
            stage.app(), log_config=None, ws="websockets-sansio", lifespan="off", timeout_graceful_shutdown=1
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield stage
        finally:
            server.should_exit = True
            thread.join()
