"""Inner requests: those that come from darkroom's own machine or cluster. Probes and metrics answer no others.

A request is an inner one if no proxy has forwarded it, and its peer is in `DARKROOM_INTERNAL_PEERS`. All others get
404: metrics of all tenants are for operators, and probes for what runs the process.

Every proxy on the way adds a header that a client behind it cannot remove: Knative's queue-proxy, the ingress before it
and the gateway all add `X-Forwarded-For`. kubelet, queue-proxy's own probe and Prometheus request the process' own port
and pass none of them. So in a cluster, where such a proxy stands before each function, every peer may be an inner one;
elsewhere only loopback is.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address

from starlette.datastructures import Headers
from starlette.types import Scope

from darkroom_functions.http.metrics import PROBE_PATHS
from darkroom_functions.http.semantics import canonical

FORWARDED = ("x-forwarded-for", "forwarded", "k-proxy-request")
"""The headers that proxies add. The last one is added by Knative's activator."""

Networks = Sequence[IPv4Network | IPv6Network]


def is_hidden(scope: Scope, headers: Headers, peers: Networks) -> bool:
    """Whether the request is for a path that answers inner requests only, and is none."""
    return canonical(scope["path"]) in PROBE_PATHS and not _is_inner(scope, headers, peers)


def _is_inner(scope: Scope, headers: Headers, peers: Networks) -> bool:
    if any(name in headers for name in FORWARDED):
        return False
    host, _port = scope.get("client") or ("", 0)
    try:
        address = ip_address(host)
    except ValueError:
        return False
    address = getattr(address, "ipv4_mapped", None) or address
    return any(address in network for network in peers)
