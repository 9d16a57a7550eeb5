"""Who acts: one operator at a time, by a coordination Lease.

kopf's own peering pauses all peers of equal priority, and the successor of one that died for a minute; so this is the
scheme of client-go (https://pkg.go.dev/k8s.io/client-go/tools/leaderelection): whoever holds the Lease renews it, and
who saw it unchanged for its whole duration, by his own clock, takes it over. Clocks of different machines are never
compared.
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
    """This process' part in the election. `run` is its heart and must run beside everything else."""

    def __init__(self, cluster: Cluster, *, identity: str, lease_s: float) -> None:
        self._cluster = cluster
        self.identity = identity
        self._lease_s = lease_s
        self._held_until = 0.0
        self._seen: tuple[Any, float] | None = None  # the Lease as another holds it, and since when it is so
        self.acquired = asyncio.Event()
        self.lost = asyncio.Event()

    @property
    def held(self) -> bool:
        """Whether this process may act now. While the API server is away, it may no longer once the Lease is over."""
        return time.monotonic() < self._held_until and not self.lost.is_set()

    async def run(self) -> None:
        """Get the Lease and keep it, until cancelled or until another has it."""
        while not self.lost.is_set():
            try:
                await self._try()
            except DarkroomError as error:
                _log.warning("lease_unknown", error=error.detail)
            await asyncio.sleep(self._lease_s / 3 if self.held else self._lease_s / 10)

    async def release(self) -> None:
        """Let the next one have it at once."""
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
        asked = time.monotonic()
        lease = await self._cluster.get(LEASE, LEASE_NAME)
        try:
            if lease is None:
                await self._cluster.create(self._body(None, holder=self.identity))
            elif self._may_take(lease, asked):
                await self._cluster.replace(self._body(lease, holder=self.identity))
            else:
                return
        except Conflict:  # somebody was faster: look again
            return
        self._held_until = asked + self._lease_s
        if not self.acquired.is_set():
            _log.info("lease_acquired", identity=self.identity)
            self.acquired.set()

    def _may_take(self, lease: Object, now: float) -> bool:
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
