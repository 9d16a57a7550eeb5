"""The connections that NetworkPolicies allow to the courier."""

from __future__ import annotations

import ipaddress

import pytest
from darkroom.webhooks.guard import NEVER

from tests.knative.rendering import Object, find, of_kind

COURIER = {"app.kubernetes.io/name": "courier"}
OVERLAYS = ("gpu", "prod")

Peer = tuple[str | None, dict[str, str], str]
"""The namespace, labels and address of a peer; a namespace of None is outside of the cluster."""


def outside(address: str) -> Peer:
    return (None, {}, address)


def pod(name: str, namespace: str = "darkroom") -> Peer:
    return (namespace, {"app.kubernetes.io/name": name}, "10.42.0.7")


def allows(policies: list[Object], peer: Peer, port: int, protocol: str = "TCP") -> bool:
    """Whether a pod with the courier's labels may connect, by the semantics of NetworkPolicies."""
    selected = [each["spec"] for each in policies if _selects(each["spec"]["podSelector"], COURIER)]
    limiting = [spec for spec in selected if "Egress" in spec["policyTypes"]]
    rules = [rule for spec in limiting for rule in spec.get("egress", [])]
    return not limiting or any(_matches(rule, peer, port, protocol) for rule in rules)


def _matches(rule: Object, peer: Peer, port: int, protocol: str) -> bool:
    ports = rule.get("ports")
    if ports is not None and not any((each["port"], each.get("protocol", "TCP")) == (port, protocol) for each in ports):
        return False
    return any(_is_peer(each, peer) for each in rule["to"])


def _is_peer(rule: Object, peer: Peer) -> bool:
    namespace, labels, text = peer
    address = ipaddress.ip_address(text)
    if "ipBlock" in rule:
        inside = address in ipaddress.ip_network(rule["ipBlock"]["cidr"])
        return inside and not any(address in ipaddress.ip_network(net) for net in rule["ipBlock"].get("except", []))
    if namespace is None:
        return False
    if "namespaceSelector" in rule:
        return _selects(rule["namespaceSelector"], {"kubernetes.io/metadata.name": namespace})
    return namespace == "darkroom" and _selects(rule["podSelector"], labels)


def _selects(selector: Object, labels: dict[str, str]) -> bool:
    if any(labels.get(name) != value for name, value in selector.get("matchLabels", {}).items()):
        return False
    for each in selector.get("matchExpressions", []):
        present = labels.get(each["key"])
        if present is None or (each["operator"] == "In" and present not in each["values"]):
            return False
    return True


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize(
    ("peer", "port", "protocol"),
    [
        (pod("coredns", "kube-system"), 53, "UDP"),
        (pod("mt-broker-ingress", "knative-eventing"), 8080, "TCP"),
        (pod("redis"), 6379, "TCP"),
        (pod("postgresql"), 5432, "TCP"),
        (pod("s3"), 7070, "TCP"),
        (outside("93.184.216.34"), 443, "TCP"),
        (outside("2606:2800:220:1::1"), 443, "TCP"),
        (outside("10.1.2.3"), 6380, "TCP"),
    ],
    ids=["dns", "broker", "redis", "postgresql", "s3", "https", "https-ipv6", "redis-elsewhere"],
)
def test_the_courier_may_connect_to_its_peers(
    overlay: str, peer: Peer, port: int, protocol: str, rendered: dict[str, list[Object]]
) -> None:
    assert allows(of_kind(rendered[overlay], "NetworkPolicy"), peer, port, protocol)


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize(
    ("peer", "port"),
    [
        (outside("93.184.216.34"), 80),
        (outside("10.0.0.1"), 80),
        (pod("flower"), 5555),
        (pod("gateway"), 8080),
        (outside("169.254.20.10"), 53),
    ],
    ids=["http", "http-inside", "flower", "gateway", "link-local-dns"],
)
def test_the_courier_may_not_connect_elsewhere(
    overlay: str, peer: Peer, port: int, rendered: dict[str, list[Object]]
) -> None:
    assert not allows(of_kind(rendered[overlay], "NetworkPolicy"), peer, port)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_port_allows_an_address_that_the_guard_always_rejects(
    overlay: str, rendered: dict[str, list[Object]]
) -> None:
    policies = of_kind(rendered[overlay], "NetworkPolicy")
    assert find(policies, "NetworkPolicy", "courier-egress")
    for network in NEVER:
        for address in {network[0], network[-1]}:
            for port in (53, 80, 443, 5432, 6379, 8080):
                assert not allows(policies, outside(str(address)), port), (address, port)
