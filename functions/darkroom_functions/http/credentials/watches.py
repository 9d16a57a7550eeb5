"""Open connections: each socket and event stream ends when its credential is no longer valid.

A connection is authorized when it opens and may last for hours. It ends at the time at which its credential expires,
and within `CHECK_EVERY_S`, in addition to the time for which verification may be cached, after the key or the tenant
was disabled, the secret was rotated out, the session ended or the scope was taken away.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from darkroom.access.principals import Principal, Scope
from darkroom.errors import AccessUnavailable, CredentialRefused, DarkroomError, LedgerUnavailable, ScopeMissing

CHECK_EVERY_S = 5.0
"""The pause between two checks of all open connections, in seconds."""

LONGEST_TIMER_S = 24 * 3600.0
"""No connection lasts longer (`DARKROOM_SOCKET_LIFE_S`)."""

End = Callable[[DarkroomError], None]
"""Ends a connection because of an error."""


class Watches:
    """The open connections of a process. `run` must run in the background.

    `current` returns what a principal is now, and raises CredentialRefused where its credential is no longer valid.
    """

    def __init__(self, current: Callable[[Principal], Awaitable[Principal]]) -> None:
        self._current = current
        self._open: dict[tuple[Principal, Scope], dict[object, End]] = {}

    @contextmanager
    def watching(self, principal: Principal, scope: Scope, end: End) -> Iterator[None]:
        """Call `end` when the principal's credential is no longer valid, as long as the block runs."""
        timer = None
        if principal.expires is not None:
            expired = CredentialRefused("the credential has expired")
            after_s = min(max(0.0, principal.expires - time.time()), LONGEST_TIMER_S)
            timer = asyncio.get_running_loop().call_later(after_s, end, expired)
        place, watch = (principal, scope), object()
        self._open.setdefault(place, {})[watch] = end
        try:
            yield
        finally:
            if timer is not None:
                timer.cancel()
            del self._open[place][watch]
            if not self._open[place]:
                del self._open[place]

    async def run(self) -> None:
        """Check all connections, repeatedly, until cancelled. Connections of one credential share a check."""
        while True:
            await asyncio.sleep(CHECK_EVERY_S)
            for place in list(self._open):
                error = await self._fault(*place)
                if error is not None:
                    for end in list(self._open.get(place, {}).values()):
                        end(error)

    async def _fault(self, principal: Principal, scope: Scope) -> DarkroomError | None:
        try:
            current = await self._current(principal)
        except CredentialRefused as error:
            return error
        except (LedgerUnavailable, AccessUnavailable):
            return None  # it is unknown: the connection stays
        if current.may(scope):
            return None
        return ScopeMissing(f"the credential {principal.actor} lacks the scope {scope.value}", scope=scope.value)
