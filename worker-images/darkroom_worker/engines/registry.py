"""What the worker asks of an engine, and the choice of one: the worker knows this module and nothing behind it.

`make_engine` gives the engine that a model file names. The worker calls `load` once, `run` for each attempt, and
`close` before its child ends. A run tells of every denoising step through `on_step`; what `on_step` raises ends the run
there and reaches the worker as it is. Everything else that goes wrong is an `EngineError`, by kind (design, section 4).
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
"""As many as submit draws for models that have the parameter."""

SEEDS = 2**53
"""Seeds are below this: every JSON reader keeps such integers exactly (RFC 8259, section 6)."""


class Interrupted(Exception):
    """Raised by `on_step` to stop the run at once: the job was cancelled, or its lease is lost."""


class EngineError(errors.DarkroomError):
    """A run, or a load, that failed; `kind` says what becomes of the job."""

    kind: ClassVar[ErrorKind]


class RejectedInput(EngineError, errors.InvalidInput):
    """The pipeline refuses the parameters. The same job will fail again."""

    kind = ErrorKind.INVALID_INPUT


class OutOfMemory(EngineError, errors.TemporaryError):
    """The device has not enough memory for this run. What the run held has been given back."""

    slug, title, kind = "out-of-memory", "The device ran out of memory", ErrorKind.OUT_OF_MEMORY


class TransientFailure(EngineError, errors.TemporaryError):
    """The run failed, and another attempt may not."""

    slug, title, kind = "transient", "The run failed", ErrorKind.TRANSIENT


class WorkerFault(EngineError, errors.TemporaryError):
    """The device is at fault, or the model does not load: no job can be run here."""

    slug, title, kind = "worker-fault", "The worker cannot run the model", ErrorKind.WORKER_FAULT


@dataclass(frozen=True)
class Picture:
    """One finished picture: a PNG file, its size in pixels, and the seed that gives it again."""

    png: bytes
    width: int
    height: int
    seed: int


@dataclass(frozen=True)
class EngineResult:
    """What a run gives. `record` says how to get the same pictures again; JSON takes it as it is."""

    pictures: tuple[Picture, ...]
    record: dict[str, Any]


class Engine(Protocol):
    """The code that develops a model's jobs. One job at a time; an engine belongs to the thread that loaded it."""

    def load(self) -> None:
        """Make ready: weights to the device. Raises `WorkerFault` when that cannot be done."""

    def run(self, parameters: Mapping[str, Any], *, job_id: str, on_step: OnStep, lean: bool = False) -> EngineResult:
        """Develop one job.

        `parameters` are validated and complete (`seed` is always there). `job_id` is for the logs: it never changes the
        pictures. `lean` is for a job that the device had not the memory for: a slower run that takes less of it, whose
        record says so (`lean`) where its pictures may differ; the next run is as any other. Raises `EngineError`, and
        whatever `on_step` raises; the engine is usable afterwards, except after a `WorkerFault`.
        """

    def close(self) -> None:
        """Give the device's memory back. Closing twice is the same as once."""


def make_engine(model: Model, *, metadata: bool = True) -> Engine:
    """The engine that `model` names, not loaded yet. Imports that engine's libraries, which may take seconds.

    Without `metadata` its pictures do not name the parameters that they were made with.
    Raises `SettingError` for a name that is no engine.
    """
    if model.engine == "diffusers":
        quiet_libraries()
        from darkroom_worker.engines.diffusers_engine import DiffusersEngine

        return DiffusersEngine(model, metadata=metadata)
    if model.engine == "instant":
        from darkroom_worker.engines.instant import InstantEngine

        return InstantEngine(model, metadata=metadata)
    raise errors.SettingError(f"model {model.name}: engine {model.engine!r} is none of diffusers, instant")


def quiet_libraries() -> None:
    """Tell the model libraries, which read it when they are first imported, to report to nobody and to chat less.

    Among what they chat are the ends of long prompts, which are nobody's but the user's.
    """
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def picture_seeds(parameters: Mapping[str, Any], *, job_id: str) -> tuple[int, ...]:
    """The seed of each picture of a job: the job's own, then the numbers after it.

    A model whose file has no parameter of that name gets one that follows from the job's id, so that each attempt at
    the job makes the same picture.
    """
    first: int = parameters.get("seed", int.from_bytes(sha256(job_id.encode()).digest()[:DERIVED_SEED_BYTES]))
    return tuple((first + number) % SEEDS for number in range(parameters.get("images", 1)))


def record_of(model: Model, parameters: Mapping[str, Any], pictures: tuple[Picture, ...]) -> dict[str, Any]:
    """The part of the reproducibility record that every engine has: what was asked for, and what came of it."""
    return {
        "model": model.name,
        "model_served": model.served,
        "engine": model.engine,
        "parameters": dict(parameters),
        "seeds": [picture.seed for picture in pictures],
        "sha256": [sha256(picture.png).hexdigest() for picture in pictures],
    }
