"""What Prometheus is told of the functions: `/metrics`, for those who ask the process itself.

Who comes through a proxy is told that there is nothing: figures of all tenants are for whoever runs the system. Each
proxy on the way says that it was one: Knative's queue-proxy, the ingress before it and our gateway all add
`X-Forwarded-For`, and nobody who is behind them can take it out. Prometheus asks the pod's own port, past all three.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

from darkroom import logs
from darkroom.errors import NotFound
from prometheus_client import CollectorRegistry, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from darkroom_functions.http import responses
from darkroom_functions.http.routes import ApiRoute

PATH = "/metrics"

PROBE_PATHS = ("/healthz", "/readyz", PATH)
"""Paths whose requests are not counted."""

CLIENT_CLOSED = 499
"""nginx' status for a client that disconnected; only logs and metrics show it."""

FORWARDED = ("x-forwarded-for", "forwarded", "k-proxy-request")
"""What says that a proxy was in between. The last is Knative's own, of what came by its activator."""

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60, 600)
"""From a submission to the longest that a stream may live."""

NO_ROUTE = "none"

_log = logs.logger(__name__)


class Metrics:
    """The figures of one process."""

    def __init__(self) -> None:
        disable_created_metrics()  # a second series for each: when it began
        self._registry = CollectorRegistry()
        self._seconds = Histogram(
            "darkroom_http_request_seconds",
            "Requests, from their first to their last byte of ours, by function, route and status.",
            ["function", "route", "status"],
            buckets=SECONDS,
            registry=self._registry,
        )
        self._open = _Open()
        self._registry.register(self._open)

    def of(self, function: str) -> FunctionMetrics:
        """The figures of one function."""
        its = FunctionMetrics(function, self)
        self._open.functions[function] = its
        return its

    def series(self, function: str, route: str, status: int) -> Histogram:
        """The histogram of these labels."""
        return self._seconds.labels(function, route, status)

    async def page(self, request: Request) -> Response:
        """`GET /metrics`."""
        if any(name in request.headers for name in FORWARDED):
            raise NotFound(f"there is nothing at {PATH}")
        return Response(generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


class FunctionMetrics:
    """The metrics of one function; `requests` and `sockets` are open now."""

    def __init__(self, name: str, metrics: Metrics) -> None:
        self.requests = 0
        self.sockets = 0
        self._name = name
        self._metrics = metrics
        self._series: dict[tuple[str, int], Histogram] = {}

    def observe(self, route: BaseRoute | None, status: int, *, seconds: float) -> None:
        """Count a response. `route` is the one that matched the request."""
        label = route.label if isinstance(route, ApiRoute) else NO_ROUTE
        histogram = self._series.get((label, status))  # prometheus_client's own look-up takes longer than it counts
        if histogram is None:
            histogram = self._series[label, status] = self._metrics.series(self._name, label, status)
        histogram.observe(seconds)


class MetricsMiddleware:
    """Counts and times the responses of a function, probes aside. An unexpected error is logged, and answered with a
    problem without details.
    """

    def __init__(self, app: ASGIApp, figures: FunctionMetrics) -> None:
        self._app = app
        self._figures = figures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            self._figures.sockets += 1
            try:
                await self._app(scope, receive, send)
            finally:
                self._figures.sockets -= 1
            return
        status = 0

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        began = time.perf_counter()
        self._figures.requests += 1
        try:
            await self._app(scope, receive, noting)
        except Exception:
            _log.exception("unexpected", method=scope["method"], path=scope["path"])
            if status:
                raise  # the server closes the connection, so that the client does not take a part for the whole
            await responses.unexpected()(scope, receive, noting)
        finally:
            self._figures.requests -= 1
            if scope["path"] not in PROBE_PATHS:
                seconds = time.perf_counter() - began
                self._figures.observe(scope.get("route"), status or CLIENT_CLOSED, seconds=seconds)


class _Open(Collector):
    """What is open at the moment when somebody asks."""

    def __init__(self) -> None:
        self.functions: dict[str, FunctionMetrics] = {}

    def collect(self) -> Iterator[Metric]:
        yield _gauge(
            "darkroom_http_requests_open",
            "Requests that are being answered, those that wait and event streams among them.",
            {name: its.requests for name, its in self.functions.items()},
        )
        yield _gauge(
            "darkroom_sockets_open", "WebSockets.", {name: its.sockets for name, its in self.functions.items()}
        )


def _gauge(name: str, meaning: str, values: Mapping[str, int]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, meaning, labels=["function"])
    for function, value in values.items():
        family.add_metric([function], value)
    return family
