"""An engine without a model: tiny pictures of one colour, at once. For benchmarks and tests.

Its parameters are declared by a model file. `seconds` (default 0) is the duration of a run, spread over `steps`
(default 1; 0 reports no step) for each of `images`. `failure`, the name of an error kind, makes the run fail after its
first step.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from darkroom.catalogue.models import Model
from darkroom.jobs import ErrorKind
from PIL import Image

from darkroom_worker.engines.pictures import encode_png
from darkroom_worker.engines.registry import (
    EngineError,
    EngineResult,
    OnStep,
    OutOfMemory,
    Picture,
    RejectedInput,
    TransientFailure,
    WorkerFault,
    picture_seeds,
    record_of,
)

SIDE = 8
"""Pixels of a picture's side: small enough that making it takes a negligible part of a job's time."""

FAILURES: Mapping[str, type[EngineError]] = {
    ErrorKind.INVALID_INPUT: RejectedInput,
    ErrorKind.OUT_OF_MEMORY: OutOfMemory,
    ErrorKind.TRANSIENT: TransientFailure,
    ErrorKind.WORKER_FAULT: WorkerFault,
}


class InstantEngine:
    """An `Engine` whose duration and failures are parameters."""

    def __init__(self, model: Model, *, metadata: bool = True) -> None:
        self._model, self._metadata = model, metadata

    def load(self) -> None:
        """Do nothing: there are no weights."""

    def run(self, parameters: Mapping[str, Any], *, job_id: str, on_step: OnStep, lean: bool = False) -> EngineResult:
        seeds = picture_seeds(parameters, job_id=job_id)  # lean or not, they need hardly any memory
        total = len(seeds) * parameters.get("steps", 1)
        pause = parameters.get("seconds", 0) / max(total, 1)
        failure = parameters.get("failure")
        for step in range(1, total + 1):
            if pause:
                time.sleep(pause)
            on_step(step, total)
            if failure:
                raise FAILURES[failure](f"job {job_id} requested this failure")
        pictures = tuple(self._picture(parameters, seed) for seed in seeds)
        return EngineResult(pictures=pictures, record=record_of(self._model, parameters, pictures))

    def close(self) -> None:
        """Do nothing: no memory is held."""

    def _picture(self, parameters: Mapping[str, Any], seed: int) -> Picture:
        colour = sha256(str(seed).encode()).digest()
        image = Image.new("RGB", (SIDE, SIDE), (colour[0], colour[1], colour[2]))
        png = encode_png(image, model=self._model, seed=seed, parameters=parameters, metadata=self._metadata)
        return Picture(png=png, width=SIDE, height=SIDE, seed=seed)
