"""The stand-ins: made by one command, once and completely, and named as untrained."""

from __future__ import annotations

import fcntl
import json
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import diffusers
import pytest
from darkroom.catalogue.models import Catalogue
from darkroom_worker.engines.weights import fingerprint
from darkroom_worker.standins import STAND_INS, StandIn, main, make_stand_ins

from tests.waiting import eventually

SIZE_LIMIT = 10_000_000
"""A few megabytes: the limit of a stand-in's size."""

each_stand_in = pytest.mark.parametrize("stand_in", STAND_INS, ids=lambda stand_in: stand_in.model)


@each_stand_in
def test_a_stand_in_is_a_small_pipeline_of_the_real_models_class(stand_ins: Path, stand_in: StandIn) -> None:
    folder = stand_ins / stand_in.folder
    pipeline = getattr(diffusers, stand_in.pipeline).from_pretrained(folder, local_files_only=True)
    assert type(pipeline).__name__ == Catalogue.load().get(stand_in.model).pipeline
    assert sum(path.stat().st_size for path in folder.rglob("*")) < SIZE_LIMIT


@each_stand_in
def test_a_stand_in_is_named_as_untrained_everywhere(stand_ins: Path, catalogue: Catalogue, stand_in: StandIn) -> None:
    model = catalogue.get(stand_in.model)
    assert model.served == f"{stand_in.model} stand-in, untrained weights"
    card = (stand_ins / stand_in.folder / "README.md").read_text()
    assert "**These weights are untrained.**" in card
    assert "tags: [untrained" in card


@each_stand_in
def test_the_model_file_of_a_stand_in_has_the_models_parameters_and_another_pool(
    stand_ins: Path, catalogue: Catalogue, stand_in: StandIn
) -> None:
    shipped, served = Catalogue.load().get(stand_in.model), catalogue.get(stand_in.model)
    assert served.parameters == shipped.parameters
    assert served.pool == "local"
    assert Path(served.source) == stand_ins / stand_in.folder


def test_every_shipped_model_has_a_stand_in() -> None:
    assert {stand_in.model for stand_in in STAND_INS} == {model.name for model in Catalogue.load()}


def test_making_again_keeps_valid_stand_ins(stand_ins: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in stand_ins.rglob("*")}
    assert [made.is_new for made in make_stand_ins(stand_ins)] == [False, False]
    after = {path: path.stat().st_mtime_ns for path in stand_ins.rglob("*")}
    del before[stand_ins / ".lock"], after[stand_ins / ".lock"]
    assert after == before


def test_the_weights_are_reproducible(stand_ins: Path, tmp_path: Path) -> None:
    for made in make_stand_ins(tmp_path):
        assert fingerprint(made.folder) == fingerprint(stand_ins / made.stand_in.folder)


def test_a_damaged_stand_in_is_made_again_and_the_others_are_kept(tmp_path: Path) -> None:
    flux, sd = make_stand_ins(tmp_path)
    whole = fingerprint(flux.folder)
    (flux.folder / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"not these")
    assert [made.is_new for made in make_stand_ins(tmp_path)] == [True, False]
    assert fingerprint(flux.folder) == whole
    assert sd.folder.is_dir()


def test_a_stand_in_of_another_recipe_is_made_again(tmp_path: Path) -> None:
    flux = make_stand_ins(tmp_path)[0].folder
    stamp = json.loads((flux / "standin.json").read_text())
    (flux / "standin.json").write_text(json.dumps(stamp | {"recipe": "an older one"}))
    assert [made.is_new for made in make_stand_ins(tmp_path)] == [True, False]


def test_temporary_folders_of_a_killed_run_are_deleted(tmp_path: Path) -> None:
    (tmp_path / ".making-1234" / "new").mkdir(parents=True)
    make_stand_ins(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "flux-standin", "models", "sd-standin"]


def test_a_changed_model_file_is_restored(tmp_path: Path) -> None:
    flux = make_stand_ins(tmp_path)[0]
    text = flux.model_file.read_text()
    flux.model_file.write_text("extends = 'sd'")
    make_stand_ins(tmp_path)
    assert flux.model_file.read_text() == text


def test_the_name_of_a_folder_is_quoted_for_toml(tmp_path: Path) -> None:
    folder = tmp_path / 'a "quoted" folder \\ für Übung 🎞'
    flux = make_stand_ins(folder)[0]
    assert Path(Catalogue.load([folder / "models"]).get("flux").source) == flux.folder


def test_the_command_prints_the_folders(stand_ins: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(stand_ins)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"flux stand-in, untrained weights: already present, {stand_ins / 'flux-standin'}",
        f"sd stand-in, untrained weights: already present, {stand_ins / 'sd-standin'}",
    ]


def test_the_command_exits_on_sigterm(tmp_path: Path) -> None:
    """The kernel drops SIGTERM for process 1 unless the process handles it. Here another process locks the folder."""
    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        maker = subprocess.Popen([sys.executable, "-m", "darkroom_worker.standins", str(tmp_path)])
        try:
            eventually(lambda: _handles_sigterm(maker.pid), what="the command handles SIGTERM")
            maker.terminate()
            assert maker.wait(60) == 128 + signal.SIGTERM
        finally:
            maker.kill()


def _handles_sigterm(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    (caught,) = (line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


def test_concurrent_runs_make_the_same_stand_ins(tmp_path: Path) -> None:
    with ThreadPoolExecutor() as both:
        made = [each for result in both.map(make_stand_ins, [tmp_path, tmp_path]) for each in result]
    assert sorted(each.is_new for each in made) == [False, False, True, True], "one made both, the other found them"
