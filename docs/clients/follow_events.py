"""Follow a job over server-sent events until it has ended, however often the connection breaks.

python follow_events.py http://localhost:8000 <job id>    (needs: pip install httpx; the key is in DARKROOM_KEY)
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Iterator
from typing import Any

import httpx

FINAL = {"completed", "failed", "cancelled", "expired"}
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 10.0
SILENCE_S = 45.0  # the server sends something every 15 s, so after this time the connection is dead


def follow(server: str, job_id: str) -> Iterator[dict[str, Any]]:
    """Each message of the job once, in order: first the present state, last the terminal one."""
    url, pause = f"{server}/api/v1/generation-jobs/{job_id}/events", FIRST_PAUSE_S
    headers = {"Authorization": f"Bearer {os.environ['DARKROOM_KEY']}"} if "DARKROOM_KEY" in os.environ else {}
    with httpx.Client(timeout=httpx.Timeout(10, read=SILENCE_S)) as client:
        while True:
            try:
                with client.stream("GET", url, headers=headers) as response:
                    if response.status_code not in (429, 500, 502, 503, 504):  # these are temporary
                        response.raise_for_status()
                        for event in events(response):
                            message, pause = json.loads(event["data"]), FIRST_PAUSE_S
                            if "id" in event:
                                headers["Last-Event-ID"] = event["id"]
                            if "seq" in message:
                                yield message
                                if message["state"] in FINAL:
                                    return
            except httpx.TransportError:
                pass  # the server is not reachable, or the connection broke
            time.sleep(pause * random.uniform(0.5, 1))  # not all clients at once after an outage
            pause = min(2 * pause, LONGEST_PAUSE_S)


def events(response: httpx.Response) -> Iterator[dict[str, str]]:
    """The events of a stream, each as its fields, without one that the end of the connection cuts off.

    https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
    """
    rest = ""
    fields: dict[str, str] = {}
    for text in response.iter_text():
        *lines, rest = (rest + text).split("\n")
        for line in lines:
            name, _, value = line.partition(":")
            if name:
                fields[name] = value.removeprefix(" ")
            elif not line:
                if "data" in fields:
                    yield fields
                fields = {}


if __name__ == "__main__":
    for message in follow(sys.argv[1], sys.argv[2]):
        print(json.dumps(message), flush=True)
