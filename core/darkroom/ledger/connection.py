"""Connections to Redis, and its errors as darkroom's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import redis
import redis.asyncio
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import (
    InvalidResponse,
    MasterDownError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
)
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from darkroom.errors import LedgerUnavailable, MemoryHigh
from darkroom.ledger.address import RedisAddress
from darkroom.ledger.wire import heed_cancellations

CONNECTIONS = 32
"""Connections of one process at most; a caller waits for a free one rather than being refused."""

SOCKET_TIMEOUT_S = 10.0
"""Longer than any script takes, shorter than a caller's patience."""

CONNECT_TIMEOUT_S = 3.0

RETRIES = 3
"""redis-py's own default of 10 would hold a caller for half a minute while Redis is away."""


@dataclass(frozen=True)
class Patience:
    """How long a call waits for Redis: for each reply (`timeout_s`), and how often it is then sent again."""

    timeout_s: float = SOCKET_TIMEOUT_S
    retries: int = RETRIES


def connect(url: str, patience: Patience = Patience()) -> redis.Redis:
    """A client for workers and tools. It waits for a connection rather than failing when many ask at once."""
    address = RedisAddress.parse(url).connection_options(redis)
    pool = redis.BlockingConnectionPool(max_connections=CONNECTIONS, **address, **_connection_options(Retry, patience))
    return redis.Redis.from_pool(pool)


def connect_async(url: str) -> redis.asyncio.Redis:
    """A client for the functions and the courier."""
    from redis.asyncio.retry import Retry as AsyncRetry

    address = RedisAddress.parse(url).connection_options(redis.asyncio)
    pool = redis.asyncio.BlockingConnectionPool(
        max_connections=CONNECTIONS, **address, **_connection_options(AsyncRetry, Patience())
    )
    heed_cancellations(pool)
    return redis.asyncio.Redis.from_pool(pool)


def _connection_options(retry: type[Any], patience: Patience) -> dict[str, Any]:
    return {
        "socket_timeout": patience.timeout_s,
        "socket_connect_timeout": min(CONNECT_TIMEOUT_S, patience.timeout_s),
        "health_check_interval": 30,
        "retry": retry(ExponentialBackoff(cap=0.5, base=0.05), patience.retries),
        "retry_on_error": [RedisConnectionError, RedisTimeoutError],
    }


_UNABLE = re.compile(r"\b(BUSY|MASTERDOWN|MISCONF|NOREPLICAS|READONLY)\b")
"""Redis is there and will not write now: a script that does not end, a full disk, a replica after a failover."""


@contextmanager
def translated() -> Iterator[None]:
    """Redis' failures as ours. redis-py takes the first word off an error that it has a class for; but 6.2 wraps what a
    command of a script answers in a text of its own, so that no class matches.
    """
    try:
        yield
    except ResponseError as error:
        if isinstance(error, OutOfMemoryError) or "-OOM" in str(error):
            raise MemoryHigh("the queue broker's memory is used up; nothing was stored", retry_after=10) from error
        if isinstance(error, MasterDownError | ReadOnlyError) or _UNABLE.search(str(error)):
            raise LedgerUnavailable("the queue broker cannot write now", retry_after=2) from error
        if isinstance(error, NoScriptError):  # it was loaded just now: Redis has restarted since
            raise LedgerUnavailable("the queue broker has restarted", retry_after=1) from error
        raise
    except (RedisConnectionError, RedisTimeoutError, InvalidResponse) as error:
        raise LedgerUnavailable("the queue broker does not answer", retry_after=2) from error
