"""Addresses of Redis: each accepted form leads the ledger and the Celery broker to the same database of one server."""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
import redis
from celery import Celery
from darkroom.ledger import reads
from darkroom.ledger.address import RedisAddress
from darkroom.ledger.client import AsyncLedger, Ledger
from darkroom.ledger.connection import connect, connect_async

from tests.redis_server import RedisKind, RedisServer, needed_binary
from tests.tls_redis import PASSWORD, TlsRedis

LOGIN = f":{quote(PASSWORD, safe='')}@"


@pytest.fixture(scope="module", params=list(RedisKind))
def plain(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A server of each kind with a Unix socket besides its port, without a password."""
    folder = tmp_path_factory.mktemp("plain")
    server = RedisServer(needed_binary(request.param), folder, {"unixsocket": f"{folder}/redis.sock"})
    server.start()
    with connect(server.url) as client:
        client.execute_command("ACL", "SETUSER", "part", "on", f">{PASSWORD}", "~*", "&*", "+@all")
    yield server
    server.stop()


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsRedis]:
    server = TlsRedis(tmp_path_factory.mktemp("tls"))
    server.start()
    yield server
    server.stop()


async def databases(url: str) -> set[int]:
    """The database of each connection that darkroom makes of this address: the ledger's two, and the broker's."""
    found = set()
    with connect(url) as client:
        found.add(int(client.client_info()["db"]))
    async with connect_async(url) as aclient:
        found.add(int((await aclient.client_info())["db"]))
    with Celery("tests", set_as_current=False) as app:
        app.conf.update(RedisAddress.parse(url).broker_settings)
        with app.connection_for_read() as broker:
            found.add(int(broker.default_channel.client.client_info()["db"]))
    return found


@pytest.mark.parametrize(
    ("form", "database"),
    [
        ("redis://127.0.0.1:{port}", 0),
        ("redis://127.0.0.1:{port}/", 0),
        ("redis://localhost:{port}/3", 3),
        ("redis://127.0.0.1:{port}?db=3", 3),
        ("redis://127.0.0.1:{port}/?db=3", 3),
        ("redis://127.0.0.1:{port}/3?db=3&protocol=3", 3),
        ("redis://part{login}127.0.0.1:{port}/5", 5),
        ("unix://{socket}", 0),
        ("unix://{socket}?db=3", 3),
        ("unix://part{login}{socket}?db=4", 4),
        ("\tREDIS://127.0.0.1:{port}/2\n", 2),
    ],
)
async def test_every_part_connects_to_the_database_of_the_address(form: str, database: int, plain: RedisServer) -> None:
    socket = plain.options["unixsocket"]
    assert await databases(form.format(port=plain.port, socket=socket, login=LOGIN)) == {database}


@pytest.mark.parametrize(
    ("form", "database"),
    [
        ("", 0),
        ("/3", 3),
        ("?db=3", 3),
        ("?ssl_ca_certs={authority}", 0),
        ("/2?ssl_ca_certs={authority}&ssl_cert_reqs=required", 2),
        ("/2?ssl_ca_certs={authority}&ssl_cert_reqs=CERT_REQUIRED&ssl_check_hostname=True", 2),
        ("/2?db=2&ssl_ca_certs={authority}&ssl_check_hostname=false&ssl_min_version=TLSv1.3", 2),
        ("?ssl_cert_reqs=none", 0),
        ("?ssl_cert_reqs=CERT_NONE&ssl_ca_path={folder}&ssl_ciphers=HIGH", 0),
        ("?ssl_ca_certs={authority}&ssl_certfile={certificate}&ssl_keyfile={key}", 0),
    ],
)
async def test_every_part_connects_over_tls(
    form: str, database: int, tls: TlsRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tls.authority))  # without an option the authorities of the system count
    options = form.format(
        authority=tls.authority, folder=tls.folder, certificate=tls.folder / "server.pem", key=tls.folder / "server.key"
    )
    assert await databases(tls.at(tls.port) + options) == {database}


def _ledger(url: str) -> None:
    with connect(url) as client:
        client.ping()


def _broker(url: str) -> None:
    with Celery("tests", set_as_current=False) as app:
        app.conf.update(RedisAddress.parse(url).broker_settings)
        with app.connection_for_read() as broker:
            broker.channel()


@pytest.mark.parametrize("connects", [_ledger, _broker])
@pytest.mark.parametrize(
    ("form", "fault"),
    [
        ("rediss://{login}127.0.0.1:{port}", "self-signed certificate"),
        ("rediss://{login}localhost:{port}?ssl_ca_certs={authority}", "Hostname mismatch"),
    ],
    ids=["of-an-unknown-authority", "for-another-name"],
)
def test_a_certificate_that_cannot_be_trusted_is_refused(
    form: str, fault: str, connects: Callable[[str], None], tls: TlsRedis
) -> None:
    url = form.format(login=LOGIN, port=tls.port, authority=tls.authority)
    with pytest.raises(redis.exceptions.ConnectionError, match=f"CERTIFICATE_VERIFY_FAILED.*{fault}"):
        connects(url)


async def test_a_ledger_works_over_tls(tls: TlsRedis, namespace: str) -> None:
    with connect(tls.url) as client:
        assert Ledger(client, namespace).job("unknown") is None
    async with connect_async(tls.url) as aclient:
        assert await reads.pools(AsyncLedger(aclient, namespace)) == []


REFUSED = [
    ("http://h", "must begin with redis://, rediss:// or unix://"),
    ("127.0.0.1:6379", "must begin with redis://, rediss:// or unix://"),
    ("redis+socket:///r.sock", "must begin with redis://, rediss:// or unix://"),
    ("sentinel://h:26379", "must begin with redis://, rediss:// or unix://"),
    ("redis://", "names no host"),
    ("redis:///0", "names no host"),
    ("redis://:secret@", "names no host"),
    ("redis://a,b", "names no host, or more than one"),
    ("redis://a;redis://b", "names no host, or more than one"),
    ("redis://a:1,b:2", "the port must be a number"),
    ("redis://:secret℀@h", "names no host"),
    ("redis://[::1", "names no host"),
    ("redis://h:0", "the port must be a number from 1 to 65535"),
    ("redis://h:70000", "the port must be a number from 1 to 65535"),
    ("redis://h:port", "the port must be a number from 1 to 65535"),
    ("redis://:secret/x@h", "in a password write %2F for /"),
    ("redis://:secret?x@h", "%3F for ?"),
    ("redis://:secret#x@h", "write %23 for one in a password"),
    ("redis://h#", "write %23"),
    ("redis://h /0", "white space"),
    ("redis://h\n/0", "white space"),
    ("redis://h/first", "the database must be a number"),
    ("redis://h/0/1", "the database must be a number"),
    ("redis://h/3/", "the database must be a number"),
    ("redis://h/-1", "the database must be a number"),
    ("redis://h/\u0661", "the database must be a number"),
    ("redis://h?db=first", "the database must be a number"),
    ("redis://h/1?db=2", "name different databases"),
    ("redis://h?db=2&db=2", "the option db is given twice"),
    ("redis://h?db=", "the option db has no value"),
    ("redis://h?virtual_host=2", "the option virtual_host is not supported"),
    ("redis://h?socket_timeout=1", "the option socket_timeout is not supported"),
    ("redis://h?password=secret", "the option password is not supported"),
    ("redis://h?sec/ret=secret", "the option after the ? is not supported"),
    ("redis://h?protocol=2", "the option protocol must be 3"),
    ("redis://h?ssl_ca_certs=/a", "the option ssl_ca_certs is for rediss:// only"),
    ("redis://h?ssl=true", "the option ssl is not supported"),
    ("unix:///r?ssl_cert_reqs=none", "the option ssl_cert_reqs is for rediss:// only"),
    ("rediss://h?ssl_cert_reqs=maybe", "the option ssl_cert_reqs must be one of"),
    ("rediss://h?ssl_check_hostname=perhaps", "the option ssl_check_hostname must be one of"),
    ("rediss://h?ssl_min_version=TLSv1.1", "the option ssl_min_version must be one of TLSv1.2"),
    ("rediss://h?ssl_keyfile=/k", "the option ssl_keyfile needs ssl_certfile"),
    ("rediss://h?ssl_cert_reqs=none&ssl_check_hostname=true", "the option ssl_check_hostname needs a certificate"),
    ("rediss://h?ssl_validate_ocsp=true", "the option ssl_validate_ocsp is not supported"),
    ("unix://run/redis.sock", "the path of a socket is absolute"),
    ("unix://", "the path of a socket is absolute"),
    ("unix:///", "the path of a socket is absolute"),
]


@pytest.mark.parametrize(("url", "reason"), REFUSED)
def test_what_one_of_the_connections_would_misread_is_refused_with_its_reason(url: str, reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)) as refusal:
        RedisAddress.parse(url)
    assert "secret" not in str(refusal.value)


@pytest.mark.parametrize(
    "url",
    [
        "redis://h",
        "redis://user@h:1/0",
        f"redis://user{LOGIN}[::1]:6380/15",
        "rediss://h?ssl_cert_reqs=none",
        "rediss://h/1?ssl_ca_certs=/a%20b&ssl_check_hostname=no&ssl_min_version=772",
        f"unix://user{LOGIN}/a%20b;c?db=3",
    ],
)
def test_the_plainest_form_of_an_address_is_the_same_address(url: str) -> None:
    address = RedisAddress.parse(url)
    assert RedisAddress.parse(address.url) == address


def test_an_address_shows_no_password() -> None:
    address = RedisAddress.parse("rediss://user:secret-word@h?ssl_password=secret-word")
    assert "secret-word" not in repr(address)


def test_tls_verifies_unless_the_address_turns_it_off() -> None:
    assert RedisAddress.parse("rediss://h").broker_settings["broker_use_ssl"] == {"ssl_cert_reqs": ssl.CERT_REQUIRED}


def test_a_file_of_tls_that_is_not_there_is_named(tmp_path: Path) -> None:
    there = tmp_path / "ca.pem"
    there.touch()
    options = f"ssl_ca_certs={there}&ssl_certfile={tmp_path}/missing.pem&ssl_ca_path={there}"
    assert RedisAddress.parse(f"rediss://h?{options}").missing_files() == ["ssl_ca_path", "ssl_certfile"]
