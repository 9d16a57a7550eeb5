"""Upload of finished pictures to the object store. While the store is unavailable the child keeps them in memory.

`child/runner.py` calls `ArtifactUploader.put` for each picture of a run. The store is shared: its outage is a fault of
neither the job nor this worker, and another worker would fail too. So the upload is retried, with a growing pause,
until the store accepts the picture or the job finishes in another way. The parent renews the lease meanwhile; a drain
ends the child and releases the job, uncounted.
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
"""How often a child that holds pictures checks whether its job was cancelled or belongs to another attempt."""

BACKOFF = Backoff(first_s=0.125, longest_s=4.0, jitter=1.0)
"""The pauses between two tries. A pause is up to twice as long, at random, so that workers do not retry together after
an outage."""

REFUSED_AFTER_S = 300.0
"""A store that accepts other objects and has refused this one for so long is available: it refuses the key. A guess,
well above the length of an outage of one folder or of one server of many."""


class ArtifactUploader:
    """The store of one child. `worker` names the object that a probe writes."""

    def __init__(self, store: ArtifactStore, worker: str) -> None:
        self._store, self._worker = store, worker
        # A call may hang for longer than a cancel may wait, so it runs in a thread. An abandoned call is harmless: the
        # key is the attempt's own, and only `finish` publishes it.
        self._threads = ThreadPoolExecutor(thread_name_prefix="upload")
        self._log = logs.logger(__name__)

    def put(self, key: str, content: bytes, *, check: Callable[[], None]) -> None:
        """Upload one picture, however long the store is unavailable.

        `check` is called every second meanwhile and may raise to end the wait. Raises StoreRefused if the store accepts
        other objects but refuses this one.
        """
        began = time.monotonic()
        pauses = BACKOFF.pauses()
        is_unavailable = False
        while True:
            try:
                self._wait_for(self._threads.submit(self._store.put, key, content), check)
            except StoreUnavailable as error:
                if not is_unavailable:
                    self._log.warning("store_away", detail=error.detail)
                is_unavailable = True
            else:
                if is_unavailable:
                    self._log.info("store_back", seconds=round(time.monotonic() - began, 1))
                return
            if time.monotonic() - began > REFUSED_AFTER_S and self._accepts_other_objects(content, check):
                raise StoreRefused("the object store accepts other objects, but not the artifact of this job")
            self._pause(next(pauses), check)

    def _accepts_other_objects(self, content: bytes, check: Callable[[], None]) -> bool:
        """Whether an object of the same size is accepted: a full disk refuses every object."""
        try:
            self._wait_for(self._threads.submit(self._store.probe, self._worker, content), check)
        except StoreUnavailable:
            return False
        return True

    def _wait_for(self, call: Future[None], check: Callable[[], None]) -> None:
        while True:
            try:
                return call.result(timeout=CHECK_EVERY_S)
            except NotYet:
                check()

    def _pause(self, seconds: float, check: Callable[[], None]) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(left, CHECK_EVERY_S))
            check()
