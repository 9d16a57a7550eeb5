"""The protections that a chaos run can remove, to test that the run detects their absence.

Each removal patches a process in memory (`faulty_worker.py`, `faulty_courier.py`); darkroom's own code has no switch
for it.
"""

from __future__ import annotations

import functools
from copy import copy
from enum import StrEnum
from typing import Any

VARIABLE = "CHAOS_WITHOUT"
"""The protection that a process removes; empty for none."""


class Protection(StrEnum):
    """The mechanisms that prevent lost and doubled jobs.

    `REAPER`: an expired lease releases the job. `SWEEP`: a message that was popped and never claimed is pushed again.
    `FENCING`: only the holder of the token may finish a job. `OUTBOX`: a terminal event is delivered until it is
    applied. `ATTEMPT_KEYS`: each attempt has its own artifact keys, and none is overwritten.
    """

    REAPER = "reaper"
    SWEEP = "sweep"
    FENCING = "fencing"
    OUTBOX = "outbox"
    ATTEMPT_KEYS = "attempt-keys"


TOKEN_CHECK = b"if not rec[1] or rec[1] ~= 'running' or rec[2] ~= a.token then"
NO_CHECK = b"if not rec[1] then"


def remove_from_worker(protection: Protection) -> None:
    """Remove a worker's protection in this process."""
    if protection is Protection.FENCING:
        _remove_fencing()
    elif protection is Protection.ATTEMPT_KEYS:
        _remove_attempt_keys()


def remove_from_courier(protection: Protection) -> None:
    """Remove a courier's protection in this process."""
    from darkroom.ledger.calls import Call
    from darkroom_courier.upkeep import Upkeep

    nothing: Call[list[str]] = Call("read_job", ("job", ""), lambda _reply: [])
    if protection is Protection.REAPER:
        Upkeep._reap = lambda self, pool: nothing  # type: ignore[method-assign]
    elif protection is Protection.SWEEP:
        Upkeep._sweep = lambda self, pool: nothing  # type: ignore[method-assign]
    elif protection is Protection.OUTBOX:
        _remove_outbox()


def _remove_fencing() -> None:
    """Let any call of `finish` end a job in any state."""
    from darkroom.ledger import scripts

    texts = dict(scripts.texts())
    if TOKEN_CHECK not in texts["finish"]:
        raise LookupError("finish.lua no longer contains the expected check of the token")
    texts["finish"] = texts["finish"].replace(TOKEN_CHECK, NO_CHECK)
    scripts.texts = functools.cache(lambda: texts)
    scripts.digest.cache_clear()


def _remove_attempt_keys() -> None:
    """Use one key per artifact for all attempts, and overwrite it."""
    import obstore
    from darkroom.artifacts import ArtifactStore
    from darkroom_worker.child import runner

    def key(*, tenant: str, job_id: str, index: int, extension: str, **_more: object) -> str:
        return f"{tenant}/{job_id}/{index}.{extension}"

    def put(self: Any, key: str, content: bytes) -> None:
        obstore.put(self._store, key, content, mode="overwrite")

    runner.artifact_key = key  # type: ignore[attr-defined]  # imported there from darkroom.artifacts
    ArtifactStore.put = put  # type: ignore[method-assign]


def _remove_outbox() -> None:
    """Mark an event as applied at the sink's first 2xx."""
    from darkroom.cloudevents.event import Event
    from darkroom.ledger import calls
    from darkroom.ledger.client import AsyncLedger
    from darkroom_courier.posting.relay import Relay
    from darkroom_courier.posting.sink import Refusal, Sink

    init = Relay.__init__

    def init_with_applying_sink(self: Relay, ledger: AsyncLedger, sink: Sink, *rest: Any, **named: Any) -> None:
        async def post_once(event: Event) -> Refusal | None:
            refusal = await sink.post(event)
            if refusal is None:
                seq = int(str(event.extensions["sequence"]))
                await ledger.run(calls.mark_applied(event.subject or "", seq=seq))
            return refusal

        applying = copy(sink)
        applying.post = post_once  # type: ignore[method-assign]
        init(self, ledger, applying, *rest, **named)

    Relay.__init__ = init_with_applying_sink  # type: ignore[method-assign]
