"""Permission: the request whether a receiver accepts posts, and how many a minute, before the first post.

The courier sends it when an address is first used. The handshake is that of CloudEvents' HTTP 1.1 Web Hooks, section 4:
an OPTIONS request that names the origin of the posts, and a response that repeats it. It prevents callers from
directing floods of posts at other people's servers. Most receivers do not implement it; they are posted to without a
granted rate. https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/http-webhook.md#4-abuse-protection
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from darkroom.webhooks.client import GuardedClient

ORIGIN_HEADER = "webhook-request-origin"
"""The origin of the posts, in the request for permission and, with the same value, in every post (section 4.1.2)."""

_RATE = re.compile(r"(?>0*)[1-9][0-9]{0,8}", re.ASCII)


@dataclass(frozen=True)
class Permission:
    """The permission of a receiver. `per_minute` is the most posts a minute, None for any number.

    `is_granted` is false only if a receiver that implements the handshake names another origin.
    """

    is_granted: bool
    per_minute: int | None = None


async def ask_permission(client: GuardedClient, url: str, *, origin: str, per_minute: int) -> Permission:
    """Ask the receiver at `url`. `origin` is the DNS name of darkroom, `per_minute` the requested rate.

    Raises InvalidInput if the guard rejects the URL, and Unanswered without a response: the permission is unknown then.
    """
    asked = {ORIGIN_HEADER: origin, "webhook-request-rate": str(per_minute)}
    answer = await client.send("OPTIONS", url, headers=asked)
    # The status does not matter (section 4.2): a server may answer OPTIONS without granting anything.
    allowed = answer.headers.get("webhook-allowed-origin", "").strip().lower()
    if not allowed:
        return Permission(is_granted=True)
    if allowed not in {"*", origin.lower()}:
        return Permission(is_granted=False)
    rate = answer.headers.get("webhook-allowed-rate", "").strip()
    # The requested rate, if any rate is granted (`*`) or the response names no valid one.
    return Permission(is_granted=True, per_minute=int(rate) if _RATE.fullmatch(rate) else per_minute)
