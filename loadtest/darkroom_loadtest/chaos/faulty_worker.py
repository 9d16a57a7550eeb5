"""`python -m darkroom_loadtest.chaos.faulty_worker`: darkroom's worker with fault injection.

It patches the worker in memory, in the parent and in the child, which imports this module again when it is spawned.
Every run of the engine makes a different picture, like GPUs of different kinds, so that an overwritten artifact is
detected. Prompts make jobs fail (`PoisonKind`). The lease can be shortened for short runs, which darkroom's own worker
does not support.
"""

from __future__ import annotations

import functools
import os
import secrets
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any

from darkroom_loadtest.chaos.faults import FaultPoint, PoisonKind, pass_point
from darkroom_loadtest.chaos.protections import VARIABLE, Protection, remove_from_worker

LEASE_VARIABLE = "CHAOS_LEASE_MS"

SEED_BITS = 53


def install(variables: Mapping[str, str]) -> None:
    """Patch this process before the worker's program is created."""
    _shorten_lease(int(variables[LEASE_VARIABLE]))
    if variables[VARIABLE]:
        remove_from_worker(Protection(variables[VARIABLE]))
    _mark_parent()
    _mark_child()


def _shorten_lease(lease_ms: int) -> None:
    from darkroom.ledger import calls
    from darkroom_worker.parent import supervisor

    calls.claim = functools.partial(calls.claim, lease_ms=lease_ms)
    calls.renew = functools.partial(calls.renew, lease_ms=lease_ms)
    supervisor.RENEW_EVERY_S = lease_ms / 3000
    supervisor.CHECK_EVERY_S = min(supervisor.CHECK_EVERY_S, lease_ms / 6000)


def _mark_parent() -> None:
    from darkroom.jobs import is_job_id
    from darkroom_worker.parent.attempt import Attempt
    from kombu.transport.virtual import Transport

    deliver, acknowledge = Transport._deliver, Attempt.acknowledge

    def marked_deliver(self: Any, message: Any, queue: str) -> None:
        job_id = str(message["properties"]["delivery_tag"]).partition(":")[0]
        if is_job_id(job_id):
            pass_point(FaultPoint.POPPED, job_id)
        deliver(self, message, queue)  # type: ignore[no-untyped-call]

    def marked_acknowledge(self: Attempt) -> None:
        pass_point(FaultPoint.ACKNOWLEDGING, self.id)
        acknowledge(self)

    Transport._deliver = marked_deliver  # type: ignore[method-assign]
    Attempt.acknowledge = marked_acknowledge  # type: ignore[method-assign]


def _mark_child() -> None:
    from darkroom.artifacts import ArtifactStore
    from darkroom.ledger.client import Ledger
    from darkroom_worker.child.runner import Runner
    from darkroom_worker.engines.instant import InstantEngine
    from darkroom_worker.engines.registry import EngineResult, Picture

    picture, put, run = InstantEngine._picture, ArtifactStore.put, Ledger.run
    run_engine = InstantEngine.run

    def other_picture(self: InstantEngine, parameters: Mapping[str, Any], seed: int) -> Picture:
        return picture(self, parameters, seed ^ secrets.randbits(SEED_BITS))

    def harmed_run(self: InstantEngine, parameters: Mapping[str, Any], **more: Any) -> EngineResult:
        if parameters["prompt"] == PoisonKind.RAISE:
            raise RuntimeError("the job's prompt requests this error")
        if parameters["prompt"] == PoisonKind.KILL_CHILD:
            os.kill(os.getpid(), signal.SIGKILL)
        return run_engine(self, parameters, **more)

    def marked_put(self: ArtifactStore, key: str, content: bytes) -> None:
        put(self, key, content)
        pass_point(FaultPoint.STORED, key.split("/")[1])

    def marked_run(self: Ledger, call: Any) -> Any:
        answer = run(self, call)
        if call.script == "finish":
            pass_point(FaultPoint.FINISHED, dict(zip(call.args[::2], call.args[1::2], strict=True))["job"])
        return answer

    def before(method: Callable[..., Any], point: FaultPoint, job_of: Callable[[Any], str]) -> Callable[..., Any]:
        def marked(self: Runner, job: Any, **more: Any) -> Any:
            pass_point(point, job_of(job))
            return method(self, job, **more)

        return marked

    InstantEngine.run = harmed_run  # type: ignore[method-assign]
    InstantEngine._picture = other_picture  # type: ignore[method-assign]
    ArtifactStore.put = marked_put  # type: ignore[method-assign]
    Ledger.run = marked_run  # type: ignore[method-assign]
    Runner.run_job = before(Runner.run_job, FaultPoint.DELIVERED, str)  # type: ignore[method-assign]
    Runner._completed = before(  # type: ignore[method-assign]
        Runner._completed, FaultPoint.DEVELOPED, lambda job: str(job.id)
    )


if __name__ in {"__main__", "__mp_main__"}:  # the latter is the module's name in a spawned child
    install(os.environ)

if __name__ == "__main__":
    from darkroom_worker.__main__ import main

    sys.exit(main())
