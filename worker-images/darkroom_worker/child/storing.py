"""Finished pictures on their way into the object store, held in the child's memory while the store is away.

`run.py` calls `Storing.put` for each picture of a run. The store is shared: its outage is no fault of the job and none
of this worker, and another worker would fare no better. So the call is repeated, with a growing pause, until the store
accepts the picture or the job ends in another way. The parent renews the lease meanwhile; a drain ends the child, and
the job is released uncounted.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet

from darkroom import logs
from darkroom.artifacts import ArtifactStore, StoreRefused, StoreUnavailable
from darkroom.backoff import Backoff

CHECK_EVERY_S = 1.0
"""How often a child that holds pictures asks whether its job was cancelled or is another worker's."""

BACKOFF = Backoff(first_s=0.125, longest_s=4.0, jitter=1.0)
"""Between two attempts. Workers that hold pictures since the same outage must not return at the same moment, so a pause
is up to twice as long, at random."""

REFUSED_AFTER_S = 300.0
"""A store that accepts other objects and has refused this one for so long is not away: it refuses the job's key. Well
above the length of an outage of one folder or of one server among many. A guess."""


class ArtifactUploader:
    """The store as one child uses it. `worker` names the object that a probe writes."""

    def __init__(self, store: ArtifactStore, worker: str) -> None:
        self._store, self._worker = store, worker
        # A call may hang for longer than a cancel can wait, so it runs in a thread. An abandoned call does no harm: the
        # key is the attempt's own, and only `finish` publishes it.
        self._threads = ThreadPoolExecutor(thread_name_prefix="storing")
        self._log = logs.logger(__name__)

    def put(self, key: str, content: bytes, *, check: Callable[[], None]) -> None:
        """Store one picture, however long the store is away.

        `check` is called every second meanwhile and may raise to end the wait. Raises StoreRefused where the store
        accepts other objects, but never this one.
        """
        began = time.monotonic()
        pauses = BACKOFF.pauses()
        is_away = False
        while True:
            try:
                self._finished(self._threads.submit(self._store.put, key, content), check)
            except StoreUnavailable as error:
                if not is_away:
                    self._log.warning("store_away", detail=error.detail)
                is_away = True
            else:
                if is_away:
                    self._log.info("store_back", seconds=round(time.monotonic() - began, 1))
                return
            if time.monotonic() - began > REFUSED_AFTER_S and self._accepts_others(content, check):
                raise StoreRefused("the object store accepts other objects, but not the artifact of this job")
            self._wait(next(pauses), check)

    def _accepts_others(self, content: bytes, check: Callable[[], None]) -> bool:
        """Whether an object of the same size is accepted, so that a full disk is no refusal of this one."""
        try:
            self._finished(self._threads.submit(self._store.probe, self._worker, content), check)
        except StoreUnavailable:
            return False
        return True

    def _finished(self, call: Future[None], check: Callable[[], None]) -> None:
        while True:
            try:
                return call.result(timeout=CHECK_EVERY_S)
            except NotYet:
                check()

    def _wait(self, seconds: float, check: Callable[[], None]) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(left, CHECK_EVERY_S))
            check()
