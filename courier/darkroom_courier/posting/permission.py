"""Permission: asking a receiver whether it wants our posts, before the first one, and how many a minute.

The courier's deliveries ask when an address is first used. The handshake is the one of CloudEvents' HTTP 1.1 Web Hooks,
section 4: an OPTIONS request with our name, and an answer that repeats it. Its purpose is that nobody has us flood a
stranger. Most receivers do not know it; these are posted to, as everywhere, and no rate binds us.
https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/http-webhook.md#4-abuse-protection
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from darkroom.webhooks.client import GuardedClient

ORIGIN_HEADER = "webhook-request-origin"
"""Says who we are: in the request for permission and then, with the same value, in every post (section 4.1.2)."""

_RATE = re.compile(r"(?>0*)[1-9][0-9]{0,8}", re.ASCII)


@dataclass(frozen=True)
class Permission:
    """What a receiver lets us do. `per_minute` is how many posts a minute, None for any number.

    `is_granted` is false only where a receiver that knows the handshake names somebody else.
    """

    is_granted: bool
    per_minute: int | None = None


async def ask_permission(client: GuardedClient, url: str, *, origin: str, per_minute: int) -> Permission:
    """Ask the receiver at `url`. `origin` is the DNS name that we go by, `per_minute` the rate that we should like.

    Raises InvalidInput where the guard refuses the URL, Unanswered where there is no answer: nothing is known then, and
    it is asked again.
    """
    asked = {ORIGIN_HEADER: origin, "webhook-request-rate": str(per_minute)}
    answer = await client.send("OPTIONS", url, headers=asked)
    # The status means nothing here (section 4.2): who happens to answer OPTIONS has granted nothing by that.
    allowed = answer.headers.get("webhook-allowed-origin", "").strip().lower()
    if not allowed:
        return Permission(is_granted=True)
    if allowed not in {"*", origin.lower()}:
        return Permission(is_granted=False)
    rate = answer.headers.get("webhook-allowed-rate", "").strip()
    # The rate that was asked for, where any is granted (`*`) or none is named that can be read.
    return Permission(is_granted=True, per_minute=int(rate) if _RATE.fullmatch(rate) else per_minute)
