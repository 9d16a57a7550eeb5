"""The observer of a chaos run: deliveries that count as out of order."""

from __future__ import annotations

import httpx
import pytest
from darkroom_loadtest.chaos.observer import Observer, SinkMode

from tests.ports import free_port


@pytest.mark.parametrize(
    ("sequence", "disordered"),
    [
        pytest.param([1, 2, 2, 5], set(), id="in order, with a repeat"),
        pytest.param([1, 5, 2, 6], {"a"}, id="an earlier event after a later one"),
    ],
)
async def test_a_job_is_disordered_if_the_sink_receives_an_earlier_event_after_a_later_one(
    sequence: list[int], disordered: set[str]
) -> None:
    port = free_port()
    observer = Observer("http://127.0.0.1:1", path="/", socket_jobs=1)
    await observer.serve_sink(port)
    await observer.fail(SinkMode.DROPS)
    try:
        async with httpx.AsyncClient(trust_env=False) as courier:
            for seq in sequence:
                event = {"job_id": "a", "event_id": f"a:{seq}", "seq": seq, "state": "running"}
                answer = await courier.post(f"http://127.0.0.1:{port}/", json=event)
                assert answer.status_code == 202
    finally:
        await observer.aclose()
    assert observer.disordered == disordered
