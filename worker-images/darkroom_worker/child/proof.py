"""Proof runs: whether this worker's device can still run a model, asked with jobs of the worker's own.

What a job provokes is charged to the job. Failures of several different jobs in a row may have a cause in the device
too, so the child runs the smallest job that a loaded model accepts: if that succeeds, the device is not at fault. A
child that replaces another one proves itself before it reports that it is up (`run.py`, `readiness.py`).

One model that works is enough: a model that fails while another one runs on the same device is at fault itself, and its
jobs are charged for it.
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
"""Jobs in a row whose attempts here failed, none completed between them, that cause a proof run. Different ones: a job
that fails at every attempt says more about itself. Three is a guess: two may be chance, and each costs an attempt."""

TRIES = 4
"""Runs of one model, of which one must succeed: an engine that fails now and then does not show a broken device."""

LIMIT_S = 120.0
"""How long a proof may take before the device counts as hung. The smallest job takes seconds."""

STEPS = "num_inference_steps"
"""What diffusers calls the steps of a run."""

_log = logs.logger(__name__)


class FailedJobs:
    """The jobs that failed here in a row."""

    def __init__(self) -> None:
        self._jobs: set[str] = set()

    def completed(self) -> None:
        """A job was completed, or a proof succeeded: the device works."""
        self._jobs.clear()

    def failed(self, job_id: str) -> bool:
        """Note the job whose attempt failed. Whether a proof run is due."""
        self._jobs.add(job_id)
        return len(self._jobs) >= MAX_FAILED_JOBS


def self_test_input(model: Model) -> dict[str, object]:
    """The input of the smallest job that the model accepts: one picture of the smallest size, in as few steps."""
    needed = {name: _any_value(each) for name, each in model.parameters.items() if each.required}
    smallest = {name: each.minimum for name, each in model.parameters.items() if _counts_work(each)}
    whole: dict[str, Value] = {name: max(int(value), 1) for name, value in smallest.items() if value is not None}
    try:
        return models.validate(model, needed | whole)
    except InvalidInput:  # these do not go together
        return models.validate(model, needed)


def passes_self_test(
    engines: Mapping[str, tuple[Model, Engine]], *, suspects: Collection[str] = (), give_up: Callable[[], None]
) -> bool:
    """Whether one of the models runs. Models that others say are at fault, `suspects`, are tried last.

    `give_up` is called from another thread when the device hangs.
    """
    watchdog = threading.Timer(LIMIT_S, give_up)
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
            engine.run(self_test_input(model), job_id=f"proof-{number}", on_step=lambda _step, _steps: None)
        except WorkerFault as error:  # the process can run nothing any more
            _log.warning("proof_failed", model=model.name, kind=error.kind, detail=error.detail)
            return False
        except Exception as error:
            _log.warning("proof_failed", model=model.name, run=number, of=TRIES, detail=str(error))
        else:
            _log.info("proof_succeeded", model=model.name, run=number)
            return True
    return False


def _counts_work(parameter: Parameter) -> bool:
    """Whether more of it is more work for the device."""
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
