"""The guard: which URLs are accepted, and which addresses a name may resolve to."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

import httpx
import pytest
from darkroom.errors import FieldError, InvalidInput
from darkroom.webhooks.guard import NEVER, NOTHING, URL_MAX, Allow, check_address, check_url
from hypothesis import given, settings
from hypothesis import strategies as st

# Why a URL is refused, in the words that follow the field's name.
PUBLIC = "must lead to a public address"
NEVER_USED = "must not lead to an address that is never used for receivers"
INSIDE = "must not name a host of an internal network"
HTTPS = "must begin with https://"
URI = "must be an absolute URI without a fragment"
CONTROL = "must not hold control characters"
NUMBER = "must write an IPv4 address as four decimal numbers"
BRACKETS = "must have an IPv6 address in brackets, and no zone"
NAME = "must name a host in letters, digits, hyphens and single full stops, none at its end"
PORT = "must name a port from 1 to 65535, or none"
USUAL_PORT = "must use port 443 or 8443"
USER = "must not hold a user's name or password"
LONG = f"must have at most {URL_MAX} characters"

HOSTILE: list[tuple[str, str]] = [
    # Private, loopback, link-local and what else is no public address
    ("https://127.0.0.1/", PUBLIC),
    ("https://127.255.255.254/", PUBLIC),
    ("https://10.0.0.1/", PUBLIC),
    ("https://172.16.0.1/", PUBLIC),
    ("https://172.31.255.255/", PUBLIC),
    ("https://192.168.1.1/", PUBLIC),
    ("https://100.64.0.1/", PUBLIC),
    ("https://192.0.0.1/", PUBLIC),
    ("https://192.0.2.1/", PUBLIC),
    ("https://198.18.0.1/", PUBLIC),
    ("https://198.51.100.1/", PUBLIC),
    ("https://203.0.113.1/", PUBLIC),
    ("https://0.0.0.0/", NEVER_USED),
    ("https://0.1.2.3/", NEVER_USED),
    ("https://169.254.1.1/", NEVER_USED),
    ("https://224.0.0.1/", NEVER_USED),
    ("https://239.255.255.250/", NEVER_USED),
    ("https://240.0.0.1/", NEVER_USED),
    ("https://255.255.255.255/", NEVER_USED),
    # Where clouds serve the credentials of machines
    ("https://169.254.169.254/latest/meta-data/", NEVER_USED),
    ("https://169.254.170.2/v2/credentials", NEVER_USED),
    ("https://169.254.170.23/v1/credentials", NEVER_USED),
    ("https://100.100.100.200/latest/meta-data/", NEVER_USED),
    ("https://192.0.0.192/opc/v2/", NEVER_USED),
    ("https://168.63.129.16/machine", NEVER_USED),
    ("https://[fd00:ec2::254]/latest/meta-data/", NEVER_USED),
    ("https://[fd20:ce::254]/computeMetadata/v1/", NEVER_USED),
    ("https://metadata.google.internal/computeMetadata/v1/", INSIDE),
    ("https://metadata.goog/computeMetadata/v1/", INSIDE),
    ("https://METADATA.GOOGLE.INTERNAL/", INSIDE),
    ("https://metadata/", INSIDE),
    ("https://instance-data/latest/", INSIDE),
    ("https://instance-data.ec2.internal/latest/", INSIDE),
    # Other notations of IPv4
    ("https://2130706433/", NUMBER),
    ("https://017700000001/", NUMBER),
    ("https://0x7f000001/", NUMBER),
    ("https://0X7F000001/", NUMBER),
    ("https://0x7f.0.0.1/", NUMBER),
    ("https://0x7f.0x0.0x0.0x1/", NUMBER),
    ("https://127.0.0.0x1/", NUMBER),
    ("https://0177.0.0.1/", NUMBER),
    ("https://127.0.0.01/", NUMBER),
    ("https://127.1/", NUMBER),
    ("https://127.0.1/", NUMBER),
    ("https://0/", NUMBER),
    ("https://0x/", NUMBER),
    ("https://127.0.0.256/", NUMBER),
    ("https://127.0.0.1.1/", NUMBER),
    ("https://425.510.425.510/", NUMBER),
    ("https://1.1.1.1.example.0x7f/", NUMBER),
    ("https://127.0.0.1./", NAME),
    ("https://2130706433./", NAME),
    ("https://127..0.1/", NUMBER),
    # IPv6, and IPv4 within it
    ("https://[::1]/", PUBLIC),
    ("https://[0:0:0:0:0:0:0:1]/", PUBLIC),
    ("https://[::]/", NEVER_USED),
    ("https://[fc00::1]/", PUBLIC),
    ("https://[fd12:3456:789a::1]/", PUBLIC),
    ("https://[fe80::1]/", NEVER_USED),
    ("https://[fe80::1%25eth0]/", URI),
    ("https://[fe80::1%eth0]/", URI),
    ("https://[fec0::1]/", PUBLIC),
    ("https://[ff02::1]/", NEVER_USED),
    ("https://[2001:db8::1]/", PUBLIC),
    ("https://[3fff::1]/", PUBLIC),
    ("https://[100::1]/", PUBLIC),
    ("https://[5f00::1]/", PUBLIC),
    ("https://[4000::1]/", PUBLIC),
    ("https://[::ffff:127.0.0.1]/", PUBLIC),
    ("https://[::ffff:7f00:1]/", PUBLIC),
    ("https://[::ffff:169.254.169.254]/", NEVER_USED),
    ("https://[::ffff:0:127.0.0.1]/", PUBLIC),
    ("https://[::127.0.0.1]/", PUBLIC),
    ("https://[::8.8.8.8]/", PUBLIC),
    ("https://[64:ff9b::127.0.0.1]/", PUBLIC),
    ("https://[64:ff9b::a9fe:a9fe]/", PUBLIC),
    ("https://[64:ff9b:1::7f00:1]/", PUBLIC),
    ("https://[2002:7f00:1::]/", PUBLIC),
    ("https://[2002:a9fe:a9fe::1]/", PUBLIC),
    ("https://[2001:0:7f00:1::]/", PUBLIC),
    ("https://[2001:0:808:808::80ff:fffe]/", PUBLIC),
    ("https://[v1.fe80::1]/", BRACKETS),
    ("https://[127.0.0.1]/", URI),
    ("https://[::1/", URI),
    ("https://::1/", URI),
    ("https://[::1]8443/", URI),
    ("https://[::ffff:127.1]/", URI),
    # Names
    ("https://localhost/", INSIDE),
    ("https://LOCALHOST/", INSIDE),
    ("https://localhost./", NAME),
    ("https://anything.localhost/", INSIDE),
    ("https://printer.local/", INSIDE),
    ("https://kubernetes.default.svc/", INSIDE),
    ("https://kubernetes.default.svc.cluster.local/", INSIDE),
    ("https://redis/", INSIDE),
    ("https://router.home.arpa/", INSIDE),
    ("https://example.com./", NAME),
    ("https://example..com/", NAME),
    ("https://.example.com/", NAME),
    ("https://-example.com/", NAME),
    ("https://exa_mple.com/", NAME),
    (f"https://{'a' * 64}.com/", NAME),
    (f"https://{'a.' * 127}com/", NAME),
    ("https://exam%70le.com/", NAME),
    ("https://127.0.0.1%2f.example.com/", NAME),
    ("https://127%2e0%2e0%2e1/", NAME),
    ("https:///path", NAME),
    ("https://:443/", NAME),
    ("https:example.com", NAME),
    # Characters that are read in more than one way
    ("https://\uff11\uff12\uff17.0.0.1/", URI),
    ("https://127。0。0。1/", URI),
    ("https://①②⑦.0.0.1/", URI),
    ("https://ⓛocalhost/", URI),
    ("https://faß.de/", URI),
    ("https://bücher.example.com/", URI),
    ("https://example.com\uff0f.evil.example/", URI),
    ("https://exam\u00adple.com/", URI),
    ("https://exam\u200dple.com/", URI),
    ("https://example.com\\@127.0.0.1/", URI),
    ("https://127.0.0.1\\.example.com/", URI),
    ("https:\\\\127.0.0.1\\", URI),
    ("https://exam\tple.com/", CONTROL),
    ("https://example.com/\r\nHost: inside", CONTROL),
    ("https://example.com/\x00", CONTROL),
    ("https://example.com/ HTTP/1.1", URI),
    (" https://example.com/", URI),
    ("https://example.com/\n", CONTROL),
    ("https://example.com/%zz", URI),
    ("https://example.com/#@127.0.0.1/", URI),
    # A user name
    ("https://user@example.com/", USER),
    ("https://user:word@example.com/", USER),
    ("https://example.com@127.0.0.1/", USER),
    ("https://127.0.0.1@example.com/", USER),
    ("https://@example.com/", USER),
    ("https://a@b@example.com/", URI),
    # Schemes
    ("http://example.com/", HTTPS),
    ("http://93.184.216.34/", HTTPS),
    ("file:///etc/passwd", HTTPS),
    ("ftp://example.com/", HTTPS),
    ("gopher://example.com:6379/_INFO", HTTPS),
    ("dict://example.com:11211/stat", HTTPS),
    ("ldap://example.com/", HTTPS),
    ("jar:https://example.com/!/", HTTPS),
    ("data:text/plain,hello", HTTPS),
    ("javascript:alert(1)", HTTPS),
    ("unix:///var/run/docker.sock", HTTPS),
    ("//example.com/", URI),
    ("/path", URI),
    ("example.com", URI),
    ("", "must not be empty"),
    # Ports
    ("https://example.com:22/", USUAL_PORT),
    ("https://example.com:25/", USUAL_PORT),
    ("https://example.com:80/", USUAL_PORT),
    ("https://example.com:6379/", USUAL_PORT),
    ("https://93.184.216.34:10250/", USUAL_PORT),
    ("https://[2606:4700::1111]:6443/", USUAL_PORT),
    ("https://example.com:0/", PORT),
    ("https://example.com:65536/", PORT),
    ("https://example.com:/", PORT),
    ("https://example.com:00000443/", PORT),
    ("https://example.com:+443/", URI),
    ("https://example.com:443:443/", URI),
    ("https://example.com:https/", URI),
    ("https://example.com:٤٤٣/", URI),
    # Length
    ("https://example.com/" + "a" * URL_MAX, LONG),
    ("https://" + "a" * 1_000_000 + ".com/", LONG),
]


@pytest.mark.parametrize(
    ("url", "reason"), HOSTILE, ids=[f"{place}-{url[:40]!a}" for place, (url, _) in enumerate(HOSTILE)]
)
def test_a_hostile_url_is_rejected_with_a_reason(url: str, reason: str) -> None:
    with pytest.raises(InvalidInput) as refusal:
        check_url(url, NOTHING, field="webhook")
    (fault,) = refusal.value.fields
    assert fault.field == "webhook"
    assert reason in fault.detail
    assert refusal.value.detail == f"webhook {fault.detail}"


GOOD: list[tuple[str, tuple[str, str, int, str]]] = [
    ("https://hooks.example.com", ("https", "hooks.example.com", 443, "/")),
    ("https://hooks.example.com/a/b%2Fc?d=e&f", ("https", "hooks.example.com", 443, "/a/b%2Fc?d=e&f")),
    ("HTTPS://Hooks.Example.COM:8443/A", ("https", "hooks.example.com", 8443, "/A")),
    ("https://hooks.example.com?token=1", ("https", "hooks.example.com", 443, "/?token=1")),
    ("https://xn--bcher-kva.example.com/", ("https", "xn--bcher-kva.example.com", 443, "/")),
    ("https://1password.com/", ("https", "1password.com", 443, "/")),
    ("https://127.0.0.1.nip.io/", ("https", "127.0.0.1.nip.io", 443, "/")),
    ("https://0x7f.example.com/", ("https", "0x7f.example.com", 443, "/")),
    ("https://93.184.216.34/hook", ("https", "93.184.216.34", 443, "/hook")),
    ("https://[2606:4700:0::1111]/", ("https", "2606:4700::1111", 443, "/")),
    ("https://[64:ff9b::93.184.216.34]/", ("https", "64:ff9b::5db8:d822", 443, "/")),
    ("https://[::ffff:93.184.216.34]/", ("https", "::ffff:5db8:d822", 443, "/")),
    ("https://example.com/" + "a" * (URL_MAX - 20), ("https", "example.com", 443, "/" + "a" * (URL_MAX - 20))),
]


@pytest.mark.parametrize(("url", "parts"), GOOD, ids=[url[:40] for url, _ in GOOD])
def test_a_public_https_url_is_accepted_and_parsed(url: str, parts: tuple[str, str, int, str]) -> None:
    to = check_url(url, NOTHING)
    assert (to.scheme, to.host, to.port, to.target) == parts


@pytest.mark.parametrize(
    ("url", "authority"),
    [
        ("https://example.com/", "example.com"),
        ("https://example.com:443/", "example.com"),
        ("https://example.com:8443/", "example.com:8443"),
        ("https://[2606:4700::1111]:8443/", "[2606:4700::1111]:8443"),
    ],
)
def test_the_authority_is_the_value_of_the_host_header(url: str, authority: str) -> None:
    assert check_url(url, NOTHING).authority == authority


def test_an_error_names_the_field_of_the_caller() -> None:
    with pytest.raises(InvalidInput) as refusal:
        check_url("ftp://example.com", NOTHING, field="url")
    assert refusal.value.fields == (FieldError("url", HTTPS),)


PIECES = st.sampled_from(
    [
        *("https://", "http://", "//", "/", "\\", "@", ":", ":443", ":8443", "?", "#", "[", "]", "%2e", ".", "-", "_"),
        *("127.0.0.1", "127.1", "0x7f", "93.184.216.34", "::1", "::ffff:7f00:1", "example.com", "a", "xn--"),
        *("\uff11", "\u3002", "\t", "\n", " "),
    ]
)
EVERYTHING = Allow.parse(["0.0.0.0/0", "::/0", ".com"])


@settings(max_examples=1_000, deadline=None)
@given(st.lists(PIECES, max_size=8).map(lambda pieces: "https://" + "".join(pieces)))
def test_an_accepted_url_is_parsed_alike_by_all_clients(url: str) -> None:
    """Otherwise one parser would check a host, and another one would connect to a different one."""
    try:
        to = check_url(url, EVERYTHING)
    except InvalidInput:
        return
    by_urllib, by_httpx = urlsplit(url), httpx.URL(url)
    for host, port in ((by_urllib.hostname or "", by_urllib.port), (by_httpx.raw_host.decode(), by_httpx.port)):
        assert (_plain(host), port or 443) == (_plain(to.host), to.port)


def _plain(host: str) -> str:
    return str(ipaddress.ip_address(host)) if ":" in host else host


# What a name leads to

RESOLVED_BADLY = [
    *("127.0.0.1", "10.1.2.3", "172.20.0.1", "192.168.0.10", "100.64.1.1", "198.18.0.1", "192.0.2.7"),
    *("::1", "fc00::1", "::ffff:10.0.0.1", "::10.0.0.1", "64:ff9b::10.0.0.1", "2002:a00:1::", "fec0::1", "4000::1"),
    *("0.0.0.0", "169.254.169.254", "168.63.129.16", "224.0.0.1", "255.255.255.255", "fe80::1", "ff02::1", "::"),
]


@pytest.mark.parametrize("address", RESOLVED_BADLY)
def test_a_name_must_not_resolve_to_an_internal_address(address: str) -> None:
    with pytest.raises(InvalidInput) as refusal:
        check_address("hooks.example.com", 443, ipaddress.ip_address(address), NOTHING)
    # It would reveal internal addresses.
    assert address not in refusal.value.detail


@pytest.mark.parametrize("address", ["93.184.216.34", "8.8.8.8", "2606:4700::1111", "64:ff9b::8.8.8.8", "192.0.0.9"])
def test_a_name_may_resolve_to_any_public_address(address: str) -> None:
    check_address("hooks.example.com", 443, ipaddress.ip_address(address), NOTHING)


# What an operator allows

ALLOWED: list[tuple[str, str]] = [
    ("receiver.default.svc", "http://receiver.default.svc/"),
    ("receiver.default.svc", "http://receiver.default.svc:9000/"),
    ("Receiver.Default.SVC", "https://receiver.default.svc:9000/"),
    ("receiver:9000", "http://receiver:9000/"),
    ("receiver:80", "http://receiver/"),
    (".cluster.local", "http://receiver.default.svc.cluster.local:8080/"),
    (".cluster.local:8080", "http://receiver.default.svc.cluster.local:8080/"),
    ("localhost", "http://localhost:1234/"),
    ("127.0.0.1", "http://127.0.0.1:1234/"),
    ("127.0.0.1:1234", "http://127.0.0.1:1234/"),
    ("127.0.0.0/8", "http://127.4.5.6:1234/"),
    ("10.0.0.0/8", "http://[::ffff:10.0.0.1]:1234/"),
    ("::1", "http://[::1]:1234/"),
    ("[::1]:1234", "http://[0::1]:1234/"),
    ("fd12::/16", "http://[fd12::5]/"),
    ("93.184.216.0/24", "http://93.184.216.34:22/"),
    ("hooks.example.com", "http://hooks.example.com:22/"),
]


@pytest.mark.parametrize(("entry", "url"), ALLOWED)
def test_an_allowed_receiver_may_be_internal_use_http_and_any_port(entry: str, url: str) -> None:
    with pytest.raises(InvalidInput):
        check_url(url, NOTHING)
    check_url(url, Allow.parse([entry]))


NOT_ALLOWED: list[tuple[str, str]] = [
    ("receiver:9000", "http://receiver:9001/"),
    ("receiver:9000", "https://receiver/"),
    (".cluster.local", "http://cluster.local/"),
    (".cluster.local", "http://evilcluster.local/"),
    ("example.internal", "http://a.example.internal/"),
    ("receiver.default.svc", "http://receiver.default.svc.example.com/"),
    ("127.0.0.1", "http://127.0.0.2/"),
    ("127.0.0.1:1234", "http://127.0.0.1:1235/"),
    ("10.0.0.0/8", "http://192.168.0.1/"),
    ("10.0.0.0/8", "http://hooks.example.com/"),
    ("10.0.0.0/8", "https://receiver/"),
    ("::1", "http://127.0.0.1/"),
    # For an embedded IPv4 address that one decides
    ("64:ff9b::/96", "https://[64:ff9b::7f00:1]/"),
    ("2002::/16", "https://[2002:7f00:1::]/"),
    ("::/0", "https://[64:ff9b::a00:1]/"),
]


@pytest.mark.parametrize(("entry", "url"), NOT_ALLOWED)
def test_an_allowance_covers_nothing_else(entry: str, url: str) -> None:
    with pytest.raises(InvalidInput):
        check_url(url, Allow.parse([entry]))


def test_an_allowed_name_may_resolve_to_internal_addresses_and_other_names_only_to_allowed_networks() -> None:
    inside = ipaddress.ip_address("10.1.2.3")
    check_address("receiver", 80, inside, Allow.parse(["receiver"]))
    check_address("hooks.example.com", 443, inside, Allow.parse(["10.1.0.0/16"]))
    for host, entry in (("other", "receiver"), ("hooks.example.com", "10.2.0.0/16")):
        with pytest.raises(InvalidInput):
            check_address(host, 443, inside, Allow.parse([entry]))


@pytest.mark.parametrize("network", NEVER, ids=str)
def test_no_allowance_covers_addresses_that_are_never_used(
    network: ipaddress.IPv4Network | ipaddress.IPv6Network,
) -> None:
    address = network[-1]
    everything = Allow.parse(["0.0.0.0/0", "::/0", str(network), str(address), "receiver"])
    written = f"[{address}]" if address.version == 6 else str(address)
    with pytest.raises(InvalidInput):
        check_url(f"https://{written}/", everything)
    with pytest.raises(InvalidInput):
        check_address("receiver", 80, address, everything)


@pytest.mark.parametrize(
    "entry",
    [
        *("http://receiver", "receiver/path", "a b", "receiver:0", "receiver:port", "10.0.0.0/33", "10.0.0.1/8"),
        *("*", "*.svc", ".", "..svc", "[::1", "127.1", "receiver.", "räceiver"),
    ],
)
def test_an_invalid_allowance_is_rejected(entry: str) -> None:
    with pytest.raises(ValueError, match="must"):
        Allow.parse([entry])
