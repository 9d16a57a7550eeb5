"""The address of Redis, parsed once. The connections of the ledger and of the Celery broker both use the result.

redis-py and kombu read the same URL differently: the database in the query, TLS without options, Unix sockets, options
that only one of them has. So neither of them gets the URL of the settings. The accepted forms are

    redis://[user:password@]host[:port][/database][?db=database]
    rediss://…                    the same over TLS, with the options in TLS_OPTIONS
    unix://[user:password@]/path/of/socket[?db=database]

and everything else is refused with a reason that contains no secret. This module needs only the standard library:
Flower's image holds it without the rest of darkroom.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit

DEFAULT_PORT = 6379

_ENCODED = "in a password write %2F for /, %3F for ?, %3A for : and %40 for @"

_DATABASE = re.compile(r"[0-9]{1,9}")
_HOST = re.compile(r"[^\s,;%]+")
_OPTION_NAME = re.compile(r"[A-Za-z_]{1,40}")
"""A name that a refusal may repeat. Anything else may be the rest of a password that contains a `?`."""

_VERIFICATION = {
    name: mode
    for mode in ssl.VerifyMode
    for name in (mode.name, mode.name.removeprefix("CERT_").lower())  # Celery writes CERT_REQUIRED, redis-py required
}

_TLS_VERSIONS = {
    name: version
    for label, version in {"TLSv1.2": ssl.TLSVersion.TLSv1_2, "TLSv1.3": ssl.TLSVersion.TLSv1_3}.items()
    for name in (label, str(int(version)))
}

_BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def _one_of(choices: Mapping[str, Any]) -> Callable[[str], Any]:
    def read(value: str) -> Any:
        if value not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}")
        return choices[value]

    return read


def _boolean(value: str) -> bool:
    return bool(_one_of(_BOOLEANS)(value.lower()))


TLS_OPTIONS: Mapping[str, Callable[[str], Any]] = {
    "ssl_ca_certs": str,
    "ssl_ca_path": str,
    "ssl_ca_data": str,
    "ssl_certfile": str,
    "ssl_keyfile": str,
    "ssl_password": str,
    "ssl_cert_reqs": _one_of(_VERIFICATION),
    "ssl_check_hostname": _boolean,
    "ssl_min_version": _one_of(_TLS_VERSIONS),
    "ssl_ciphers": str,
}
"""Options of TLS in the query of `rediss://`: redis-py and kombu treat them alike."""

_FILES: Mapping[str, Callable[[str], bool]] = {
    "ssl_ca_certs": os.path.isfile,
    "ssl_ca_path": os.path.isdir,
    "ssl_certfile": os.path.isfile,
    "ssl_keyfile": os.path.isfile,
}


@dataclass(frozen=True)
class RedisAddress:
    """The address and the login of a Redis. `database` is None where the address names none, which means 0.

    Either `socket` is set, the path of a Unix socket, or `host`. `tls` holds the options of TLS, and is None without
    TLS; the certificate and the name of the server are verified unless the address turns that off by name.
    """

    host: str = ""
    port: int = DEFAULT_PORT
    socket: str | None = None
    database: int | None = None
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: Mapping[str, Any] | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, url: str) -> RedisAddress:
        """Raises ValueError with a reason that names the part which is wrong, and never shows a password."""
        parts = _split(url.strip())
        host, port, socket = _host(parts), _port(parts), _socket(parts)
        options = _options(parts.query)
        if options.pop("protocol", "3") != "3":
            raise ValueError("the option protocol must be 3, the version that all connections use")
        database = _database(parts, options.pop("db", None))
        tls = _tls(parts, options)
        if options:
            raise ValueError(f"the option {_shown(next(iter(options)))} is not supported")
        return cls(
            host=host,
            port=port,
            socket=socket,
            database=database,
            username=unquote(parts.username) if parts.username else None,
            password=unquote(parts.password) if parts.password else None,
            tls=tls,
        )

    def missing_files(self) -> list[str]:
        """The options of TLS that name a file or folder which is not there."""
        return [name for name, exists in _FILES.items() if self.tls and name in self.tls and not exists(self.tls[name])]

    def at(self, *, database: int, username: str | None, password: str | None) -> RedisAddress:
        """The same server with another database, and with this login where the address has none."""
        if self.username or self.password:
            return replace(self, database=database)
        return replace(self, database=database, username=username, password=password)

    def connection_options(self, client: ModuleType) -> dict[str, Any]:
        """The options of a connection pool of `client`, which is redis or redis.asyncio."""
        login = {"db": self.database or 0, "username": self.username, "password": self.password}
        if self.socket is not None:
            return {"connection_class": client.UnixDomainSocketConnection, "path": self.socket, **login}
        connection_class = client.Connection if self.tls is None else client.SSLConnection
        return {
            "connection_class": connection_class,
            "host": self.host,
            "port": self.port,
            **login,
            **(self.tls or {}),
        }

    @property
    def broker_settings(self) -> dict[str, Any]:
        """Celery's settings of the broker. TLS is a setting of its own: where the transport is a class, kombu reads
        that setting and not the scheme.
        """
        return {"broker_url": self._broker_url, "broker_use_ssl": None if self.tls is None else dict(self.tls)}

    @property
    def _broker_url(self) -> str:
        """Everything that has a meaning in a URL is percent-encoded: kombu splits at each `;`, also in a password."""
        database = self.database or 0
        if self.socket is not None:
            return f"redis+socket://{self._login}{quote(self.socket)}?virtual_host={database}"
        return f"{self._scheme}://{self._login}{self._netloc}/{database}"

    @property
    def url(self) -> str:
        """The address in its plainest form, from which `parse` makes the same address."""
        if self.socket is not None:
            return f"unix://{self._login}{quote(self.socket)}{self._query({'db': self.database})}"
        path = "" if self.database is None else f"/{self.database}"
        return f"{self._scheme}://{self._login}{self._netloc}{path}{self._query(self.tls or {})}"

    @property
    def _scheme(self) -> str:
        return "redis" if self.tls is None else "rediss"

    @property
    def _login(self) -> str:
        if not self.username and not self.password:
            return ""
        password = f":{quote(self.password, safe='')}" if self.password else ""
        return f"{quote(self.username or '', safe='')}{password}@"

    @property
    def _netloc(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @staticmethod
    def _query(options: Mapping[str, Any]) -> str:
        shown = {name: _written(value) for name, value in options.items() if value is not None}
        return "?" + "&".join(f"{name}={quote(value, safe='')}" for name, value in shown.items()) if shown else ""


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, ssl.VerifyMode):
        return value.name
    return str(int(value)) if isinstance(value, int) else str(value)


def _split(url: str) -> SplitResult:
    if re.search(r"[\s\x00-\x1f\x7f]", url):
        raise ValueError("it contains white space or a control character; write %20 for a space")
    try:
        parts = urlsplit(url)
    except ValueError:  # its text may show the password
        raise ValueError(f"it names no host; {_ENCODED}") from None
    if parts.scheme not in {"redis", "rediss", "unix"}:
        raise ValueError("it must begin with redis://, rediss:// or unix://")
    if parts.fragment or url.endswith("#"):
        raise ValueError("it contains a #; write %23 for one in a password")
    return parts


def _options(query: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name in options:
            raise ValueError(f"the option {_shown(name)} is given twice")
        if not value:
            raise ValueError(f"the option {_shown(name)} has no value")
        options[name] = value
    return options


def _shown(name: str) -> str:
    return name if _OPTION_NAME.fullmatch(name) else "after the ?"


def _database(parts: SplitResult, option: str | None) -> int | None:
    path = "" if parts.scheme == "unix" else parts.path.removeprefix("/")
    named = {text for text in (path or None, option) if text is not None}
    if not all(_DATABASE.fullmatch(text) for text in named):
        raise ValueError("the database must be a number")
    numbers = {int(text) for text in named}
    if len(numbers) > 1:
        raise ValueError("the path and the option db name different databases")
    return numbers.pop() if numbers else None


def _tls(parts: SplitResult, options: dict[str, str]) -> dict[str, Any] | None:
    given = {name: options.pop(name) for name in TLS_OPTIONS if name in options}
    if parts.scheme != "rediss":
        if given:
            raise ValueError(f"the option {next(iter(given))} is for rediss:// only, which is Redis over TLS")
        return None
    read: dict[str, Any] = {"ssl_cert_reqs": ssl.CERT_REQUIRED}
    for name, value in given.items():
        try:
            read[name] = TLS_OPTIONS[name](value)
        except ValueError as error:
            raise ValueError(f"the option {name} {error}") from None
    if "ssl_keyfile" in read and "ssl_certfile" not in read:
        raise ValueError("the option ssl_keyfile needs ssl_certfile, the certificate of that key")
    if read["ssl_cert_reqs"] is ssl.CERT_NONE:
        if read.get("ssl_check_hostname"):
            raise ValueError("the option ssl_check_hostname needs a certificate that is verified (ssl_cert_reqs)")
        read["ssl_check_hostname"] = False
    return read


def _host(parts: SplitResult) -> str:
    if parts.scheme == "unix":
        return ""
    host = parts.hostname or ""
    if not _HOST.fullmatch(host):
        raise ValueError(f"it names no host, or more than one; {_ENCODED}")
    return host


def _port(parts: SplitResult) -> int:
    try:
        port = parts.port
    except ValueError:  # its text may show the password
        port = 0
    if port == 0:
        raise ValueError(f"the port must be a number from 1 to 65535; {_ENCODED}")
    return DEFAULT_PORT if port is None else port


def _socket(parts: SplitResult) -> str | None:
    if parts.scheme != "unix":
        return None
    host = parts.netloc.rpartition("@")[2]
    path = unquote(parts.path)
    if host or path.strip("/") == "":
        raise ValueError("the path of a socket is absolute: unix:///path/of/socket")
    return path
