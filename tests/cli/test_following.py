"""`darkroom watch` against the real functions, through a proxy that cuts its connections."""

from __future__ import annotations

import json
import secrets
import subprocess
from functools import partial
from pathlib import Path

from tests.conftest import RedisServers
from tests.darkroom_command import TIMEOUT_S, command, environment
from tests.functions.api import serving
from tests.redis_server import RedisKind
from tests.tcp_proxy import CuttingProxy
from tests.waiting import eventually

CUTS = 6


def test_a_job_is_followed_over_cut_connections_and_each_message_is_printed_once(
    redis_servers: RedisServers, tmp_path: Path
) -> None:
    printed = tmp_path / "printed"
    redis_url = redis_servers(RedisKind.EMBEDDED).url
    with (
        serving(redis_url, f"t-{secrets.token_hex(8)}", tmp_path) as api,
        CuttingProxy(api.functions.port).running() as proxy,
        printed.open("wb") as output,
    ):
        job_id = api.jobs.submit()
        api.jobs.start(job_id)
        arguments = command("watch", job_id, "--json", "--url", f"http://{proxy.address}")
        watching = subprocess.Popen(arguments, env=environment(), stdout=output, stderr=subprocess.DEVNULL)
        try:
            for step in range(1, 2 * CUTS, 2):
                eventually(partial(has_seen, printed, step + 1), what=f"message {step + 1}")
                api.jobs.progress(job_id, step=step, steps=2 * CUTS)
                proxy.cut()
                api.jobs.progress(job_id, step=step + 1, steps=2 * CUTS)
            api.jobs.complete(job_id)
            assert watching.wait(TIMEOUT_S) == 0
        finally:
            watching.kill()
            watching.wait()
        assert proxy.cuts >= CUTS
        assert numbers(printed) == list(range(2, api.jobs.end_seq(job_id) + 1))


def numbers(printed: Path) -> list[int]:
    """The numbers of the messages printed so far."""
    whole, _, _ = printed.read_text().rpartition("\n")
    return [each["seq"] for each in map(json.loads, whole.splitlines()) if "seq" in each]


def has_seen(printed: Path, number: int) -> bool:
    return number in numbers(printed)
