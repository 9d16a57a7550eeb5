"""The engines, through the interface that the worker uses: real diffusers pipelines with the stand-ins' weights."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import structlog
import torch
import transformers
from darkroom import errors
from darkroom.catalogue.models import Catalogue, Model, Parameter, ParameterType, validate
from darkroom.jobs import ErrorKind
from darkroom_worker.engines.registry import (
    SEEDS,
    Engine,
    EngineError,
    EngineResult,
    Interrupted,
    OutOfMemory,
    Picture,
    RejectedInput,
    TransientFailure,
    WorkerFault,
    make_engine,
)
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from tests.worker.hub import Hub

# diffusers 0.42 hands torch tensors to numpy in a way that numpy 2 will stop taking.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

MODELS = ("flux", "sd")

SMALL = {"prompt": "a lighthouse at dusk", "width": 64, "height": 64, "steps": 3}
"""A job that takes a tenth of a second."""

each_model = pytest.mark.parametrize("name", MODELS)


class Studio:
    """One loaded engine per model, and a call to run it."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue
        self._engines: dict[str, Engine] = {}

    def engine(self, name: str) -> Engine:
        if name not in self._engines:
            self._engines[name] = loaded(self.catalogue.get(name))
        return self._engines[name]

    def run(self, name: str, on_step: Callable[[int, int], None] | None = None, **given: Any) -> EngineResult:
        parameters = complete(self.catalogue.get(name), **given)
        return self.engine(name).run(parameters, job_id="a-job", on_step=on_step or ignore)


def ignore(_step: int, _total: int) -> None:
    """Ignore progress."""


def complete(model: Model, *, seed: int = 1, **given: Any) -> dict[str, object]:
    """The parameters that a worker passes: `SMALL` and the given ones, validated, with all defaults and a seed."""
    return {**validate(model, {**SMALL, **given}), "seed": seed}


def loaded(model: Model) -> Engine:
    engine = make_engine(model)
    engine.load()
    return engine


def pixels(picture: Picture) -> np.ndarray[Any, np.dtype[np.int16]]:
    return np.asarray(Image.open(io.BytesIO(picture.png))).astype(np.int16)


def texts(picture: Picture) -> Mapping[str, str]:
    image = Image.open(io.BytesIO(picture.png))
    assert isinstance(image, PngImageFile)
    return image.text


@pytest.fixture(scope="session")
def studio(catalogue: Catalogue) -> Iterator[Studio]:
    studio = Studio(catalogue)
    yield studio
    for name in MODELS:
        studio.engine(name).close()


# Pictures


@each_model
def test_the_same_seed_gives_the_same_bytes(studio: Studio, name: str) -> None:
    assert studio.run(name).pictures == studio.run(name).pictures


@each_model
def test_a_picture_is_neither_flat_nor_burnt_out(studio: Studio, name: str) -> None:
    found = pixels(studio.run(name).pictures[0])
    assert 64 < found.mean() < 192
    assert found.std() > 20
    assert ((found == 0) | (found == 255)).mean() < 0.2


@each_model
@pytest.mark.parametrize(
    "other",
    [
        {"seed": 2},
        {"prompt": "a cat in a hat"},
        {"steps": 4},
        {"guidance": 3.0},
        {"guidance": 3.0, "negative_prompt": "blurred"},
    ],
    ids=["seed", "prompt", "steps", "guidance", "negative prompt"],
)
def test_every_parameter_shows_in_the_picture(studio: Studio, name: str, other: dict[str, Any]) -> None:
    without = {key: value for key, value in other.items() if key != "negative_prompt"} if len(other) > 1 else {}
    first, second = (pixels(studio.run(name, **given).pictures[0]) for given in (without, other))
    assert np.abs(first - second).mean() > 0.5


@each_model
def test_the_size_of_a_request_is_the_size_of_the_picture(studio: Studio, name: str) -> None:
    picture = studio.run(name, width=832, height=1216, steps=1).pictures[0]
    assert (picture.width, picture.height) == (832, 1216)
    assert pixels(picture).shape == (1216, 832, 3)


@each_model
def test_each_picture_of_a_job_equals_the_one_that_its_seed_gives_alone(studio: Studio, name: str) -> None:
    together = studio.run(name, images=3, seed=5).pictures
    alone = [studio.run(name, seed=seed).pictures[0] for seed in (5, 6, 7)]
    assert list(together) == alone


def test_without_a_seed_each_attempt_at_a_job_makes_the_same_picture(studio: Studio) -> None:
    """For a model without the parameter `seed`; other jobs get other seeds."""
    parameters = {name: value for name, value in complete(studio.catalogue.get("sd")).items() if name != "seed"}
    first, again, other = (
        studio.engine("sd").run(parameters, job_id=job_id, on_step=ignore) for job_id in ("one", "one", "other")
    )
    assert first.pictures == again.pictures
    assert first.pictures[0].seed != other.pictures[0].seed
    assert first.record["seeds"] == [first.pictures[0].seed]


def test_seeds_go_round_at_their_limit(studio: Studio) -> None:
    run = studio.run("sd", images=2, seed=SEEDS - 1)
    assert [picture.seed for picture in run.pictures] == [SEEDS - 1, 0]


SCHEDULERS = [
    (model.name, scheduler) for model in Catalogue.load() for scheduler in model.parameters["scheduler"].choices
]


@pytest.mark.parametrize(("name", "scheduler"), SCHEDULERS)
def test_every_scheduler_of_the_catalogue_is_reproducible_and_stateless(
    studio: Studio, name: str, scheduler: str
) -> None:
    before = studio.run(name)
    first, second = (studio.run(name, scheduler=scheduler) for _ in range(2))
    assert first == second
    assert pixels(first.pictures[0]).std() > 20
    assert studio.run(name) == before


@each_model
def test_each_scheduler_name_is_a_different_scheduler(studio: Studio, name: str) -> None:
    names = [scheduler for model, scheduler in SCHEDULERS if model == name]
    assert len({studio.run(name, scheduler=scheduler).record["scheduler"] for scheduler in names}) == len(names)


def test_the_block_cache_affects_only_its_own_run(studio: Studio) -> None:
    before = studio.run("flux", steps=8)
    first, second = (studio.run("flux", steps=8, cache_threshold=1.0) for _ in range(2))
    assert first == second
    assert first.pictures != before.pictures
    assert studio.run("flux", steps=8) == before


def test_a_model_that_declares_no_seed_gets_the_one_that_was_drawn(studio: Studio) -> None:
    sd = studio.catalogue.get("sd")
    bare = replace(sd, parameters={name: sd.parameters[name] for name in ("prompt", "width", "height", "steps")})
    run = loaded(bare).run({**SMALL, "seed": 4}, job_id="a-job", on_step=ignore)
    assert [picture.seed for picture in run.pictures] == [4]


# Progress and interruption


@each_model
def test_progress_counts_every_step_of_all_pictures(studio: Studio, name: str) -> None:
    reported: list[tuple[int, int]] = []
    studio.run(name, lambda *progress: reported.append(progress), images=2, steps=4)
    steps = [step for step, _ in reported]
    assert {total for _, total in reported} == {8}
    assert steps == sorted(steps)
    assert set(steps) == set(range(1, 9))


@pytest.mark.parametrize("scheduler", ["heun", "pndm"])
def test_progress_with_two_timesteps_per_step_ends_at_the_last_step(studio: Studio, scheduler: str) -> None:
    reported: list[tuple[int, int]] = []
    studio.run("sd", lambda *progress: reported.append(progress), scheduler=scheduler, steps=4)
    assert len(reported) > 4
    assert reported[0] == (1, 4)
    assert reported[-1] == (4, 4)


class Gone(Exception):
    """An exception of another library, such as Celery's time limit."""


@each_model
@pytest.mark.parametrize("reason", [Interrupted, Gone, ConnectionError, ValueError])
def test_an_exception_of_on_step_stops_the_run_and_is_raised_unchanged(
    studio: Studio, name: str, reason: type[Exception]
) -> None:
    before = studio.run(name)
    reported: list[int] = []
    raised = reason("stop")

    def stop(step: int, _total: int) -> None:
        reported.append(step)
        raise raised

    with pytest.raises(reason) as caught:
        studio.run(name, stop, images=2, steps=8)
    assert caught.value is raised
    assert reported == [1]
    assert studio.run(name) == before, "the engine is as usable as before"


def test_an_interrupted_run_leaves_no_cache_and_no_scheduler_behind(studio: Studio) -> None:
    before = studio.run("flux")

    def stop(step: int, _total: int) -> None:
        if step == 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        studio.run("flux", stop, cache_threshold=1.0, scheduler="flow-match-lcm")
    assert studio.run("flux") == before


def test_a_pipeline_without_step_callbacks_reports_its_last_step(silent_model: Model) -> None:
    engine = loaded(silent_model)
    reported: list[tuple[int, int]] = []
    with structlog.testing.capture_logs() as logs:
        for _ in range(2):
            engine.run(
                complete(silent_model, images=2), job_id="a-job", on_step=lambda *progress: reported.append(progress)
            )
    assert reported == [(3, 6), (6, 6)] * 2
    assert [entry["event"] for entry in logs] == ["no_progress"], "said once, not with every job"


@pytest.fixture
def silent_model(catalogue: Catalogue, stand_ins: Path, tmp_path: Path) -> Model:
    """PixArt-Sigma in small: its pipeline has no `callback_on_step_end`."""
    text = diffusers.FluxPipeline.from_pretrained(stand_ins / "flux-standin")
    sd = diffusers.StableDiffusionPipeline.from_pretrained(stand_ins / "sd-standin")
    diffusers.PixArtSigmaPipeline(
        tokenizer=text.tokenizer_2,
        text_encoder=text.text_encoder_2,
        vae=sd.vae,
        transformer=diffusers.PixArtTransformer2DModel(
            sample_size=8,
            in_channels=4,
            out_channels=8,
            num_layers=1,
            num_attention_heads=2,
            attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=text.text_encoder_2.config.d_model,
        ),
        scheduler=diffusers.DPMSolverMultistepScheduler(),
    ).save_pretrained(tmp_path)
    exact_size = Parameter(
        name="use_resolution_binning", type=ParameterType.BOOLEAN, description="Round the size.", default=False
    )
    kept = {
        name: parameter
        for name, parameter in catalogue.get("sd").parameters.items()
        if name not in {"scheduler", "safety_checker"}
    }
    return replace(
        catalogue.get("sd"),
        pipeline="PixArtSigmaPipeline",
        source=str(tmp_path),
        parameters={**kept, exact_size.name: exact_size},
    )


# What is written down


@each_model
def test_a_png_contains_its_parameters_and_its_model(studio: Studio, name: str) -> None:
    run = studio.run(name, prompt="ein Leuchtturm bei Dämmerung 灯台", images=2, seed=7)
    written = texts(run.pictures[1])
    assert written["model_served"] == f"{name} stand-in, untrained weights"
    assert written["Software"].startswith("darkroom ")
    parameters = json.loads(written["parameters"])
    assert parameters["model"] == name
    assert parameters["prompt"] == "ein Leuchtturm bei Dämmerung 灯台"
    assert (parameters["seed"], parameters["images"]) == (8, 1)


def test_without_metadata_a_png_contains_no_parameters(catalogue: Catalogue) -> None:
    model = catalogue.get("sd")
    engine = make_engine(model, metadata=False)
    engine.load()
    (picture,) = engine.run(complete(model, prompt="a secret"), job_id="a-job", on_step=ignore).pictures
    engine.close()
    assert texts(picture).keys() == {"Software", "model_served"}
    assert b"secret" not in picture.png


@each_model
def test_the_parameters_in_a_png_submitted_again_give_that_file(studio: Studio, name: str) -> None:
    picture = studio.run(name, images=2, seed=7).pictures[1]
    written = json.loads(texts(picture)["parameters"])
    model = studio.catalogue.get(written.pop("model"))
    again = studio.engine(model.name).run(validate(model, written), job_id="another-job", on_step=ignore)
    assert again.pictures == (picture,)


@each_model
def test_delivery_parameters_do_not_change_the_file(studio: Studio, name: str) -> None:
    assert studio.run(name, enable_base64_output=True).pictures == studio.run(name).pictures


@each_model
def test_the_record_reproduces_the_run(studio: Studio, name: str) -> None:
    model = studio.catalogue.get(name)
    parameters = complete(model, images=2, seed=7)
    run = studio.engine(name).run(parameters, job_id="a-job", on_step=ignore)
    record = json.loads(json.dumps(run.record))
    assert record == run.record, "JSON holds it without loss"
    assert record["parameters"] == parameters
    assert record["seeds"] == [7, 8]
    assert record["sha256"] == [sha256(picture.png).hexdigest() for picture in run.pictures]
    assert (record["model"], record["model_served"], record["engine"]) == (name, model.served, "diffusers")
    assert (record["pipeline"], record["source"]) == (model.pipeline, f"{name}-standin")
    assert len(record["fingerprint"]) == 64
    assert (record["device"] == "cpu") is not torch.cuda.is_available()
    assert record["versions"]["torch"] == torch.__version__
    assert record["versions"]["diffusers"] == diffusers.__version__
    assert record["versions"]["transformers"] == transformers.__version__


# The safety checker


@pytest.fixture
def strict_sd(catalogue: Catalogue, stand_ins: Path, tmp_path: Path) -> Model:
    """The stand-in for `sd` with a checker that flags every picture."""
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    checker = StableDiffusionSafetyChecker(
        transformers.CLIPConfig(
            vision_config={**vision, "image_size": 32, "patch_size": 16},
            text_config={**vision, "vocab_size": 8},
            projection_dim=16,
        )
    )
    checker.concept_embeds_weights.data.fill_(-2)  # cosines are above -1, so every concept is found
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(stand_ins / "sd-standin")
    diffusers.StableDiffusionPipeline(
        **{
            **pipeline.components,
            "safety_checker": checker,
            "feature_extractor": transformers.CLIPImageProcessorPil(
                size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
            ),
        }
    ).save_pretrained(tmp_path)
    return replace(catalogue.get("sd"), source=str(tmp_path))


def test_the_safety_checker_blackens_flagged_pictures_and_can_be_disabled(studio: Studio, strict_sd: Model) -> None:
    engine = loaded(strict_sd)
    runs = [
        engine.run(complete(strict_sd, safety_checker=wanted), job_id="a-job", on_step=ignore)
        for wanted in (True, False, True)
    ]
    assert [run.record["flagged"] for run in runs] == [[True], [False], [True]]
    assert [run.record["safety_checker"] for run in runs] == [True, False, True]
    assert [bool(pixels(run.pictures[0]).any()) for run in runs] == [False, True, False]
    unchecked = studio.run("sd").pictures[0]
    assert np.array_equal(pixels(runs[1].pictures[0]), pixels(unchecked))


def test_the_record_of_weights_without_a_safety_checker_has_none(studio: Studio) -> None:
    assert studio.run("sd", safety_checker=True).record["safety_checker"] is False


# Failures


def test_parameters_that_the_pipeline_rejects_are_invalid_input(studio: Studio) -> None:
    parameters = complete(studio.catalogue.get("sd")) | {"width": 100}
    with structlog.testing.capture_logs(), pytest.raises(RejectedInput, match="divisible by 8") as caught:
        studio.engine("sd").run(parameters, job_id="a-job", on_step=ignore)
    assert caught.value.kind is ErrorKind.INVALID_INPUT
    assert isinstance(caught.value, errors.PermanentError)


def test_more_than_the_memory_holds_is_out_of_memory_and_the_engine_stays_usable(studio: Studio) -> None:
    before = studio.run("sd")
    # Latents of 2^52 bytes: more than any process can address, so the machine refuses them at once.
    parameters = complete(studio.catalogue.get("sd")) | {"width": 2**27, "height": 2**27}
    with structlog.testing.capture_logs(), pytest.raises(OutOfMemory) as caught:
        studio.engine("sd").run(parameters, job_id="a-job", on_step=ignore)
    assert caught.value.kind is ErrorKind.OUT_OF_MEMORY
    assert studio.run("sd") == before


# Lean runs


def test_a_lean_run_decodes_in_tiles_records_it_and_affects_no_other_run(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = studio.run("sd", width=256, height=256)
    engine: Any = studio.engine("sd")
    parameters = complete(studio.catalogue.get("sd"), width=256, height=256)
    tiled: list[bool] = []
    decode = engine._pipeline.vae.decode

    def watched(*arguments: Any, **keywords: Any) -> Any:
        tiled.append(engine._pipeline.vae.use_tiling)
        return decode(*arguments, **keywords)

    monkeypatch.setattr(engine._pipeline.vae, "decode", watched)
    lean = engine.run(parameters, job_id="a-job", on_step=ignore, lean=True)
    after = studio.run("sd", width=256, height=256)

    assert tiled == [True, False]
    assert after == before
    assert (lean.record["lean"], lean.record["parameters"]) == (True, before.record["parameters"])
    assert "lean" not in before.record
    assert (lean.pictures[0].width, lean.pictures[0].height) == (256, 256)


@each_model
def test_a_lean_run_of_every_pipeline_is_reproducible(studio: Studio, name: str) -> None:
    parameters = complete(studio.catalogue.get(name))
    first, second = (studio.engine(name).run(parameters, job_id="a-job", on_step=ignore, lean=True) for _ in range(2))
    assert first == second
    assert (first.pictures[0].width, first.pictures[0].height) == (64, 64)


class FakeGpu:
    """A fake GPU: the devices to which the pipeline was moved, in order."""

    def __init__(self, engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.moves: list[str] = []
        self.is_full = False
        monkeypatch.setattr(type(engine), "_device", "cuda")
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
        monkeypatch.setattr(engine._pipeline, "enable_model_cpu_offload", lambda: self.moves.append("offloaded"))
        monkeypatch.setattr(engine._pipeline, "remove_all_hooks", lambda: self.moves.append("no hooks"))
        monkeypatch.setattr(engine._pipeline, "to", self._to)

    def _to(self, device: str) -> None:
        self.moves.append(device)
        if self.is_full:
            raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize("interrupted", [False, True])
def test_on_a_gpu_a_lean_run_offloads_parts_and_moves_them_back(
    studio: Studio, monkeypatch: pytest.MonkeyPatch, interrupted: bool
) -> None:
    def stop(_step: int, _total: int) -> None:
        if interrupted:
            raise Interrupted("cancelled")

    engine = studio.engine("sd")
    gpu = FakeGpu(engine, monkeypatch)
    parameters = complete(studio.catalogue.get("sd"))
    if interrupted:
        with pytest.raises(Interrupted):
            engine.run(parameters, job_id="a-job", on_step=stop, lean=True)
    else:
        engine.run(parameters, job_id="a-job", on_step=stop, lean=True)
    assert gpu.moves == ["offloaded", "no hooks", "cuda"]


def test_a_pipeline_that_cannot_be_moved_back_to_its_gpu_is_a_worker_fault(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = studio.engine("sd")
    FakeGpu(engine, monkeypatch).is_full = True
    with pytest.raises(WorkerFault, match="cannot be moved back"):
        engine.run(complete(studio.catalogue.get("sd")), job_id="a-job", on_step=ignore, lean=True)


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."), OutOfMemory),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), OutOfMemory),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), WorkerFault),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), WorkerFault),
        (RuntimeError("Expected all tensors to be on the same device, but found cuda:0 and cpu!"), TransientFailure),
        (RuntimeError("The size of tensor a (2) must match the size of tensor b (3)"), TransientFailure),
        (OSError("Input/output error"), TransientFailure),
    ],
    ids=["out of memory", "cuBLAS without memory", "illegal access", "cuDNN", "two devices", "other", "disk"],
)
def test_a_device_failure_has_its_kind(
    studio: Studio, monkeypatch: pytest.MonkeyPatch, failure: Exception, kind: type[EngineError]
) -> None:
    """Without a GPU that could fail, the denoiser raises torch's exception for one."""

    def fail(*_arguments: object, **_keywords: object) -> None:
        raise failure

    engine: Any = studio.engine("sd")
    monkeypatch.setattr(engine._pipeline.unet, "forward", fail)
    with structlog.testing.capture_logs() as logs, pytest.raises(kind, match=type(failure).__name__) as caught:
        studio.run("sd")
    assert type(caught.value) is kind
    assert isinstance(caught.value, errors.TemporaryError)
    assert [(entry["event"], entry["job"], entry["kind"]) for entry in logs] == [("run_failed", "a-job", kind.kind)]


def test_a_failure_after_the_first_step_is_not_invalid_input(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    engine: Any = studio.engine("sd")
    unet = engine._pipeline.unet
    right, calls = unet.forward, iter([True, False])

    def fail_the_second_time(*arguments: object, **keywords: object) -> object:
        if next(calls):
            return right(*arguments, **keywords)
        raise ValueError("not a matter of the prompt")

    monkeypatch.setattr(unet, "forward", fail_the_second_time)
    with (
        structlog.testing.capture_logs(),
        pytest.raises(TransientFailure, match="ValueError: not a matter of the prompt"),
    ):
        studio.run("sd")


def test_a_result_of_nan_fails_the_run(catalogue: Catalogue, stand_ins: Path, tmp_path: Path) -> None:
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(stand_ins / "sd-standin")
    pipeline.vae.decoder.conv_out.bias.data.fill_(float("nan"))
    pipeline.save_pretrained(tmp_path)
    model = replace(catalogue.get("sd"), source=str(tmp_path))
    with structlog.testing.capture_logs(), pytest.raises(TransientFailure, match="not a number"):
        loaded(model).run(complete(model), job_id="a-job", on_step=ignore)


def no_such_folder(_model: Model, folder: Path) -> dict[str, object]:
    return {"source": str(folder / "nowhere")}


def an_empty_folder(_model: Model, folder: Path) -> dict[str, object]:
    return {"source": str(folder)}


def damaged_weights(model: Model, folder: Path) -> dict[str, object]:
    diffusers.StableDiffusionPipeline.from_pretrained(model.source).save_pretrained(folder)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0not safetensors.")
    return {"source": str(folder)}


def weights_of_another_pipeline(model: Model, _folder: Path) -> dict[str, object]:
    return {"pipeline": "FluxPipeline", "source": model.source}


def no_pipeline_of_diffusers(_model: Model, _folder: Path) -> dict[str, object]:
    return {"pipeline": "UNet2DConditionModel"}


def a_pipeline_without_words(_model: Model, _folder: Path) -> dict[str, object]:
    return {"pipeline": "DDPMPipeline"}


def a_parameter_that_reaches_nothing(model: Model, _folder: Path) -> dict[str, object]:
    sharpness = Parameter(name="sharpness", type=ParameterType.NUMBER, description="How sharp.", default=1.0)
    return {"parameters": {**model.parameters, "sharpness": sharpness}}


def a_scheduler_that_there_is_not(model: Model, _folder: Path) -> dict[str, object]:
    scheduler = replace(model.parameters["scheduler"], choices=("euler", "leonhard"))
    return {"parameters": {**model.parameters, "scheduler": scheduler}}


@pytest.mark.parametrize(
    "spoilt",
    [
        no_such_folder,
        an_empty_folder,
        damaged_weights,
        weights_of_another_pipeline,
        no_pipeline_of_diffusers,
        a_pipeline_without_words,
        a_parameter_that_reaches_nothing,
        a_scheduler_that_there_is_not,
    ],
    ids=lambda spoilt: spoilt.__name__.replace("_", " "),
)
def test_a_model_that_does_not_load_is_a_worker_fault(
    catalogue: Catalogue, tmp_path: Path, spoilt: Callable[[Model, Path], dict[str, Any]]
) -> None:
    sd = catalogue.get("sd")
    engine = make_engine(replace(sd, **spoilt(sd, tmp_path)))
    with pytest.raises(WorkerFault, match="model sd does not load from") as caught:
        engine.load()
    assert caught.value.kind is ErrorKind.WORKER_FAULT


def test_weights_that_are_pickled_are_not_loaded(catalogue: Catalogue, tmp_path: Path) -> None:
    sd = catalogue.get("sd")
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(sd.source)
    pipeline.save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(WorkerFault):
        loaded(replace(sd, source=str(tmp_path)))


# The choice of an engine, and the hub


def test_an_unknown_engine_is_a_setting_error(catalogue: Catalogue) -> None:
    with pytest.raises(errors.SettingError, match=r"model sd: unknown engine 'comfyui' \(known: diffusers, instant\)"):
        make_engine(replace(catalogue.get("sd"), engine="comfyui"))


def test_the_interface_of_engines_does_not_import_torch() -> None:
    script = (
        "import sys, darkroom_worker.engines.registry, darkroom_worker.engines.instant; print('torch' in sys.modules)"
    )
    assert in_another_process(script) == "False\n"


def in_another_process(script: str, *arguments: str, **environment: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env={"PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1", **environment},
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    ).stdout


FROM_THE_HUB = """
import json, pathlib, sys
from darkroom.catalogue.models import Catalogue, validate
from darkroom_worker.engines.registry import make_engine
model = Catalogue.load([pathlib.Path(sys.argv[1])]).get("sd")
engine = make_engine(model)
engine.load()
parameters = {**validate(model, {"width": 64, "height": 64, "steps": 1}), "seed": 1}
print(json.dumps(engine.run(parameters, job_id="a-job", on_step=lambda step, total: None).record))
"""


def test_a_model_of_the_hub_is_downloaded_and_its_commit_recorded(stand_ins: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    (models / "sd.toml").write_text('extends = "sd"\nsource = "someone/sd"\nrevision = "v1"\n')
    with Hub(stand_ins / "sd-standin", repository="someone/sd", revision="v1") as hub:
        said = in_another_process(
            FROM_THE_HUB, str(models), HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path / "cache"), NO_PROXY="127.0.0.1"
        )
    record = json.loads(said)
    assert (record["source"], record["revision"]) == ("someone/sd", hub.commit)
    assert record["model_served"] == "sd"
    assert hub.requested
    assert all("telemetry" not in path for path in hub.requested)
    assert all("torch" not in agent for agent in hub.agents), "the machine's versions are not disclosed"


# The instant engine


@pytest.fixture
def instant(catalogue: Catalogue) -> Engine:
    return loaded(replace(catalogue.get("sd"), name="quick", engine="instant", served_as=None))


def test_the_instant_engine_gives_one_small_picture_per_seed(instant: Engine) -> None:
    reported: list[tuple[int, int]] = []
    run = instant.run(
        {"seed": 3, "images": 2, "steps": 2}, job_id="a-job", on_step=lambda *progress: reported.append(progress)
    )
    assert reported == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert [picture.seed for picture in run.pictures] == [3, 4]
    first, second = (pixels(picture) for picture in run.pictures)
    assert first.shape == (8, 8, 3)
    assert (first == first[0, 0]).all()
    assert (first[0, 0] != second[0, 0]).any()
    assert texts(run.pictures[0])["model_served"] == "quick"
    assert run.record["sha256"] == [sha256(picture.png).hexdigest() for picture in run.pictures]


def test_the_instant_engine_needs_only_a_seed(instant: Engine) -> None:
    reported: list[tuple[int, int]] = []
    first = instant.run({"seed": 3}, job_id="a-job", on_step=lambda *progress: reported.append(progress))
    assert reported == [(1, 1)]
    assert first == instant.run({"seed": 3}, job_id="another-job", on_step=ignore)


@pytest.mark.parametrize("kind", ["invalid_input", "out_of_memory", "transient", "worker_fault"])
def test_the_instant_engine_fails_with_the_requested_kind_after_its_first_step(instant: Engine, kind: str) -> None:
    reported: list[int] = []
    with pytest.raises(EngineError) as caught:
        instant.run(
            {"seed": 3, "steps": 4, "failure": kind}, job_id="a-job", on_step=lambda step, _total: reported.append(step)
        )
    assert caught.value.kind == kind
    assert reported == [1]


def test_the_instant_engine_is_interrupted_in_a_step(instant: Engine) -> None:
    def stop(_step: int, _total: int) -> None:
        raise Interrupted

    with pytest.raises(Interrupted):
        instant.run({"seed": 3, "steps": 4, "seconds": 0.04}, job_id="a-job", on_step=stop)
