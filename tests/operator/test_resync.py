"""The resync, and the detection of stalled watches, which the liveness probe reports."""

from __future__ import annotations

from typing import cast

from darkroom_operator.control import ControlLoop
from darkroom_operator.handlers import Handlers
from darkroom_operator.kubernetes.client import POD, Cluster, Kind, Object
from darkroom_operator.kubernetes.election import Leadership
from darkroom_operator.kubernetes.resync import Resync
from darkroom_operator.kubernetes.state import PODS, ClusterState

from tests.operator.test_state import pod_resource


class ListedPods:
    """A cluster with these pods and no other objects."""

    def __init__(self) -> None:
        self.pods: list[Object] = []

    async def listing(self, kind: Kind, *, label: str | None = None) -> tuple[list[Object], str]:
        assert label is not None or kind is not POD
        return (self.pods if kind is POD else []), "1000"


class NoControl:
    def wake(self, pool: str) -> None:
        pass

    async def withdraw_orphans(self) -> None:
        pass


def resync_of(listed: ListedPods, state: ClusterState) -> Resync:
    cluster, control = cast("Cluster", listed), cast("ControlLoop", NoControl())
    handlers = Handlers(state, control, cast("Leadership", None))
    return Resync(cluster, state, control, handlers)


def names(state: ClusterState) -> list[str]:
    return [name for pool in state.pools.values() for name in pool.pods]


async def test_the_resync_finds_changes_that_no_watch_delivered() -> None:
    state, listed = ClusterState(), ListedPods()
    listed.pods = [pod_resource()]
    resync = resync_of(listed, state)
    await resync.read()
    assert names(state) == ["darkroom-flux-1"]
    listed.pods = []
    await resync.read()
    assert names(state) == []


async def test_a_watch_that_delivers_nothing_until_the_next_resync_has_stalled() -> None:
    state, listed = ClusterState(), ListedPods()
    resync = resync_of(listed, state)
    listed.pods = [pod_resource()]
    await resync.read()
    assert resync.stalled == frozenset()
    await resync.read()
    assert resync.stalled == {PODS}
    state.watch_received(PODS)
    await resync.read()
    assert resync.stalled == frozenset()


async def test_a_watch_without_events_in_an_unchanged_cluster_has_not_stalled() -> None:
    state, listed = ClusterState(), ListedPods()
    listed.pods = [pod_resource()]
    resync = resync_of(listed, state)
    await resync.read(first=True)
    for _ in range(3):
        await resync.read()
    assert resync.stalled == frozenset()


async def test_a_change_that_the_watch_may_still_deliver_is_no_sign_of_a_stall() -> None:
    state, listed = ClusterState(), ListedPods()
    resync = resync_of(listed, state)
    state.watch_received(PODS)
    listed.pods = [pod_resource()]
    await resync.read()
    await resync.read()
    assert resync.stalled == frozenset()
