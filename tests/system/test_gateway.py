"""`darkroom up` with its gateway: synchronous requests with a real worker and a real picture."""

from __future__ import annotations

import io

import httpx
import pytest
from PIL import Image

from tests.functions.api import JOBS
from tests.gateway.running import start_program
from tests.system.running import System

SMALL = {"width": 64, "height": 64, "steps": 1}


@pytest.fixture(autouse=True)
def gateway() -> None:
    start_program()


def test_a_synchronous_request_returns_the_picture(system: System) -> None:
    answer = system.shell(
        f"curl -sS -f -X POST {system.url}/sync/sd -H 'Accept: image/png' -H 'Content-Type: application/json'"
        """ -d '{"prompt": "a lighthouse at dusk", "width": 64, "height": 64, "steps": 1}' -o picture.png"""
    )
    assert answer.returncode == 0, answer.stderr
    with Image.open(system.folder / "picture.png") as picture:
        assert (picture.format, picture.size) == ("PNG", (64, 64))


def test_a_synchronous_request_returns_the_job_with_links_to_the_gateway(system: System) -> None:
    with httpx.Client(base_url=system.url, timeout=120, trust_env=False) as client:
        answer = client.post("/sync/sd", json=SMALL)
        assert answer.status_code == 200, answer.text
        job = answer.json()
        assert job["state"] == "completed"
        assert job == client.get(answer.headers["location"]).json() | {"output_paths": job["output_paths"]} | {
            "artifacts": job["artifacts"]
        }
        (link,) = job["output_paths"]
        assert link.startswith(f"{system.url}/artifacts/")
        picture = client.get(link)
        assert Image.open(io.BytesIO(picture.content)).size == (64, 64)
        waited = client.post(JOBS, json={"model": "sd", **SMALL}, headers={"Prefer": "wait=60"})
        assert (waited.status_code, waited.headers["preference-applied"]) == (200, "wait=60")


def test_only_the_gateway_listens_on_the_public_port(system: System) -> None:
    assert system.processes.keys() >= {"gateway", "functions"}
    assert httpx.get(f"{system.url}/metrics", trust_env=False).status_code == 404
