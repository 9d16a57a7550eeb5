"""Self-tests: jobs of the worker's own that show whether its device can still run a model.

What a job causes counts as a failed attempt of the job. Failures of several different jobs in a row may also be caused
by the device, so the child runs the smallest job that a loaded model accepts: if that succeeds, the device works. A
child that replaces another one tests itself before it reports that it is up (`child/runner.py`, `parent/pool.py`).

One model that works is enough: if another model fails on the same device, the fault is that model's, and it counts
against its jobs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping

from darkroom import logs
from darkroom.catalogue import models
from darkroom.catalogue.models import Model
from darkroom.catalogue.parameters import SIDES, Parameter, ParameterType, Value
from darkroom.errors import InvalidInput

from darkroom_worker.engines.registry import Engine, WorkerFault

MAX_FAILED_JOBS = 3
"""Consecutive failed attempts of different jobs that cause a self-test. A job that fails at every attempt is no
evidence about the device. Three is a guess: two may be chance, and each costs an attempt."""

TRIES = 4
"""Runs of one model, of which one must succeed: an engine that fails sometimes is no evidence of a broken device."""

TIMEOUT_S = 120.0
"""How long a self-test may take before the device counts as hung. The smallest job takes seconds."""

STEPS = "num_inference_steps"
"""The name of the steps of a run in diffusers."""

_log = logs.logger(__name__)


class FailedJobs:
    """The jobs that failed in this process since the last success."""

    def __init__(self) -> None:
        self._jobs: set[str] = set()

    def completed(self) -> None:
        """A job completed, or a self-test passed: the device works."""
        self._jobs.clear()

    def failed(self, job_id: str) -> bool:
        """Record a failed attempt. Returns whether a self-test is due."""
        self._jobs.add(job_id)
        return len(self._jobs) >= MAX_FAILED_JOBS


def self_test_input(model: Model) -> dict[str, object]:
    """The input of the smallest job that the model accepts: one picture of the smallest size, in as few steps."""
    needed = {name: _any_value(each) for name, each in model.parameters.items() if each.required}
    smallest = {name: each.minimum for name, each in model.parameters.items() if _scales_work(each)}
    whole: dict[str, Value] = {name: max(int(value), 1) for name, value in smallest.items() if value is not None}
    try:
        return models.validate(model, needed | whole)
    except InvalidInput:  # the smallest values are not valid together
        return models.validate(model, needed)


def passes_self_test(
    engines: Mapping[str, tuple[Model, Engine]], *, suspects: Collection[str] = (), on_timeout: Callable[[], None]
) -> bool:
    """Whether one of the models runs. Models that ended an earlier child, `suspects`, are tried last.

    `on_timeout` is called from another thread if the device hangs.
    """
    watchdog = threading.Timer(TIMEOUT_S, on_timeout)
    watchdog.daemon = True
    watchdog.start()
    try:
        in_order = sorted(engines, key=lambda name: (name in suspects, name))
        return any(_runs(*engines[name]) for name in in_order)
    finally:
        watchdog.cancel()


def _runs(model: Model, engine: Engine) -> bool:
    for number in range(1, TRIES + 1):
        try:
            engine.run(self_test_input(model), job_id=f"self-test-{number}", on_step=lambda _step, _steps: None)
        except WorkerFault as error:  # the process cannot run anything any more
            _log.warning("self_test_failed", model=model.name, kind=error.kind, detail=error.detail)
            return False
        except Exception as error:
            _log.warning("self_test_failed", model=model.name, run=number, of=TRIES, detail=str(error))
        else:
            _log.info("self_test_passed", model=model.name, run=number)
            return True
    return False


def _scales_work(parameter: Parameter) -> bool:
    """Whether a larger value is more work for the device."""
    return parameter.type is ParameterType.INTEGER and (
        parameter.name in {*SIDES, "steps", "images"} or parameter.argument == STEPS
    )


def _any_value(parameter: Parameter) -> Value:
    if parameter.default is not None:
        return parameter.default
    if parameter.choices:
        return parameter.choices[0]
    match parameter.type:
        case ParameterType.STRING:
            return "x" * max(parameter.min_length or 0, 1)
        case ParameterType.BOOLEAN:
            return False
        case ParameterType.INTEGER | ParameterType.NUMBER:
            return parameter.minimum or parameter.maximum or 0
    raise AssertionError(parameter.type)
