"""Leader election: one operator acts at a time, the holder of a coordination Lease.

kopf's own peering pauses all peers of equal priority, and the successor of one that died for a minute; so this is the
algorithm of client-go (https://pkg.go.dev/k8s.io/client-go/tools/leaderelection): the holder renews the Lease, and a
candidate that has observed it unchanged for its whole duration, by the candidate's own clock, acquires it. Clocks of
different machines are never compared.
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import Any

from darkroom.errors import DarkroomError
from darkroom.logs import logger

from darkroom_operator.kubernetes.client import LEASE, Cluster, Conflict, Object

LEASE_NAME = "darkroom-operator"

_log = logger(__name__)


class Leadership:
    """The candidacy of this process. `run` must run as long as the process acts."""

    def __init__(self, cluster: Cluster, *, identity: str, lease_s: float) -> None:
        self._cluster = cluster
        self.identity = identity
        self._lease_s = lease_s
        self._held_until = 0.0
        self._seen: tuple[Any, float] | None = None  # the Lease of another holder, and since when it is unchanged
        self.acquired = asyncio.Event()
        self.lost = asyncio.Event()

    @property
    def held(self) -> bool:
        """Whether this process may act now. While the API server is unavailable, it may until the Lease expires."""
        return time.monotonic() < self._held_until and not self.lost.is_set()

    async def run(self) -> None:
        """Acquire the Lease and renew it, until cancelled or until another process holds it."""
        while not self.lost.is_set():
            try:
                await self._try()
            except DarkroomError as error:
                _log.warning("lease_unknown", error=error.detail)
            await asyncio.sleep(self._lease_s / 3 if self.held else self._lease_s / 10)

    async def release(self) -> None:
        """Release the Lease, so that another process can acquire it at once."""
        if not self.held:
            return
        self._held_until = 0.0
        try:
            lease = await self._cluster.get(LEASE, LEASE_NAME)
            if lease is not None and lease["spec"].get("holderIdentity") == self.identity:
                await self._cluster.replace(self._body(lease, holder=""))
        except DarkroomError as error:
            _log.warning("lease_not_released", error=error.detail)

    async def _try(self) -> None:
        requested = time.monotonic()
        lease = await self._cluster.get(LEASE, LEASE_NAME)
        try:
            if lease is None:
                await self._cluster.create(self._body(None, holder=self.identity))
            elif self._may_acquire(lease, requested):
                await self._cluster.replace(self._body(lease, holder=self.identity))
            else:
                return
        except Conflict:  # another process wrote it first: try again
            return
        self._held_until = requested + self._lease_s
        if not self.acquired.is_set():
            _log.info("lease_acquired", identity=self.identity)
            self.acquired.set()

    def _may_acquire(self, lease: Object, now: float) -> bool:
        spec = lease.get("spec") or {}
        holder = spec.get("holderIdentity")
        if holder in {self.identity, "", None}:
            return True
        if self.acquired.is_set():
            _log.error("lease_lost", to=holder)
            self.lost.set()
            return False
        if self._seen is None or self._seen[0] != spec:
            self._seen = (spec, now)
        duration_s: float = spec.get("leaseDurationSeconds", self._lease_s)
        return now - self._seen[1] > duration_s

    def _body(self, lease: Object | None, *, holder: str) -> Object:
        now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        before = (lease or {}).get("spec") or {}
        changed = before.get("holderIdentity") != holder
        spec = {
            "holderIdentity": holder,
            "leaseDurationSeconds": max(1, round(self._lease_s)),
            "acquireTime": now if changed else before.get("acquireTime", now),
            "renewTime": now,
            "leaseTransitions": before.get("leaseTransitions", 0) + (1 if changed and lease is not None else 0),
        }
        metadata: dict[str, Any] = {"name": LEASE_NAME, "namespace": self._cluster.namespace}
        if lease is not None:
            metadata["resourceVersion"] = lease["metadata"]["resourceVersion"]
        return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec}
