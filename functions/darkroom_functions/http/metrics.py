"""Metrics of the functions for Prometheus: `/metrics`, for inner requests only (`inside.py`)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

from darkroom import logs
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

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60, 600)
"""Buckets from the time of a submission to the longest lifetime of a stream."""

NO_ROUTE = "none"

_log = logs.logger(__name__)


class Metrics:
    """The metrics of one process."""

    def __init__(self) -> None:
        disable_created_metrics()  # a second series for each, with the time of its creation
        self._registry = CollectorRegistry()
        self._seconds = Histogram(
            "darkroom_http_request_seconds",
            "Seconds from a request to the last byte of its response, by function, route and status.",
            ["function", "route", "status"],
            buckets=SECONDS,
            registry=self._registry,
        )
        self._open = _Open()
        self._registry.register(self._open)

    def of(self, function: str) -> FunctionMetrics:
        """The metrics of one function."""
        metrics = FunctionMetrics(function, self)
        self._open.functions[function] = metrics
        return metrics

    def series(self, function: str, route: str, status: int) -> Histogram:
        """The histogram of these labels."""
        return self._seconds.labels(function, route, status)

    async def page(self, _request: Request) -> Response:
        """`GET /metrics`."""
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

    def __init__(self, app: ASGIApp, function: FunctionMetrics) -> None:
        self._app = app
        self._function = function

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            self._function.sockets += 1
            try:
                await self._app(scope, receive, send)
            finally:
                self._function.sockets -= 1
            return
        status = 0

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        began = time.perf_counter()
        self._function.requests += 1
        try:
            await self._app(scope, receive, noting)
        except Exception:
            _log.exception("unexpected", method=scope["method"], path=scope["path"])
            if status:
                raise  # the server closes the connection, so that the client does not take a part for the whole
            await responses.unexpected()(scope, receive, noting)
        finally:
            self._function.requests -= 1
            if scope["path"] not in PROBE_PATHS:
                seconds = time.perf_counter() - began
                self._function.observe(scope.get("route"), status or CLIENT_CLOSED, seconds=seconds)


class _Open(Collector):
    """The requests and sockets that are open when the metrics are scraped."""

    def __init__(self) -> None:
        self.functions: dict[str, FunctionMetrics] = {}

    def collect(self) -> Iterator[Metric]:
        yield _gauge(
            "darkroom_http_requests_open",
            "Requests in progress, including those that wait and event streams.",
            {name: each.requests for name, each in self.functions.items()},
        )
        yield _gauge(
            "darkroom_sockets_open", "Open WebSockets.", {name: each.sockets for name, each in self.functions.items()}
        )


def _gauge(name: str, meaning: str, values: Mapping[str, int]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, meaning, labels=["function"])
    for function, value in values.items():
        family.add_metric([function], value)
    return family
