"""The message of a job: what Celery itself would have written, with the job's own id, event and trace in it."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
import redis
from celery import Celery
from darkroom import queues

EVENT = {
    "type": "dev.darkroom.job.requested",
    "id": "1",
    "data": {"input": {"prompt": 'darkroom-body "ü😀" \\ darkroom-job'}},
}
JOB_ID = "01a1f999-2b9e-7804-88d9-9fd5d3c06016"
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def built(**changes: Any) -> dict[str, Any]:
    """A message as it will be in the list, read back."""
    call: dict[str, Any] = {"job_id": JOB_ID, "pool": "flux", "event": EVENT, "traceparent": TRACEPARENT, **changes}
    template = queues.build_message(**call)
    message: dict[str, Any] = json.loads(f"{template.head}{JOB_ID}:1{template.tail}")
    return message


def body_of(message: dict[str, Any]) -> Any:
    return json.loads(base64.b64decode(message["body"]))


def test_a_message_has_what_celery_writes(redis_url: str, namespace: str) -> None:
    app = Celery(broker=redis_url, set_as_current=False)
    app.conf.broker_transport_options = queues.transport_options(namespace, "flux")
    app.send_task(
        queues.TASK_NAME, args=[EVENT], kwargs={}, task_id=JOB_ID, queue=queues.queue_name("flux"), ignore_result=True
    )
    app.close()
    client: Any = redis.Redis.from_url(redis_url)
    theirs = json.loads(client.lindex(f"{namespace}:celery:{queues.queue_name('flux')}", 0))
    client.close()
    ours = built(traceparent=None)
    assert ours.keys() == theirs.keys()
    assert body_of(ours) == body_of(theirs)
    for part, own in (("headers", {"argsrepr", "origin", "stamps", "stamped_headers"}), ("properties", {"reply_to"})):
        assert ours[part].keys() | own == theirs[part].keys() | own
        differing = {name for name in ours[part].keys() - own if ours[part][name] != theirs[part].get(name)}
        assert differing <= {"delivery_info", "delivery_tag"}


FUTURE_TRACEPARENT = "cc" + TRACEPARENT[2:] + '-"\\darkroom-event darkroom-body darkroom-job darkroom-delivery-tag'
"""Well-formed: what follows the flags of a later version is free."""


@pytest.mark.parametrize("traceparent", [TRACEPARENT, FUTURE_TRACEPARENT, None])
def test_a_message_carries_the_jobs_own_id_event_and_trace(traceparent: str | None) -> None:
    message = built(traceparent=traceparent)
    assert message["headers"]["id"] == message["headers"]["root_id"] == JOB_ID
    assert message["properties"]["correlation_id"] == JOB_ID
    assert message["properties"]["delivery_tag"] == f"{JOB_ID}:1"
    assert message["properties"]["delivery_info"] == {"exchange": "", "routing_key": "pool.flux"}
    assert message["headers"].get("traceparent") == traceparent
    assert body_of(message)[0] == [EVENT]


def test_messages_of_two_pools_are_kept_apart() -> None:
    assert built(pool="sd")["properties"]["delivery_info"]["routing_key"] == "pool.sd"
    assert built(pool="flux")["properties"]["delivery_info"]["routing_key"] == "pool.flux"
