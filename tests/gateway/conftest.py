"""Fixtures of the gateway's tests: stand-in functions and the real ones, each behind a gateway."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.conftest import RedisServers
from tests.functions.api import TIMEOUT_S, Api, serving
from tests.gateway.running import FUNCTIONS, Gateway, StandIn, running, stand_ins
from tests.redis_server import RedisKind

ALLOWED_ORIGIN = "https://app.example"
"""The origin of pages that the real functions allow."""


@dataclass(frozen=True)
class Staged:
    """A gateway, and stand-ins for the functions."""

    gateway: Gateway
    functions: dict[str, StandIn]


@pytest.fixture(scope="session")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Staged]:
    with stand_ins() as functions:
        places = {name: each.place for name, each in functions.items()}
        with running(tmp_path_factory.mktemp("staged"), places) as gateway:
            yield Staged(gateway, functions)


@dataclass(frozen=True)
class Front:
    """A gateway, its client, and the real functions behind it."""

    gateway: Gateway
    client: httpx.Client
    api: Api


@contextmanager
def in_front_of(api: Api, folder: Path, **more: str) -> Iterator[Gateway]:
    """A gateway for these functions."""
    place = f"127.0.0.1:{api.functions.port}"
    with running(folder, dict.fromkeys(FUNCTIONS, place), **more) as gateway:
        yield gateway


@pytest.fixture(scope="session")
def front(redis_servers: RedisServers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    """All functions behind one port, and a gateway with long-polls of two seconds that cancels no job."""
    redis_url, folder = redis_servers(RedisKind.EMBEDDED).url, tmp_path_factory.mktemp("front")
    with (
        serving(redis_url, f"t-{secrets.token_hex(8)}", folder, DARKROOM_ALLOWED_ORIGINS=ALLOWED_ORIGIN) as api,
        in_front_of(
            api,
            folder / "front",
            DARKROOM_MAX_WAIT_S="2",
            DARKROOM_GATEWAY_WAIT_S="120",
            DARKROOM_GATEWAY_CONNECTIONS="1001",
            DARKROOM_GATEWAY_CONNECTIONS_PER_ADDRESS="1000",
        ) as gateway,
        httpx.Client(base_url=gateway.url, timeout=TIMEOUT_S, trust_env=False) as client,
    ):
        yield Front(gateway, client, api)
