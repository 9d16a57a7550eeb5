"""The engine for diffusers: text-to-image pipelines on a GPU, or on the CPU if there is none.

`make_engine` imports this module, and with it torch, only for a model that names it. `load` builds the pipeline of the
model file, from a folder or from the hub. `run` makes a job's pictures one after another: a picture of a batch is not
byte for byte the picture that is made alone.

A parameter is passed to the pipeline as the keyword that the model file names as its `argument`. The others are
interpreted here: `seed` and `images`; `scheduler`, one of `SCHEDULERS`; `safety_checker`, false for a run without it;
`cache_threshold`, above zero for the first-block cache. `enable_base64_output` concerns the delivery.
"""

from __future__ import annotations

import gc
import inspect
import platform
import re
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from darkroom.catalogue.models import Model, Parameter
from darkroom.logs import logger
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
from darkroom_worker.engines.weights import fingerprint

log = logger(__name__)

OWN_PARAMETERS = frozenset({"seed", "images", "scheduler", "safety_checker", "cache_threshold", "enable_base64_output"})
"""Parameters that are never passed to the pipeline."""

NEEDED_ARGUMENTS = frozenset({"prompt", "num_inference_steps", "generator", "output_type"})
"""The arguments that a text-to-image pipeline must have."""

SCHEDULERS: Mapping[str, str] = {
    "ddim": "DDIMScheduler",
    "dpmpp-2m": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler-ancestral": "EulerAncestralDiscreteScheduler",
    "flow-match-euler": "FlowMatchEulerDiscreteScheduler",
    "flow-match-lcm": "FlowMatchLCMScheduler",
    "heun": "HeunDiscreteScheduler",
    "lcm": "LCMScheduler",
    "pndm": "PNDMScheduler",
    "unipc": "UniPCMultistepScheduler",
}
"""Scheduler names of model files, and their classes in diffusers."""

OTHER_STREAM = 0x9E3779B9
"""Mixed into the seed of torch's global generator, from which some schedulers draw (FlowMatchLCM under Flux): their
noise is reproducible too, and differs from the picture's first noise. Any number would do; this one is the golden
ratio's."""

LIBRARY_FAILURES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""The exceptions of torch and diffusers when a run fails. Not all of `Exception`: Celery raises its soft time limit
during a run, and that is no failure of the run."""

OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|CUBLAS_STATUS_ALLOC_FAILED", re.IGNORECASE)
DEVICE_FAULT = re.compile(
    r"CUDA (driver |unknown )?error|No CUDA GPUs|cuDNN|CUBLAS_STATUS|NVML|device-side assert", re.IGNORECASE
)
"""The messages of torch for failures without an exception class of their own."""

HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")


class DiffusersEngine:
    """An `Engine` around one diffusers pipeline."""

    def __init__(self, model: Model, *, metadata: bool = True) -> None:
        self._model, self._metadata = model, metadata
        self._pipeline: Any = None
        self._origin: dict[str, Any] = {}
        self._call: Mapping[str, inspect.Parameter] = {}
        self._has_warned = False

    def load(self) -> None:
        try:
            pipeline_class = _pipeline_class(self._model.pipeline)
            self._call = inspect.signature(pipeline_class.__call__).parameters
            if missing := NEEDED_ARGUMENTS - self._call.keys():
                raise ValueError(f"{self._model.pipeline} lacks the arguments {', '.join(sorted(missing))}")
            folder, self._origin = _fetched(pipeline_class, self._model)
            diffusers.utils.logging.disable_progress_bar()
            transformers.utils.logging.disable_progress_bar()
            pipeline = pipeline_class.from_pretrained(
                folder, dtype=self._dtype, use_safetensors=True, local_files_only=True
            )
            pipeline.set_progress_bar_config(disable=True)
            self._pipeline = pipeline.to(self._device)
            self._check_parameters()
        except Exception as error:
            self.close()
            raise WorkerFault(f"model {self._model.name} does not load from {self._model.source}: {error}") from error
        self._configure_device()

    def run(self, parameters: Mapping[str, Any], *, job_id: str, on_step: OnStep, lean: bool = False) -> EngineResult:
        if not lean:
            return self._run(parameters, job_id=job_id, on_step=on_step)
        with self._with_less_memory():
            run = self._run(parameters, job_id=job_id, on_step=on_step)
        return EngineResult(pictures=run.pictures, record={**run.record, "lean": True})

    def _run(self, parameters: Mapping[str, Any], *, job_id: str, on_step: OnStep) -> EngineResult:
        seeds = picture_seeds(parameters, job_id=job_id)
        arguments = self._arguments(parameters)
        progress = _Progress(on_step, pictures=len(seeds), steps=self._steps(arguments))
        try:
            with self._configured_for(parameters):
                made = [self._make_picture(parameters, arguments, seed, progress) for seed in seeds]
                scheduler = type(self._pipeline.scheduler).__name__
        except LIBRARY_FAILURES as error:
            if error is progress.raised:
                raise
            failure = _failure(error, has_started=progress.has_started)
            log.warning("run_failed", job=job_id, kind=failure.kind, exc_info=True)
            traceback.clear_frames(error.__traceback__)
        else:
            self._warn_without_steps(progress)
            pictures = tuple(picture for picture, _ in made)
            flagged = [flag for _, flag in made]
            return EngineResult(pictures=pictures, record=self._record(parameters, pictures, scheduler, flagged))
        # Only here, after the exception and its frames are gone, no reference to the run's tensors is left.
        self._free_memory()
        raise failure

    def close(self) -> None:
        self._pipeline = None
        self._free_memory()

    @property
    def _device(self) -> str:
        return "cuda" if torch.cuda.is_available() else "cpu"

    @property
    def _dtype(self) -> torch.dtype:
        """The model's dtype on a GPU. CPUs are slow at half precision, or do not support it."""
        if self._device == "cpu":
            return torch.float32
        dtype: torch.dtype = getattr(torch, self._model.dtype)
        return dtype

    def _configure_device(self) -> None:
        """Make the same seed give the same bytes, and use one thread for a stand-in's small tensors.

        Two threads took several times as long on a busy machine, waiting for each other. For real weights torch or
        `OMP_NUM_THREADS` decides.
        """
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
        if self._device == "cpu" and self._model.served_as is not None:
            torch.set_num_threads(1)

    def _check_parameters(self) -> None:
        """Raise ValueError for a parameter without an argument of the pipeline, and for an unknown scheduler."""
        for parameter in self._model.parameters.values():
            if parameter.name not in OWN_PARAMETERS and _argument(parameter) not in self._call:
                raise ValueError(f"{self._model.pipeline} has no argument for the parameter {parameter.name}")
            if parameter.name == "scheduler":
                for name in parameter.choices:
                    _scheduler(str(name), like=self._pipeline.scheduler)

    def _arguments(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """The keyword arguments of the pipeline."""
        known = self._model.parameters
        return {
            _argument(known[name]): value
            for name, value in parameters.items()
            if name not in OWN_PARAMETERS and value is not None
        }

    def _steps(self, arguments: Mapping[str, Any]) -> int:
        steps: int = arguments.get("num_inference_steps", self._call["num_inference_steps"].default)
        return steps

    @contextmanager
    def _configured_for(self, parameters: Mapping[str, Any]) -> Iterator[None]:
        """Configure the pipeline for one job, and restore it afterwards.

        Each job has its own scheduler: a scheduler is stateful, and an interrupted run leaves its state behind.
        """
        pipeline = self._pipeline
        original = {"scheduler": pipeline.scheduler}
        pipeline.scheduler = _scheduler(parameters.get("scheduler"), like=pipeline.scheduler)
        if parameters.get("safety_checker") is False and getattr(pipeline, "safety_checker", None) is not None:
            original["safety_checker"] = pipeline.safety_checker
            pipeline.safety_checker = None
        try:
            yield
        finally:
            for name, component in original.items():
                setattr(pipeline, name, component)

    @contextmanager
    def _with_less_memory(self) -> Iterator[None]:
        """Use less of the device's memory inside the block.

        The picture is decoded in tiles, which may be visible in large ones, and only the active part of the pipeline is
        on the GPU. Pictures are made one by one anyway, and torch's attention needs no slicing. Raises WorkerFault if
        the parts cannot be moved back.
        """
        pipeline = self._pipeline
        vae: Any = getattr(pipeline, "vae", None)
        tiled = getattr(vae, "use_tiling", None)  # None: not supported
        offloaded = self._device == "cuda"
        if tiled is False:
            vae.enable_tiling()
        try:
            if offloaded:
                pipeline.enable_model_cpu_offload()
            yield
        except BaseException as error:
            traceback.clear_frames(error.__traceback__)  # their references may leave no memory for the parts
            raise
        finally:
            if tiled is False:
                vae.disable_tiling()
            if offloaded:
                self._restore_to_device()

    def _restore_to_device(self) -> None:
        """Move the whole pipeline back to the GPU."""
        self._free_memory()
        try:
            self._pipeline.remove_all_hooks()
            self._pipeline.to(self._device)
        except LIBRARY_FAILURES as error:
            raise WorkerFault(f"model {self._model.name} cannot be moved back to its device: {error}") from error

    def _make_picture(
        self, parameters: Mapping[str, Any], arguments: Mapping[str, Any], seed: int, progress: _Progress
    ) -> tuple[Picture, bool]:
        """One picture, and whether the safety checker replaced it."""
        # On the CPU for a GPU too, so that both start with the same noise. It uses 32 bits of a seed: seeds that are
        # 2^32 apart give the same picture.
        generator = torch.Generator("cpu").manual_seed(seed)
        torch.manual_seed(seed ^ OTHER_STREAM)
        callback = {"callback_on_step_end": progress.step_ended} if "callback_on_step_end" in self._call else {}
        with self._cached(parameters.get("cache_threshold")):
            output = self._pipeline(**arguments, **callback, generator=generator, output_type="np")
        progress.picture_ended()
        pixels = output.images[0]
        if not np.isfinite(pixels).all():
            raise ArithmeticError("the pipeline's result is not a number")
        image = Image.fromarray((pixels * 255).round().astype(np.uint8))
        png = encode_png(image, model=self._model, seed=seed, parameters=parameters, metadata=self._metadata)
        flags = getattr(output, "nsfw_content_detected", None) or [False]
        return Picture(png=png, width=image.width, height=image.height, seed=seed), bool(flags[0])

    @contextmanager
    def _cached(self, threshold: float | None) -> Iterator[None]:
        """Skip blocks that change less than `threshold` between steps, if the model supports it.

        The cache is enabled for each picture separately: otherwise one picture would affect the next.
        """
        denoiser: Any = getattr(self._pipeline, "transformer", None)
        if not threshold or not hasattr(denoiser, "enable_cache"):
            yield
            return
        denoiser.enable_cache(diffusers.FirstBlockCacheConfig(threshold=threshold))
        try:
            yield
        finally:
            denoiser.disable_cache()

    def _warn_without_steps(self, progress: _Progress) -> None:
        if not progress.reported and not self._has_warned:
            self._has_warned = True
            log.warning(
                "no_progress", model=self._model.name, pipeline=self._model.pipeline, reason="it reports no steps"
            )

    def _free_memory(self) -> None:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _record(
        self, parameters: Mapping[str, Any], pictures: tuple[Picture, ...], scheduler: str, flagged: list[bool]
    ) -> dict[str, Any]:
        record = {
            **record_of(self._model, parameters, pictures),
            **self._origin,
            "pipeline": self._model.pipeline,
            "scheduler": scheduler,
            "safety_checker": getattr(self._pipeline, "safety_checker", None) is not None
            and parameters.get("safety_checker") is not False,
            "flagged": flagged,
            "device": "cpu" if self._device == "cpu" else torch.cuda.get_device_name(),
            "dtype": str(self._dtype).removeprefix("torch."),
            "versions": {
                "python": platform.python_version(),
                "torch": str(torch.__version__),
                "diffusers": diffusers.__version__,
                "transformers": transformers.__version__,
            },
        }
        if self._device == "cpu":
            record["threads"] = torch.get_num_threads()
        return record


class _Progress:
    """Maps the callbacks of successive pipeline calls to the steps of a job."""

    def __init__(self, on_step: OnStep, *, pictures: int, steps: int) -> None:
        self._on_step = on_step
        self._steps = steps
        self._total = pictures * steps
        self._done = 0
        self._step = 0
        self.reported = False
        self.raised: BaseException | None = None

    @property
    def has_started(self) -> bool:
        """Whether the pipeline passed its checks of the input."""
        return self.reported or self._done > 0

    def step_ended(self, pipeline: Any, index: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        """diffusers' `callback_on_step_end`. Schedulers with several timesteps per step are scaled to steps."""
        self.reported = True
        timesteps = getattr(pipeline, "num_timesteps", self._steps)
        self._report(self._done + max(1, (index + 1) * self._steps // timesteps))
        return tensors

    def picture_ended(self) -> None:
        self._done += self._steps
        if self._step < self._done:
            self._report(self._done)

    def _report(self, step: int) -> None:
        self._step = step
        try:
            self._on_step(step, self._total)
        except BaseException as error:
            self.raised = error
            raise


def _pipeline_class(name: str) -> type[diffusers.DiffusionPipeline]:
    found = getattr(diffusers, name, None)
    if not isinstance(found, type) or not issubclass(found, diffusers.DiffusionPipeline):
        raise ValueError(f"{name} is not a pipeline of diffusers {diffusers.__version__}")
    return found


def _fetched(pipeline_class: type[diffusers.DiffusionPipeline], model: Model) -> tuple[Path, dict[str, Any]]:
    """The folder of the weights, downloaded if they are on the hub, and their identity in the record.

    The record has only the last part of a local folder's path: the rest describes the machine.
    """
    folder = Path(model.source)
    if folder.is_dir():
        return folder, {"source": folder.name, "fingerprint": fingerprint(folder)}
    if not HUB_ID.fullmatch(model.source):
        raise ValueError("the folder does not exist")
    snapshot = Path(pipeline_class.download(model.source, revision=model.revision, use_safetensors=True))
    # The hub's cache names a snapshot's folder by its commit.
    return snapshot, {"source": model.source, "revision": snapshot.name}


def _argument(parameter: Parameter) -> str:
    return parameter.argument or parameter.name


def _scheduler(name: str | None, *, like: Any) -> Any:
    """A new scheduler by its name in model files, or of the class of `like`, with the configuration of `like`."""
    if name is None:
        return type(like).from_config(like.config)
    if name not in SCHEDULERS:
        raise ValueError(f"unknown scheduler {name!r} (known: {', '.join(SCHEDULERS)})")
    return getattr(diffusers, SCHEDULERS[name]).from_config(like.config)


def _failure(error: Exception, *, has_started: bool) -> EngineError:
    """`error` as an EngineError. Pipelines reject their input with ValueError, before the first step."""
    detail = f"{type(error).__name__}: {error}"
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and OUT_OF_MEMORY.search(str(error))
    ):
        return OutOfMemory(detail)
    if isinstance(error, torch.AcceleratorError) or (
        isinstance(error, RuntimeError) and DEVICE_FAULT.search(str(error))
    ):
        return WorkerFault(detail)
    if isinstance(error, ValueError) and not has_started:
        return RejectedInput(str(error))
    return TransientFailure(detail)
