"""The time of one warm verification of a key, as the functions do it for every request; `bench/submit.py` runs this.

From the headers of a request to its principal: the key is parsed, hashed and compared. What the process has read about
it is at most five seconds old, so that Redis is not asked. The key is in DARKROOM_KEY, Redis in DARKROOM_REDIS_URL.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence

import uvloop
from darkroom.access.principals import Scope
from darkroom_functions.http import access
from darkroom_functions.settings import AccessSettings, AuthMode
from starlette.requests import Request

WARM_UP = 200


async def measure(calls: int) -> float:
    """Microseconds of one verification, as the mean of `calls`."""
    header = f"Bearer {os.environ['DARKROOM_KEY']}".encode()
    settings = AccessSettings(auth=AuthMode.KEYS)  # type: ignore[call-arg] # the rest is in the environment
    async with access.running(settings) as verifying:
        began = 0.0
        for number in range(WARM_UP + calls):
            if number == WARM_UP:
                began = time.process_time()
            principal = await verifying.authenticate(_request(header))
            assert principal.may(Scope.SUBMIT)
        return 1e6 * (time.process_time() - began) / calls


def _request(credential: bytes) -> Request:
    """A request as the server passes it on: nothing of it is remembered from the one before."""
    headers = [
        (b"host", b"127.0.0.1:8000"),
        (b"content-type", b"application/json"),
        (b"content-length", b"100"),
        (b"authorization", credential),
    ]
    return Request({"type": "http", "method": "POST", "path": "/flux", "query_string": b"", "headers": headers})


def main(arguments: Sequence[str]) -> int:
    """Print the microseconds of one verification."""
    (calls,) = arguments
    print(uvloop.run(measure(int(calls))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
