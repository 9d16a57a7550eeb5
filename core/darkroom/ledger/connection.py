"""Connections to Redis, and the translation of its errors into darkroom's."""

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
from darkroom.ledger.wire import propagate_cancellations

CONNECTIONS = 32
"""Connections of one process at most; a caller waits for a free one instead of being refused."""

SOCKET_TIMEOUT_S = 10.0
"""Longer than any script takes, shorter than a caller's timeout."""

CONNECT_TIMEOUT_S = 3.0

RETRIES = 3
"""redis-py's own default of 10 would hold a caller for half a minute while Redis is away."""


@dataclass(frozen=True)
class ConnectionOptions:
    """How a client waits for Redis: the timeout of each reply in seconds, and how often a call is sent again."""

    timeout_s: float = SOCKET_TIMEOUT_S
    retries: int = RETRIES


def connect(url: str, options: ConnectionOptions = ConnectionOptions()) -> redis.Redis:
    """A client for workers and tools. It waits for a free connection instead of failing when many are used at once."""
    address = RedisAddress.parse(url).connection_options(redis)
    pool = redis.BlockingConnectionPool(max_connections=CONNECTIONS, **address, **_pool_options(Retry, options))
    return redis.Redis.from_pool(pool)


def connect_async(url: str) -> redis.asyncio.Redis:
    """A client for the functions and the courier."""
    from redis.asyncio.retry import Retry as AsyncRetry

    address = RedisAddress.parse(url).connection_options(redis.asyncio)
    pool = redis.asyncio.BlockingConnectionPool(
        max_connections=CONNECTIONS, **address, **_pool_options(AsyncRetry, ConnectionOptions())
    )
    propagate_cancellations(pool)
    return redis.asyncio.Redis.from_pool(pool)


def _pool_options(retry: type[Any], options: ConnectionOptions) -> dict[str, Any]:
    return {
        "socket_timeout": options.timeout_s,
        "socket_connect_timeout": min(CONNECT_TIMEOUT_S, options.timeout_s),
        "health_check_interval": 30,
        "retry": retry(ExponentialBackoff(cap=0.5, base=0.05), options.retries),
        "retry_on_error": [RedisConnectionError, RedisTimeoutError],
    }


_CANNOT_WRITE = re.compile(r"\b(BUSY|MASTERDOWN|MISCONF|NOREPLICAS|READONLY)\b")
"""Redis is available but cannot write: a script that does not end, a full disk, a replica after a failover."""


@contextmanager
def translated() -> Iterator[None]:
    """Raise Redis' errors as darkroom's. redis-py removes the first word of an error that it has a class for; but Redis
    6.2 wraps the error of a command in a script in a text of its own, so that no class matches.
    """
    try:
        yield
    except ResponseError as error:
        if isinstance(error, OutOfMemoryError) or "-OOM" in str(error):
            raise MemoryHigh("the memory of Redis is used up; nothing was stored", retry_after=10) from error
        if isinstance(error, MasterDownError | ReadOnlyError) or _CANNOT_WRITE.search(str(error)):
            raise LedgerUnavailable("Redis cannot write now", retry_after=2) from error
        if isinstance(error, NoScriptError):  # it was loaded just now, so Redis has restarted since
            raise LedgerUnavailable("Redis has restarted", retry_after=1) from error
        raise
    except (RedisConnectionError, RedisTimeoutError, InvalidResponse) as error:
        raise LedgerUnavailable("Redis is unavailable", retry_after=2) from error
