"""Follow a job over a WebSocket until it has ended, however often the connection breaks.

python follow_socket.py ws://localhost:8000 <job id>    (needs: pip install websockets; the key is in DARKROOM_KEY)
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
from collections.abc import AsyncIterator
from typing import Any

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

FINAL = {"completed", "failed", "cancelled", "expired"}
PERMANENT = {1008, 4400, 4401, 4403, 4404, 4410}  # the request or the credential is invalid, or there is no such job
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 10.0


async def follow(server: str, job_id: str) -> AsyncIterator[dict[str, Any]]:
    """Each message of the job once, in order: first the present state, last the terminal one."""
    headers = {"Authorization": f"Bearer {os.environ['DARKROOM_KEY']}"} if "DARKROOM_KEY" in os.environ else {}
    since, pause = None, FIRST_PAUSE_S
    while True:
        url = f"{server}/ws/jobs/{job_id}" + ("" if since is None else f"?since={since}")
        try:
            async with connect(
                url, additional_headers=headers
            ) as socket:  # the library pings, so a dead connection is detected
                async for text in socket:
                    message = json.loads(text)
                    if message.get("type") == "gap":  # the log does not go back that far: a snapshot follows
                        since = None
                    elif "seq" in message:
                        since, pause = message["seq"], FIRST_PAUSE_S
                        yield message
                        if message["state"] in FINAL:
                            return
        except ConnectionClosed as closed:
            if closed.rcvd is not None and closed.rcvd.code in PERMANENT:
                raise
        except InvalidStatus as refused:
            if refused.response.status_code < 500:
                raise
        except (OSError, InvalidHandshake):
            pass  # the server is not reachable
        await asyncio.sleep(pause * random.uniform(0.5, 1))  # not all clients at once after an outage
        pause = min(2 * pause, LONGEST_PAUSE_S)


async def main() -> None:
    async for message in follow(sys.argv[1], sys.argv[2]):
        print(json.dumps(message), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
