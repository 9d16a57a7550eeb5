"""The engine for diffusers: real text-to-image pipelines on a GPU, or on the CPU where there is none.

`make_engine` imports this module, and with it torch, only for a model that asks for it. `load` builds the pipeline that
the model file names, from a folder or from the hub; `run` develops a job's pictures one after another, because a batch
is not byte for byte what its pictures are alone.

A parameter reaches the pipeline as the keyword that the model file calls its `argument`. What is left has its meaning
here: `seed` and `images`; `scheduler`, one of `SCHEDULERS`; `safety_checker`, false for a run without it;
`cache_threshold`, above zero for the first-block cache. `enable_base64_output` is for others.
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
"""Parameters that never reach the pipeline, whatever the model file calls their argument."""

NEEDED_ARGUMENTS = frozenset({"prompt", "num_inference_steps", "generator", "output_type"})
"""What the call of a pipeline takes if it makes pictures of words in steps."""

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
"""Scheduler names of model files, and the classes of diffusers behind them."""

OTHER_STREAM = 0x9E3779B9
"""Mixed into the seed of torch's own generator, from which some schedulers draw (FlowMatchLCM under Flux), so that they
repeat themselves too, but not the picture's first noise. Any number does; this is the golden ratio's."""

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
"""What torch and diffusers raise when a run fails. Not all of `Exception`: Celery raises its soft time limit in the
middle of whatever runs, and that is no failure of the run."""

OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|CUBLAS_STATUS_ALLOC_FAILED", re.IGNORECASE)
DEVICE_FAULT = re.compile(
    r"CUDA (driver |unknown )?error|No CUDA GPUs|cuDNN|CUBLAS_STATUS|NVML|device-side assert", re.IGNORECASE
)
"""How torch words failures for which it has no exception class of its own."""

HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")


class DiffusersEngine:
    """An `Engine` around one diffusers pipeline."""

    def __init__(self, model: Model, *, metadata: bool = True) -> None:
        self._model, self._metadata = model, metadata
        self._pipeline: Any = None
        self._origin: dict[str, Any] = {}
        self._call: Mapping[str, inspect.Parameter] = {}
        self._silent = False

    def load(self) -> None:
        try:
            pipeline_class = _pipeline_class(self._model.pipeline)
            self._call = inspect.signature(pipeline_class.__call__).parameters
            if missing := NEEDED_ARGUMENTS - self._call.keys():
                raise ValueError(f"{self._model.pipeline} takes no {', '.join(sorted(missing))}")
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
        self._settle_device()

    def run(self, parameters: Mapping[str, Any], *, job_id: str, on_step: OnStep, lean: bool = False) -> EngineResult:
        if not lean:
            return self._run(parameters, job_id=job_id, on_step=on_step)
        with self._sparing():
            run = self._run(parameters, job_id=job_id, on_step=on_step)
        return EngineResult(pictures=run.pictures, record={**run.record, "lean": True})

    def _run(self, parameters: Mapping[str, Any], *, job_id: str, on_step: OnStep) -> EngineResult:
        seeds = picture_seeds(parameters, job_id=job_id)
        arguments = self._arguments(parameters)
        progress = _Progress(on_step, pictures=len(seeds), steps=self._steps(arguments))
        try:
            with self._set_for(parameters):
                developed = [self._develop(parameters, arguments, seed, progress) for seed in seeds]
                scheduler = type(self._pipeline.scheduler).__name__
        except LIBRARY_FAILURES as error:
            if error is progress.raised:
                raise
            failure = _failure(error, begun=progress.begun)
            log.warning("run_failed", job=job_id, kind=failure.kind, exc_info=True)
            traceback.clear_frames(error.__traceback__)
        else:
            self._warn_if_silent(progress)
            pictures = tuple(picture for picture, _ in developed)
            flagged = [flag for _, flag in developed]
            return EngineResult(pictures=pictures, record=self._record(parameters, pictures, scheduler, flagged))
        # Only here, with the exception and its frames gone, nothing holds the run's tensors any more.
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
        """The model's, on a GPU. CPUs are slow at half precision, or cannot do it."""
        if self._device == "cpu":
            return torch.float32
        dtype: torch.dtype = getattr(torch, self._model.dtype)
        return dtype

    def _settle_device(self) -> None:
        """The same seed gives the same bytes; and a stand-in's small tensors take one thread.

        With two threads, waiting for each other costs more than it saves: several times the time was seen on a busy
        machine. For real weights torch chooses, or `OMP_NUM_THREADS`.
        """
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
        if self._device == "cpu" and self._model.served_as is not None:
            torch.set_num_threads(1)

    def _check_parameters(self) -> None:
        """Raises ValueError for a parameter that would reach nothing, or a scheduler that there is not."""
        for parameter in self._model.parameters.values():
            if parameter.name not in OWN_PARAMETERS and _argument(parameter) not in self._call:
                raise ValueError(f"{self._model.pipeline} knows no argument for the parameter {parameter.name}")
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
    def _set_for(self, parameters: Mapping[str, Any]) -> Iterator[None]:
        """Set the pipeline as one job wants it, and as it was afterwards.

        Each job has a scheduler of its own: a scheduler keeps what it last did, and an interrupted run leaves it there.
        """
        pipeline = self._pipeline
        usual = {"scheduler": pipeline.scheduler}
        pipeline.scheduler = _scheduler(parameters.get("scheduler"), like=pipeline.scheduler)
        if parameters.get("safety_checker") is False and getattr(pipeline, "safety_checker", None) is not None:
            usual["safety_checker"] = pipeline.safety_checker
            pipeline.safety_checker = None
        try:
            yield
        finally:
            for name, component in usual.items():
                setattr(pipeline, name, component)

    @contextmanager
    def _sparing(self) -> Iterator[None]:
        """Take less of the device's memory, and as much as before afterwards.

        The picture is decoded in tiles, which may show in large ones; and of the pipeline's parts only the one that
        works is on the GPU. Pictures are made one by one anyway, and torch's attention needs no slices to be sparing.
        Raises WorkerFault where the parts do not go back.
        """
        pipeline = self._pipeline
        vae: Any = getattr(pipeline, "vae", None)
        tiled = getattr(vae, "use_tiling", None)  # None: it cannot
        offloaded = self._device == "cuda"
        if tiled is False:
            vae.enable_tiling()
        try:
            if offloaded:
                pipeline.enable_model_cpu_offload()
            yield
        except BaseException as error:
            traceback.clear_frames(error.__traceback__)  # what they hold may leave no room for what goes back
            raise
        finally:
            if tiled is False:
                vae.disable_tiling()
            if offloaded:
                self._put_back()

    def _put_back(self) -> None:
        """The whole pipeline on the GPU again."""
        self._free_memory()
        try:
            self._pipeline.remove_all_hooks()
            self._pipeline.to(self._device)
        except LIBRARY_FAILURES as error:
            raise WorkerFault(f"model {self._model.name} does not go back to its device: {error}") from error

    def _develop(
        self, parameters: Mapping[str, Any], arguments: Mapping[str, Any], seed: int, progress: _Progress
    ) -> tuple[Picture, bool]:
        """One picture, and whether the safety checker took it away."""
        # On the CPU also for a GPU, so that both begin with the same noise. It keeps 32 bits of a seed: seeds that are
        # 2^32 apart give the same picture.
        generator = torch.Generator("cpu").manual_seed(seed)
        torch.manual_seed(seed ^ OTHER_STREAM)
        watched = {"callback_on_step_end": progress.step_ended} if "callback_on_step_end" in self._call else {}
        with self._cached(parameters.get("cache_threshold")):
            output = self._pipeline(**arguments, **watched, generator=generator, output_type="np")
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
        """Skip what changes less than `threshold` from step to step, where the model can.

        Begun and ended for each picture: what is cached from one would show in the next.
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

    def _warn_if_silent(self, progress: _Progress) -> None:
        if not progress.heard and not self._silent:
            self._silent = True
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
    """From the callbacks of one pipeline call after another to the steps of a job, and to what stops it."""

    def __init__(self, on_step: OnStep, *, pictures: int, steps: int) -> None:
        self._on_step = on_step
        self._steps = steps
        self._total = pictures * steps
        self._before = 0
        self._told = 0
        self.heard = False
        self.raised: BaseException | None = None

    @property
    def begun(self) -> bool:
        """Whether the pipeline got past its checks of the input."""
        return self.heard or self._before > 0

    def step_ended(self, pipeline: Any, index: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        """diffusers' `callback_on_step_end`. Schedulers that look twice a step are brought to the scale of steps."""
        self.heard = True
        looks = getattr(pipeline, "num_timesteps", self._steps)
        self._tell(self._before + max(1, (index + 1) * self._steps // looks))
        return tensors

    def picture_ended(self) -> None:
        self._before += self._steps
        if self._told < self._before:
            self._tell(self._before)

    def _tell(self, step: int) -> None:
        self._told = step
        try:
            self._on_step(step, self._total)
        except BaseException as error:
            self.raised = error
            raise


def _pipeline_class(name: str) -> type[diffusers.DiffusionPipeline]:
    found = getattr(diffusers, name, None)
    if not isinstance(found, type) or not issubclass(found, diffusers.DiffusionPipeline):
        raise ValueError(f"{name} is no pipeline of diffusers {diffusers.__version__}")
    return found


def _fetched(pipeline_class: type[diffusers.DiffusionPipeline], model: Model) -> tuple[Path, dict[str, Any]]:
    """The folder that holds the weights, downloaded if the hub has them, and what identifies them in the record.

    Of a local folder the record keeps the last part of its name: the rest says more of the machine than of the weights.
    """
    folder = Path(model.source)
    if folder.is_dir():
        return folder, {"source": folder.name, "fingerprint": fingerprint(folder)}
    if not HUB_ID.fullmatch(model.source):
        raise ValueError("there is no such folder")
    snapshot = Path(pipeline_class.download(model.source, revision=model.revision, use_safetensors=True))
    # The hub's cache names a snapshot's folder by its commit.
    return snapshot, {"source": model.source, "revision": snapshot.name}


def _argument(parameter: Parameter) -> str:
    return parameter.argument or parameter.name


def _scheduler(name: str | None, *, like: Any) -> Any:
    """A new scheduler by its name in model files, or of the same class, with the configuration of `like`."""
    if name is None:
        return type(like).from_config(like.config)
    if name not in SCHEDULERS:
        raise ValueError(f"scheduler {name!r} is none of {', '.join(SCHEDULERS)}")
    return getattr(diffusers, SCHEDULERS[name]).from_config(like.config)


def _failure(error: Exception, *, begun: bool) -> EngineError:
    """`error` by kind. Pipelines refuse their input with ValueError, and before the first step."""
    detail = f"{type(error).__name__}: {error}"
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and OUT_OF_MEMORY.search(str(error))
    ):
        return OutOfMemory(detail)
    if isinstance(error, torch.AcceleratorError) or (
        isinstance(error, RuntimeError) and DEVICE_FAULT.search(str(error))
    ):
        return WorkerFault(detail)
    if isinstance(error, ValueError) and not begun:
        return RejectedInput(str(error))
    return TransientFailure(detail)
