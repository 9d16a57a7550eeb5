"""The component `tenants`: the courier reads the file that it mounts, and its example is valid."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from darkroom.access.declarations.tenants_file import parse
from darkroom.settings import PREFIX
from darkroom_courier.settings import CourierSettings

from tests.knative.rendering import KNATIVE, Object, find, kubectl, main_container, render

COMPONENT = KNATIVE / "components" / "tenants"


@pytest.fixture
def objects(tmp_path: Path) -> list[Object]:
    """An overlay with the component, rendered."""
    program = kubectl()
    if program is None:
        pytest.skip("no kubectl of 1.21 or newer")
    shutil.copytree(KNATIVE, tmp_path / "knative")
    folder = tmp_path / "knative" / "overlays" / "own"
    folder.mkdir()
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": ["../k3d"],
        "components": ["../../components/tenants"],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return render(program, folder)


def test_the_courier_reads_the_file_that_is_mounted(objects: list[Object]) -> None:
    courier = find(objects, "Deployment", "courier")
    container = main_container(courier)
    (path,) = [
        Path(each["value"]) for each in container["env"] if each["name"] == f"{PREFIX}TENANTS_FILE" and "value" in each
    ]
    mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in courier["spec"]["template"]["spec"]["volumes"]}

    assert "tenants_file" in CourierSettings.model_fields
    assert volumes[mounted[str(path.parent)]]["configMap"]["name"] == "darkroom-tenants"
    assert find(objects, "ConfigMap", "darkroom-tenants")["data"].keys() == {path.name}
    assert volumes[mounted["/etc/darkroom/tenant-keys"]]["secret"]["optional"] is True


def test_the_example_is_valid_with_and_without_its_comments() -> None:
    text = (COMPONENT / "tenants.yaml").read_text()
    assert parse(text, name="tenants.yaml", read_secret=None).tenants == ()

    _, tenants, example = text.partition("tenants: []\n")
    full = tenants.replace(" []", "") + "".join(line.removeprefix("#") + "\n" for line in example.splitlines())
    found = parse(full, name="tenants.yaml", read_secret=None)

    assert [tenant.name for tenant in found.tenants] == ["studio"]
    assert [key.declared.name for key in found.keys] == ["ci"]
    assert [key.secret_file for key in found.tenants[0].keys] == ["/etc/darkroom/tenant-keys/studio-backend", None]
