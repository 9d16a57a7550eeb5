"""`darkroom list` and `darkroom delete`: list a server's jobs and delete them."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any

from darkroom_cli.client import Client
from darkroom_cli.exits import DONE
from darkroom_cli.terminal.output import Output

PROMPT_CHARS = 60
"""Characters of a prompt that fit a terminal's line beside the other columns."""


def list_jobs(client: Client, output: Output, *, filters: Mapping[str, str], limit: int) -> int:
    """Print one line per job, newest first."""
    found = False
    for job in islice(client.jobs(filters), limit):
        found = True
        output.record(job)
        output.result(f"{job['id']}  {job['created_at']}  {job['state']:<9}  {job['model']}  {_prompt(job)}")
    if not found:
        output.info("No jobs match." if filters else "There are no jobs.")
    return DONE


def delete(client: Client, job_id: str, output: Output) -> int:
    """Delete the job and its pictures."""
    client.delete(job_id)
    output.record({"id": job_id, "deleted": True})
    output.result(f"The job {job_id} is deleted.")
    return DONE


def _prompt(job: Mapping[str, Any]) -> str:
    prompt = " ".join(str(job["prompt"] or "").split())
    return prompt if len(prompt) <= PROMPT_CHARS else prompt[: PROMPT_CHARS - 1] + "…"
