"""A Redis with TLS only, and a recorder of its clients' traffic."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

import trustme

from tests.redis_server import RedisKind, RedisServer, needed_binary

PASSWORD = "a;word/with?all#of@it:"


class TlsRedis(RedisServer):
    """Redis of this machine without a plain port. It requires PASSWORD; a private authority signed its certificate."""

    def __init__(self, folder: Path) -> None:
        authority, certificate = trustme.CA(), folder / "server.pem"
        issued = authority.issue_cert("127.0.0.1")
        certificate.write_bytes(b"".join(each.bytes() for each in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(folder / "server.key")
        self.authority = folder / "authority.pem"
        authority.cert_pem.write_to_path(self.authority)
        super().__init__(needed_binary(RedisKind.CURRENT), folder)
        self.options = {
            "port": "0",
            "tls-port": str(self.port),
            "tls-cert-file": str(certificate),
            "tls-key-file": f"{folder}/server.key",
            "tls-ca-cert-file": str(self.authority),
            "tls-auth-clients": "no",
            "requirepass": PASSWORD,
        }

    @property
    def url(self) -> str:
        return f"{self.at(self.port)}/0?ssl_ca_certs={self.authority}"

    @staticmethod
    def at(port: int) -> str:
        """The URL of a port that forwards to it, without a database and without options."""
        return f"rediss://:{quote(PASSWORD, safe='')}@127.0.0.1:{port}"


class Recorder:
    """Forwards connections to a port, and records what each client sent."""

    def __init__(self, to_port: int) -> None:
        self.sent: list[bytearray] = []
        self._to_port = to_port
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    @contextmanager
    def running(self) -> Iterator[int]:
        """Yields the port that it listens on."""
        listener = socket.create_server(("127.0.0.1", 0))
        self._sockets.append(listener)
        self._start(self._accept, listener)
        yield listener.getsockname()[1]
        for each in self._sockets:
            _shut(each)
        for thread in self._threads:
            thread.join()
        for each in self._sockets:
            each.close()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                server = socket.create_connection(("127.0.0.1", self._to_port))
                record = bytearray()
                self.sent.append(record)
                self._sockets += [client, server]
                self._start(_pass_on, client, server, record)
                self._start(_pass_on, server, client, bytearray())

    def _start(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()


def _pass_on(source: socket.socket, target: socket.socket, kept: bytearray) -> None:
    with suppress(OSError):
        while data := source.recv(65_536):
            kept += data
            target.sendall(data)
    _shut(source)
    _shut(target)


def _shut(each: socket.socket) -> None:
    with suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)
