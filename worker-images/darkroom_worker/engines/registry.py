"""The interface of an engine, and the choice of one: the worker imports this module and no engine directly.

`make_engine` creates the engine that a model file names. The worker calls `load` once, `run` for each attempt, and
`close` before its child exits. A run calls `on_step` after every denoising step; an exception of `on_step` ends the run
and reaches the worker unchanged. Every other failure is an `EngineError` with its kind.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, ClassVar, Protocol

from darkroom import errors
from darkroom.catalogue.models import Model
from darkroom.jobs import ErrorKind

OnStep = Callable[[int, int], None]
"""Called with (steps done, steps in all) after each denoising step of a run, all its pictures counted together."""

DERIVED_SEED_BYTES = 4
"""The size of the seeds that submit draws for models that have the parameter."""

SEEDS = 2**53
"""Seeds are below this: every JSON parser represents such integers exactly (RFC 8259, section 6)."""


class Interrupted(Exception):
    """Raised by `on_step` to stop the run at once: the job was cancelled, or its lease is lost."""


class EngineError(errors.DarkroomError):
    """A run or a load failed. `kind` decides whether the job fails, is retried or is released."""

    kind: ClassVar[ErrorKind]


class RejectedInput(EngineError, errors.InvalidInput):
    """The pipeline rejects the parameters. The same job would fail again."""

    kind = ErrorKind.INVALID_INPUT


class OutOfMemory(EngineError, errors.TemporaryError):
    """The device does not have enough memory for this run. The memory of the run has been freed."""

    slug, title, kind = "out-of-memory", "The device ran out of memory", ErrorKind.OUT_OF_MEMORY


class TransientFailure(EngineError, errors.TemporaryError):
    """The run failed, and another attempt may succeed."""

    slug, title, kind = "transient", "The run failed", ErrorKind.TRANSIENT


class WorkerFault(EngineError, errors.TemporaryError):
    """The device is faulty, or the model does not load: no job can run here."""

    slug, title, kind = "worker-fault", "The worker cannot run the model", ErrorKind.WORKER_FAULT


@dataclass(frozen=True)
class Picture:
    """One finished picture: a PNG file, its size in pixels, and the seed that reproduces it."""

    png: bytes
    width: int
    height: int
    seed: int


@dataclass(frozen=True)
class EngineResult:
    """The result of a run. `record` is the reproducibility record, serialisable as JSON."""

    pictures: tuple[Picture, ...]
    record: dict[str, Any]


class Engine(Protocol):
    """The code that runs a model's jobs, one at a time. An engine is used only in the thread that loaded it."""

    def load(self) -> None:
        """Load the weights to the device. Raises `WorkerFault` if that fails."""

    def run(self, parameters: Mapping[str, Any], *, job_id: str, on_step: OnStep, lean: bool = False) -> EngineResult:
        """Run one job.

        `parameters` are validated and complete. `job_id` is for the logs and for models without a `seed` parameter.
        With `lean` the run is slower and needs less memory, after the device ran out of it; the record has `lean` if
        the pictures may differ. Raises `EngineError`, and what `on_step` raises. The engine is usable afterwards,
        except after a `WorkerFault`.
        """

    def close(self) -> None:
        """Free the memory of the device. Idempotent."""


def make_engine(model: Model, *, metadata: bool = True) -> Engine:
    """Create the engine that `model` names, not loaded yet. Imports that engine's libraries, which may take seconds.

    Without `metadata` its pictures do not contain the parameters that they were made with. Raises `SettingError` for an
    unknown engine.
    """
    if model.engine == "diffusers":
        quiet_libraries()
        from darkroom_worker.engines.diffusers_engine import DiffusersEngine

        return DiffusersEngine(model, metadata=metadata)
    if model.engine == "instant":
        from darkroom_worker.engines.instant import InstantEngine

        return InstantEngine(model, metadata=metadata)
    raise errors.SettingError(f"model {model.name}: unknown engine {model.engine!r} (known: diffusers, instant)")


def quiet_libraries() -> None:
    """Disable the telemetry of the model libraries and reduce their logs. To be called before they are imported.

    Their logs contain the ends of long prompts, which are private to the user.
    """
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def picture_seeds(parameters: Mapping[str, Any], *, job_id: str) -> tuple[int, ...]:
    """The seed of each picture of a job: the job's seed and the following numbers.

    For a model without the parameter `seed` it is derived from the job's id, so that each attempt at the job makes the
    same picture.
    """
    first: int = parameters.get("seed", int.from_bytes(sha256(job_id.encode()).digest()[:DERIVED_SEED_BYTES]))
    return tuple((first + number) % SEEDS for number in range(parameters.get("images", 1)))


def record_of(model: Model, parameters: Mapping[str, Any], pictures: tuple[Picture, ...]) -> dict[str, Any]:
    """The part of the reproducibility record that every engine writes: model, parameters, seeds and digests."""
    return {
        "model": model.name,
        "model_served": model.served,
        "engine": model.engine,
        "parameters": dict(parameters),
        "seeds": [picture.seed for picture in pictures],
        "sha256": [sha256(picture.png).hexdigest() for picture in pictures],
    }
