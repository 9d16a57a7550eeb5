"""A watch that says nothing although something happened is deaf, and the probe of liveness hears of it."""

from __future__ import annotations

from typing import cast

from darkroom_operator.control import ControlLoop
from darkroom_operator.handlers import Handlers
from darkroom_operator.kubernetes.client import POD, Cluster, Kind, Object
from darkroom_operator.kubernetes.election import Leadership
from darkroom_operator.kubernetes.resync import Resync
from darkroom_operator.kubernetes.world import PODS, ClusterState

from tests.operator.test_world import pod_resource


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


def resync_of(listed: ListedPods, world: ClusterState) -> Resync:
    cluster, control = cast("Cluster", listed), cast("ControlLoop", NobodyToWake())
    handlers = Handlers(world, control, cast("Leadership", None))
    return Resync(cluster, world, control, handlers)


def names(world: ClusterState) -> list[str]:
    return [name for standing in world.standings.values() for name in standing.pods]


async def test_what_no_watch_told_is_found() -> None:
    world, listed = ClusterState(), ListedPods()
    listed.pods = [pod_resource()]
    resync = resync_of(listed, world)
    await resync.read()
    assert names(world) == ["darkroom-flux-1"]
    listed.pods = []
    await resync.read()
    assert names(world) == []


async def test_a_watch_that_is_silent_until_the_next_resync_is_deaf() -> None:
    world, listed = ClusterState(), ListedPods()
    resync = resync_of(listed, world)
    listed.pods = [pod_resource()]
    await resync.read()
    assert resync.deaf == frozenset()
    await resync.read()
    assert resync.deaf == {PODS}
    world.hear(PODS)
    await resync.read()
    assert resync.deaf == frozenset()


async def test_a_quiet_watch_of_a_quiet_world_is_not_deaf() -> None:
    world, listed = ClusterState(), ListedPods()
    listed.pods = [pod_resource()]
    resync = resync_of(listed, world)
    await resync.read(first=True)
    for _ in range(3):
        await resync.read()
    assert resync.deaf == frozenset()


async def test_a_change_on_its_way_to_the_watch_is_no_sign_of_deafness() -> None:
    world, listed = ClusterState(), ListedPods()
    resync = resync_of(listed, world)
    world.hear(PODS)
    listed.pods = [pod_resource()]
    await resync.read()
    await resync.read()
    assert resync.deaf == frozenset()
