"""Commands of existing clients and of the README, run against a system: only address and id change."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.clients.documents import run_javascript_client, run_python_client
from tests.system.running import System

FLUX = "curl -X POST http://localhost:8000/flux"
FLUX_STATUS = "curl -X GET http://localhost:8000/tasks/task-uuid"

CREATE = """\
curl -X POST http://localhost:8001/api/v1/generation-jobs/ \\
  -H "Content-Type: application/json" \\
  -d '{
    "user_id": "your-user-id",
    "job_type": "image",
    "prompt": "a beautiful sunset over mountains",
    "width": 832,
    "height": 1216
  }'"""
STATUS = "curl http://localhost:8001/api/v1/generation-jobs/{job_id}"
CANCEL = "curl -X POST http://localhost:8001/api/v1/generation-jobs/{job_id}/cancel"

SMALL = {"model": "sd", "width": 64, "height": 64}


def typed(system: System, line: str, job_id: str = "") -> dict[str, Any]:
    """Run a command against the running system; returns its JSON output."""
    line = line.replace("http://localhost:8000", system.url).replace("http://localhost:8001", system.url)
    line = line.replace("task-uuid", job_id).replace("{job_id}", job_id)
    done = system.shell(line)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_a_client_that_knows_celery_submits_and_follows_a_flux_task(system: System) -> None:
    answer = typed(system, FLUX)
    assert answer["status"] == "pending"
    system.wait_for(answer["task_id"], "completed")
    assert typed(system, FLUX_STATUS, answer["task_id"]) == {"task_id": answer["task_id"], "status": "SUCCESS"}


def test_a_client_that_knows_generation_jobs_creates_reads_and_cancels_one(system: System) -> None:
    job_id = typed(system, CREATE)["job_id"]
    job = typed(system, STATUS, job_id)
    assert (job["job_id"], job["celery_task_id"], job["user_id"]) == (job_id, job_id, "your-user-id")
    assert (job["width"], job["height"], job["prompt"]) == (832, 1216, "a beautiful sunset over mountains")
    job = system.wait_for(job_id, "completed")
    picture = httpx.get(job["output_paths"][0], trust_env=False)
    assert picture.content.startswith(b"\x89PNG")

    job_id = typed(system, CREATE)["job_id"]
    assert typed(system, CANCEL, job_id)["receipt"] in {"dequeued", "interrupting"}
    assert system.wait_for(job_id, "cancelled", "completed")["state"] == "cancelled"
    assert typed(system, STATUS, job_id)["status"] == "cancelled"


@pytest.mark.parametrize("language", ["javascript", "python"])
def test_an_existing_client_follows_a_real_job_to_its_end(system: System, language: str) -> None:
    job_id = system.submit(**SMALL)
    run_client = {"javascript": run_javascript_client, "python": run_python_client}[language]
    ran = run_client(system.url.replace("http", "ws"), job_id)
    assert (ran.status, ran.errors) == (0, "")
    content_id = system.job(job_id)["content_id"]
    assert f"ontent ID: {content_id}" in ran.output


def test_an_output_path_can_be_fetched_by_its_link_alone(system: System) -> None:
    job_id = system.submit(**SMALL)
    job = system.wait_for(job_id, "completed")
    done = system.shell(f"curl --fail --silent --show-error -o fetched.png '{job['output_paths'][0]}'")
    assert done.returncode == 0, done.stderr
    assert (system.folder / "fetched.png").stat().st_size == job["artifacts"][0]["size"]


def readme_blocks(repository: Path) -> list[str]:
    """The shell commands of the README, block by block."""
    return re.findall(r"```sh\n(.*?)```", (repository / "README.md").read_text(), re.DOTALL)


def test_the_curl_lines_of_the_readme_are_accepted_and_give_pictures(system: System, repository: Path) -> None:
    lines = [
        line
        for block in readme_blocks(repository)
        for line in re.split(r"\n(?=curl)", block.strip())
        if line.startswith("curl")
    ]
    assert len(lines) == 4
    for line in lines:
        done = system.shell(line.replace("http://localhost:8000", system.url))
        head, _, body = done.stdout.replace("\r\n", "\n").partition("\n\n")
        assert head.startswith("HTTP/1.1 202")
        system.wait_for(json.loads(body)["job_id"], "completed")


def test_the_submit_line_of_the_readme_gives_a_picture(system: System, repository: Path) -> None:
    (line,) = (block.strip() for block in readme_blocks(repository) if "darkroom submit" in block)
    _, *arguments = shlex.split(line)
    done = system.run(*arguments)
    assert done.returncode == 0, done.stderr
    assert (system.folder / done.stdout.split()[0]).read_bytes().startswith(b"\x89PNG")
