"""The capacity model: its arithmetic on simple numbers, and the tables of the documentation."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from darkroom_loadtest.profiling import capacity
from darkroom_loadtest.profiling.capacity import PlannedLoad, UnitCosts, most_of_one_redis, needs
from darkroom_worker.child import progress

EASY = UnitCosts(
    submit_functions_us=300,
    run_functions_us=400,
    run_courier_us=1400,
    run_worker_us=0,
    submit_redis_us=100,
    run_redis_us=400,
    step_redis_us=10,
    call_us=0,
    observe_worker_us=0,
    message_us=70,
    pending_bytes=5000,
    ended_bytes=6000,
    log_bytes=2000,
    published_bytes=100,
    file_bytes=6000,
    step_file_bytes=200,
    worker_connections=8,
    redis_gb=10,
)
LOAD = PlannedLoad(jobs_per_s=1000, engine_s=7, steps=20, sockets=2, wait_s=3)


def test_the_needs_of_a_load_are_the_sum_of_its_parts() -> None:
    taken = needs(LOAD, EASY)
    assert (taken.functions, taken.couriers, taken.workers) == (1, 2, 10_000)
    assert taken.results == 5  # 23 messages to each of 2 sockets
    assert taken.sockets == 20_000
    assert taken.redis_cores == pytest.approx(0.7)
    assert taken.redis_gb == pytest.approx(4 * 86.4 + (2 + 1.9) * 3.6 + 0.05)  # 19 published steps beyond the first
    assert taken.redis_connections == 10_000 * 8 + 8 * 32
    assert taken.redis_file_mb_per_s == 10


def test_the_scarcest_resource_defines_the_number_of_redis_servers() -> None:
    taken = needs(LOAD, EASY)
    assert (taken.redis_servers, taken.bends_at) == (45, "memory")
    roomy = replace(EASY, redis_gb=1000)
    assert (needs(LOAD, roomy).redis_servers, needs(LOAD, roomy).bends_at) == (9, "connections")
    alone = replace(roomy, worker_connections=0)
    assert (needs(LOAD, alone).redis_servers, needs(LOAD, alone).bends_at) == (1, "processor")


@pytest.mark.parametrize("by", ["processor", "memory", "connections"])
def test_one_redis_suffices_up_to_its_capacity(by: str) -> None:
    most = most_of_one_redis(PlannedLoad(), UnitCosts())[by]
    uses = {
        "processor": lambda taken: taken.redis_cores / capacity.BUSY,
        "memory": lambda taken: taken.redis_gb / capacity.MEMORY_SHARE / UnitCosts().redis_gb,
        "connections": lambda taken: taken.redis_connections / capacity.MAX_CLIENTS,
    }
    assert uses[by](needs(replace(PlannedLoad(), jobs_per_s=most), UnitCosts())) == pytest.approx(1, rel=0.03)


def test_each_worker_is_observed_every_tick_and_renews_its_entry() -> None:
    idle = replace(EASY, submit_redis_us=0, run_redis_us=0, step_redis_us=0)
    looked_at = needs(LOAD, replace(idle, observe_worker_us=2))
    assert looked_at.redis_cores == pytest.approx(0.02)
    assert looked_at.observe_ms == pytest.approx(20)
    alive = needs(LOAD, replace(idle, call_us=10))
    assert alive.redis_cores == pytest.approx(10_000 * 10e-6 * (1 + capacity.BUSY) / 5 + 10 * 10e-6)


def test_the_model_uses_the_times_of_the_ledger_and_the_worker(repository: Path) -> None:
    prelude = (repository / "core" / "darkroom" / "ledger" / "lua" / "prelude.lua").read_text()
    for name, hours in (("RECORD_TTL_MS", capacity.RECORD_KEPT_H), ("LOG_TTL_MS", capacity.LOG_RETENTION_H)):
        (factors,) = re.findall(rf"^local {name} = ([\d *]+?) *(?:--.*)?$", prelude, re.MULTILINE)
        assert math.prod(int(factor) for factor in factors.split("*")) == 1000 * capacity.HOUR_S * hours
    assert progress.LOG_PROGRESS_EVERY_S == 1 / capacity.PUBLISHED_PER_S


def test_the_tables_of_the_document_are_those_of_the_model(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = (repository / "docs" / "capacity.md").read_text()
    shown = re.findall(r"```\n\$ make capacity(?: ARGS=\"(.*)\")?\n(.*?)```", document, re.DOTALL)
    assert len(shown) >= 1
    for arguments, text in shown:
        assert capacity.main(arguments.split()) == 0
        assert capsys.readouterr().out.splitlines() == text.splitlines()
