"""The guard: which addresses darkroom may send requests to on behalf of callers.

Every URL of a caller (webhooks) is checked twice. On submission `check_url` checks the text of the URL, without a
lookup, so that the caller gets the error at once. Before a request `client.py` resolves the name, checks all addresses
with `check_address`, and connects to one of these: an earlier result for the same name does not count.

A receiver must use https, a usual port and a public address. Receivers in `DARKROOM_WEBHOOK_ALLOW` may also have
internal addresses, use http and any port. The services that issue a machine's credentials are never allowed.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from ssrfguard import DEFAULT_DENIED

from darkroom.cloudevents.attributes import absolute_uri_fault
from darkroom.errors import FieldError, InvalidInput

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

URL_MAX = 2048
"""Characters. A guess: longer than any receiver's address, and short enough to be stored with every job."""

PORTS = frozenset({443, 8443})
"""The ports that receivers may use: that of https, and the usual one where 443 is not free."""

DEFAULT_PORTS = {"https": 443, "http": 80}

INSIDE_NAMES = (
    "localhost",
    "local",
    "internal",
    "svc",
    "lan",
    "home",
    "home.arpa",
    "corp",
    "intranet",
    "metadata.goog",
)
"""Names of internal networks, themselves and all names below them: receiver.default.svc, metadata.google.internal.
They are rejected early only to give the caller the error at once: the addresses of a name decide.
"""

# Never allowed, whatever the settings allow: special ranges of the Internet, and the addresses where clouds serve the
# credentials of a machine: AWS and most others in 169.254.0.0/16, AWS also in fd00:ec2::/32, Google fd20:ce::254,
# Alibaba 100.100.100.200, Oracle 192.0.0.192, Azure 168.63.129.16, which is a public address.
NEVER: tuple[IpNetwork, ...] = tuple(
    ipaddress.ip_network(text)
    for text in (
        "0.0.0.0/8",
        "169.254.0.0/16",
        "100.100.100.200/32",
        "168.63.129.16/32",
        "192.0.0.192/32",
        "224.0.0.0/4",
        "240.0.0.0/4",
        "::/128",
        "fd00:ec2::/32",
        "fd20:ce::254/128",
        "fe80::/10",
        "ff00::/8",
    )
)

# All other IPv6 addresses are special or unassigned. The second network is how a network without IPv4 reaches IPv4
# addresses; the table of special addresses covers these.
_GLOBAL_IPV6 = (ipaddress.IPv6Network("2000::/3"), ipaddress.IPv6Network("64:ff9b::/96"))

# Atomic groups do not backtrack, so that no text takes long to reject. Possessive quantifiers would be shorter,
# but CPython before 3.11.5 matches them wrongly (https://github.com/python/cpython/issues/106052).
_LABEL = r"[a-z0-9](?>(?:[a-z0-9-]{0,61}[a-z0-9])?)"
_NAME = re.compile(rf"(?>(?:{_LABEL}\.)*){_LABEL}", re.ASCII)
_NAME_MAX = 253
_BELOW_INSIDE = tuple(f".{name}" for name in INSIDE_NAMES)
# A name whose last label is a number, in any of the notations that programs read as an address (WHATWG URL, "ends in a
# number checker"): 127.1, 2130706433, 0x7f000001, 0177.0.0.1.
_NUMBER_AT_END = re.compile(r"(?:.*\.)?(?:(?>[0-9]+)|0x(?>[0-9a-f]*))", re.ASCII)
_PORT = re.compile(r"[0-9]{1,5}", re.ASCII)


@dataclass(frozen=True)
class Destination:
    """The parts of a URL, parsed once, so that no other parser can read it differently.

    `host` is a name in lower case or an address without brackets; `target` is the path with the query.
    """

    scheme: str
    host: str
    port: int
    target: str

    @property
    def address(self) -> IpAddress | None:
        """The host, if it is an address and no name."""
        try:
            return ipaddress.ip_address(self.host)
        except ValueError:
            return None

    @property
    def authority(self) -> str:
        """The value of the `Host` header: without the default port of the scheme."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"


@dataclass(frozen=True)
class Allow:
    """Receivers that may break the rules for public receivers: hosts by name, some at one port only, and networks.

    `hosts` holds (name, port), with port None for any; a name that begins with a full stop stands for all names below.
    """

    hosts: frozenset[tuple[str, int | None]] = frozenset()
    networks: tuple[IpNetwork, ...] = ()

    @classmethod
    def parse(cls, entries: Iterable[str]) -> Allow:
        """Parse entries such as `receiver.default.svc`, `.example.internal`, `10.1.2.3:8080`, `[::1]:80`, `10.0.0.0/8`.

        Raises ValueError naming an entry that is none of these.
        """
        hosts: set[tuple[str, int | None]] = set()
        networks: list[IpNetwork] = []
        for entry in entries:
            try:
                networks.append(ipaddress.ip_network(entry))  # an address is a network of one
                continue
            except ValueError:
                hosts.add(_allowed_host(entry.lower()))
        return cls(frozenset(hosts), tuple(networks))

    def names(self, host: str, port: int) -> bool:
        """Whether this host is allowed by its name."""
        parents = [host[place:] for place, character in enumerate(host) if character == "."]
        return any((name, at) in self.hosts for name in (host, *parents) for at in (None, port))

    def holds(self, address: IpAddress) -> bool:
        return any(address in network for network in self.networks)


NOTHING = Allow()
"""No receiver may break the rules."""


def check_url(url: str, allow: Allow, *, field: str = "webhook") -> Destination:
    """The destination of `url`. Makes no lookup.

    Raises InvalidInput, naming `field` and the reason, for a URL that could not be used: another scheme, another port,
    a user name, an address that is not public or has an unusual notation, a name of an internal network.
    """
    try:
        destination = _read(url)
        _check(destination, allow)
    except _Refused as refused:
        raise InvalidInput(f"{field} {refused}", fields=[FieldError(field, str(refused))]) from None
    return destination


def check_address(host: str, port: int, address: IpAddress, allow: Allow) -> None:
    """Check one of the addresses of `host`. Raises InvalidInput.

    The reason does not contain the address: it would reveal how internal names are resolved.
    """
    if fault := _address_fault(host, port, address, allow):
        raise InvalidInput(f"{host} {fault}")


class _Refused(ValueError):
    """The reason why a URL cannot be used, worded to follow the field's name."""


def _read(url: str) -> Destination:
    """The parts of a URL in the one notation that all programs read alike."""
    if len(url) > URL_MAX:
        raise _Refused(f"must have at most {URL_MAX} characters")
    # ASCII without spaces, control characters and backslashes: a name in another script has its xn-- form.
    if fault := absolute_uri_fault(url):
        raise _Refused(fault)
    parts = urlsplit(url)
    if parts.scheme not in DEFAULT_PORTS:
        raise _Refused("must begin with https://")
    if "@" in parts.netloc:
        raise _Refused("must not hold a user's name or password")
    host, port = _host_and_port(parts.netloc.lower())
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Destination(parts.scheme, host, DEFAULT_PORTS[parts.scheme] if port is None else port, target)


def _host_and_port(text: str) -> tuple[str, int | None]:
    """Parse `name`, `name:port`, `[address]` and `[address]:port`, in lower case."""
    host, bracket, rest = text.partition("]")
    if not bracket:
        host, colon, digits = text.partition(":")
    else:
        colon, digits = rest[:1], rest[1:]
    if colon and (colon != ":" or not _PORT.fullmatch(digits) or not 0 < int(digits) < 2**16):
        raise _Refused("must name a port from 1 to 65535, or none")
    if bracket:
        try:
            host = str(ipaddress.IPv6Address(host.removeprefix("[")))
        except ValueError:
            raise _Refused("must have an IPv6 address in brackets, and no zone") from None
    elif _NUMBER_AT_END.fullmatch(host):
        try:
            host = str(ipaddress.IPv4Address(host))
        except ValueError:
            raise _Refused("must write an IPv4 address as four decimal numbers") from None
    elif len(host) > _NAME_MAX or not _NAME.fullmatch(host):
        raise _Refused("must name a host in letters, digits, hyphens and single full stops, none at its end")
    return host, int(digits) if colon else None


def _check(to: Destination, allow: Allow) -> None:
    if to.address is None:
        is_allowed = allow.names(to.host, to.port)
        if not is_allowed and ("." not in to.host or f".{to.host}".endswith(_BELOW_INSIDE)):
            raise _Refused("must not name a host of an internal network")
    else:
        is_allowed = allow.names(to.host, to.port) or allow.holds(_plain(to.address))
        if fault := _address_fault(to.host, to.port, to.address, allow):
            raise _Refused(fault)
    if is_allowed:
        return
    if to.scheme != "https":
        raise _Refused("must begin with https://")
    if to.port not in PORTS:
        raise _Refused(f"must use port {' or '.join(map(str, sorted(PORTS)))}")


def _address_fault(host: str, port: int, address: IpAddress, allow: Allow) -> str | None:
    address = _plain(address)
    if any(address in network for network in NEVER):
        return "must not lead to an address that is never used for receivers"
    verdict = DEFAULT_DENIED.classify(address)
    # For an IPv6 address that embeds an IPv4 address the latter decides: an allowed outer address does not count.
    is_carrier = bool(verdict.chain)
    if not is_carrier and (allow.names(host, port) or allow.holds(address)):
        return None
    is_global = isinstance(address, ipaddress.IPv4Address) or any(address in network for network in _GLOBAL_IPV6)
    if verdict.blocked or not is_global:
        return "must lead to a public address"
    return None


def _plain(address: IpAddress) -> IpAddress:
    """The IPv4 address for an IPv4-mapped IPv6 address, which is reached as IPv4."""
    return getattr(address, "ipv4_mapped", None) or address


def _allowed_host(entry: str) -> tuple[str, int | None]:
    try:
        host, port = _host_and_port(entry.removeprefix("."))
    except _Refused as refused:
        raise ValueError(f"{entry!r} {refused}") from None
    return ("." if entry.startswith(".") else "") + host, port
