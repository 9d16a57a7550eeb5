"""A watch that says nothing although something happened is stalled, and the probe of liveness hears of it."""

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
    """A cluster in which there are these pods and nothing else."""

    def __init__(self) -> None:
        self.pods: list[Object] = []

    async def listing(self, kind: Kind, *, label: str | None = None) -> tuple[list[Object], str]:
        assert label is not None or kind is not POD
        return (self.pods if kind is POD else []), "1000"


class NobodyToWake:
    def wake(self, pool: str) -> None:
        pass

    async def withdraw_orphans(self) -> None:
        pass


def resync_of(listed: ListedPods, state: ClusterState) -> Resync:
    cluster, control = cast("Cluster", listed), cast("ControlLoop", NobodyToWake())
    handlers = Handlers(state, control, cast("Leadership", None))
    return Resync(cluster, state, control, handlers)


def names(state: ClusterState) -> list[str]:
    return [name for pool in state.pools.values() for name in pool.pods]


async def test_what_no_watch_told_is_found() -> None:
    state, listed = ClusterState(), ListedPods()
    listed.pods = [pod_resource()]
    resync = resync_of(listed, state)
    await resync.read()
    assert names(state) == ["darkroom-flux-1"]
    listed.pods = []
    await resync.read()
    assert names(state) == []


async def test_a_watch_that_is_silent_until_the_next_resync_is_deaf() -> None:
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


async def test_a_quiet_watch_of_a_quiet_cluster_has_not_stalled() -> None:
    state, listed = ClusterState(), ListedPods()
    listed.pods = [pod_resource()]
    resync = resync_of(listed, state)
    await resync.read(first=True)
    for _ in range(3):
        await resync.read()
    assert resync.stalled == frozenset()


async def test_a_change_on_its_way_to_the_watch_is_no_sign_of_deafness() -> None:
    state, listed = ClusterState(), ListedPods()
    resync = resync_of(listed, state)
    state.watch_received(PODS)
    listed.pods = [pod_resource()]
    await resync.read()
    await resync.read()
    assert resync.stalled == frozenset()
