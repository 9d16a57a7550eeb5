"""The file of tenants in a courier: applied at start and when it changes; a fault is reported and changes nothing."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import httpx
import pytest
from darkroom.access.credentials import Credential
from darkroom.access.declarations.reconciliation import FILE
from darkroom.access.directory import Directory
from darkroom.access.records import ApiKey, Tenant
from darkroom.access.store import AccessStore
from darkroom.ledger.client import AsyncLedger
from darkroom.ledger.connection import connect_async

from tests.courier.conftest import Start
from tests.databases import opened
from tests.parts import Part
from tests.ports import free_port
from tests.served_metrics import read
from tests.waiting import eventually

BACKEND = Credential.generate()

STUDIO = """\
tenants:
  - name: studio
    weight: {weight}
    keys:
      - name: backend
        scopes: [submit, read]
        secret_file: backend
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """As a kubelet mounts a ConfigMap: a link that is replaced as a whole."""
    folder = tmp_path / "mounted"
    folder.mkdir()
    return folder


def mount(folder: Path, text: str, *, secret: str | None = BACKEND.text) -> Path:
    """Replace the file and the secret; returns the path of the file."""
    for name, content in (("tenants.yaml", text), ("backend", secret)):
        if content is not None:
            (folder / f"{name}.new").write_text(content)
            os.replace(folder / f"{name}.new", folder / name)  # noqa: PTH105
    return folder / "tenants.yaml"


async def _published(part: Part) -> tuple[Tenant | None, ApiKey | None]:
    client = connect_async(part.environment["DARKROOM_REDIS_URL"])
    try:
        directory = Directory(AsyncLedger(client, part.environment["DARKROOM_NAMESPACE"]))
        return await directory.tenant("studio"), (await directory.find(BACKEND.key_id)).key
    finally:
        await client.aclose()


def studio(part: Part) -> Tenant | None:
    """The tenant studio, as functions verify credentials with it."""
    return asyncio.run(_published(part))[0]


def weight(part: Part) -> float | None:
    tenant = studio(part)
    return None if tenant is None else tenant.weight


def probe(part: Part, path: str) -> httpx.Response:
    return httpx.get(f"http://127.0.0.1:{part.environment['DARKROOM_PROBE_PORT']}{path}", trust_env=False)


def test_a_file_is_applied_at_start_and_when_it_changes(start: Start, folder: Path) -> None:
    path = mount(folder, STUDIO.format(weight=2))
    courier = start(DARKROOM_TENANTS_FILE=str(path), DARKROOM_PROBE_PORT=str(free_port()))
    eventually(lambda: weight(courier) == 2, what="the tenant in Redis")
    eventually(lambda: _accepts(courier, BACKEND), what="its key in Redis")
    tenant, key = asyncio.run(_published(courier))
    assert tenant is not None
    assert key is not None
    assert (tenant.managed_by, key.managed_by) == (FILE, FILE)

    mount(folder, STUDIO.format(weight=3))
    eventually(lambda: weight(courier) == 3, what="the change of the file")

    newer = Credential.generate(BACKEND.key_id)
    mount(folder, STUDIO.format(weight=3), secret=f"{newer.text}\n{BACKEND.text}\n")
    eventually(lambda: _accepts(courier, newer), what="the rotated secret")
    log = courier.log.read_text()
    assert BACKEND.text not in log
    assert newer.text not in log


def _accepts(courier: Part, credential: Credential) -> bool:
    key = asyncio.run(_published(courier))[1]
    return key is not None and key.accepts(credential.digest, now=0)


def test_a_fault_is_reported_with_its_line_and_changes_nothing(start: Start, folder: Path) -> None:
    path = mount(folder, STUDIO.format(weight=2))
    courier = start(DARKROOM_TENANTS_FILE=str(path), DARKROOM_PROBE_PORT=str(free_port()))
    eventually(lambda: weight(courier) == 2, what="the tenant in Redis")
    eventually(lambda: _gauge(courier) == 1, what="the metric of a valid file")

    mount(folder, STUDIO.format(weight=4) + "  - name: agency\n    wait: 1\n")
    (line,) = eventually(lambda: courier.said("tenants_file_refused"), what="the fault in the log")

    assert line["level"] == "error"
    assert line["error"] == "tenants.yaml: line 9, column 5: tenants[1].wait: is not known here"
    assert probe(courier, "/healthz").json() == {"status": "ok", "tenants_file": line["error"]}
    assert probe(courier, "/readyz").json()["tenants_file"] == line["error"]
    assert _gauge(courier) == 0
    assert weight(courier) == 2

    mount(folder, STUDIO.format(weight=5))
    eventually(lambda: weight(courier) == 5, what="the mended file")
    eventually(lambda: _gauge(courier) == 1, what="the metric of the mended file")
    assert probe(courier, "/healthz").json() == {"status": "ok"}
    assert len(courier.said("tenants_file_refused")) == 1


def _gauge(courier: Part) -> float | None:
    return read(probe(courier, "/metrics").text).values.get(("darkroom_tenants_file_valid", frozenset()))


def test_a_file_that_is_missing_at_start_is_applied_once_it_is_there(start: Start, folder: Path) -> None:
    courier = start(DARKROOM_TENANTS_FILE=str(folder / "tenants.yaml"))
    (line,) = eventually(lambda: courier.said("tenants_file_refused"), what="the fault in the log")
    assert "No such file or directory" in line["error"]

    mount(folder, STUDIO.format(weight=2))

    eventually(lambda: weight(courier) == 2, what="the tenant in Redis")


def test_couriers_with_different_files_do_not_undo_each_other(start: Start, folder: Path, tmp_path: Path) -> None:
    """While a new version is mounted in one pod after the other."""
    old = mount(folder, STUDIO.format(weight=2))
    first = start(DARKROOM_TENANTS_FILE=str(old))
    eventually(lambda: weight(first) == 2, what="the old version")
    (tmp_path / "newer").mkdir()
    second = start(DARKROOM_TENANTS_FILE=str(mount(tmp_path / "newer", STUDIO.format(weight=3))))
    eventually(lambda: weight(second) == 3, what="the new version")

    seen = len(first.said("tenants_file_applied"))
    mount(tmp_path / "newer", STUDIO.format(weight=4))
    eventually(lambda: weight(second) == 4, what="another change")  # a round of the first courier later

    assert len(first.said("tenants_file_applied")) == seen == 1


def test_without_the_file_its_tenants_are_left_to_operations(start: Start, folder: Path) -> None:
    path = mount(folder, STUDIO.format(weight=2))
    courier = start(DARKROOM_TENANTS_FILE=str(path))
    eventually(lambda: weight(courier) == 2, what="the tenant in Redis")
    courier.stop()

    courier = start()
    eventually(lambda: _managed_by(courier) == (None, None), what="the release")
    tenant = studio(courier)
    assert tenant is not None
    assert not tenant.disabled


def _managed_by(courier: Part) -> Any:
    async def stored() -> Any:
        async with opened(courier.environment["DARKROOM_DATABASE_URL"]) as history:
            store = AccessStore(history)
            return await store.tenant("studio"), await store.key(BACKEND.key_id)

    return tuple(record and record.managed_by for record in asyncio.run(stored()))
