"""The queue of a pool and the message of a job, as Celery knows them.

`submit` builds a message here; `lua/prelude.lua` pushes it; a Celery worker of the pool, ours or a stock one with the
same broker settings, takes it. The bytes come from Celery's and kombu's own code, so Flower and `celery inspect` read
them.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from functools import cache
from typing import Any

from celery import Celery
from kombu.connection import Connection
from kombu.serialization import dumps
from kombu.transport.virtual import Channel

from darkroom.events import REQUESTED

TASK_NAME = "darkroom.run"
"""The one task of a worker: its single argument is the CloudEvent that asked for the job, structured."""

VISIBILITY_TIMEOUT_S = 24 * 3600
"""Only a janitor: recovery follows the lease, and a redelivered message is a hint that `claim` checks."""

CANARY = "canary-"
"""Begins the id of a message that stands for no job: it asks whether somebody takes messages."""

_TAG = "darkroom-delivery-tag"
"""Stands where the delivery tag of a push will be; the script writes `<job>:<push>` there."""

_JOB, _EVENT, _BODY, _TRACEPARENT = "darkroom-job", "darkroom-event", "darkroom-body", "darkroom-traceparent"
"""Stand in a form where a message has its own. None of them is in Base64 or in a job's id."""


@dataclass(frozen=True)
class MessageTemplate:
    """A message cut in two around its delivery tag."""

    head: str
    tail: str


def queue_name(pool: str) -> str:
    """The Celery queue of a pool."""
    return f"pool.{pool}"


def transport_options(namespace: str, pool: str) -> dict[str, Any]:
    """What `broker_transport_options` of every Celery app on this broker must say.

    The prefix covers lists and channels; `unacked` is each pool's own, so that one pool's janitor never touches
    another's.
    """
    return {
        "global_keyprefix": f"{namespace}:celery:",
        "visibility_timeout": VISIBILITY_TIMEOUT_S,
        "unacked_key": f"unacked.{pool}",
        "unacked_index_key": f"unacked_index.{pool}",
        "unacked_mutex_key": f"unacked_mutex.{pool}",
        "queue_order_strategy": "priority",
    }


def build_message(*, job_id: str, pool: str, event: dict[str, Any], traceparent: str | None) -> MessageTemplate:
    """One task call with the job id as its Celery task id, as `apply_async` on the Redis transport would write it."""
    form = _form(pool, traced=traceparent is not None)
    body = f"{form.before_event}{_encode(event)}{form.after_event}"
    marks = {
        _BODY: base64.b64encode(body.encode()).decode(),
        _JOB: job_id,
        _TRACEPARENT: _encode(traceparent or "")[1:-1],  # the last, since a caller's may hold any of these words
    }
    head, tail = form.head, form.tail
    for mark, value in marks.items():
        head, tail = head.replace(mark, value), tail.replace(mark, value)
    return MessageTemplate(head, tail)


@dataclass(frozen=True)
class _Form:
    """A message of a pool with marks where one differs from another, and its body around the event."""

    head: str
    tail: str
    before_event: str
    after_event: str


@cache
def _form(pool: str, *, traced: bool) -> _Form:
    """What Celery and kombu write for a pool: made once, since making it takes longer than all else of a submission."""
    app = Celery("darkroom.submit", broker="memory://", set_as_current=False)
    channel: Channel = Connection("memory://").channel()
    task = app.amqp.as_task_v2(
        _JOB,
        TASK_NAME,
        args=[_EVENT],
        kwargs={},
        argsrepr=f"[<{REQUESTED} {_JOB}>]",
        kwargsrepr="{}",
        ignore_result=True,
        create_sent_event=False,
        origin="darkroom",
    )
    headers = task.headers | ({"traceparent": _TRACEPARENT} if traced else {})
    content_type, content_encoding, body = dumps(task.body, "json")
    message = channel.prepare_message(body, 0, content_type, content_encoding, headers, task.properties)
    _, body_encoding = channel.encode_body(message["body"], "base64")
    message["body"] = _BODY
    message["properties"] |= {
        "body_encoding": body_encoding,
        "delivery_mode": 2,
        "delivery_info": {"exchange": "", "routing_key": queue_name(pool)},
        "delivery_tag": _TAG,
    }
    head, tail = _encode(message).split(_TAG)
    before_event, after_event = body.split(_encode(_EVENT))
    return _Form(head, tail, before_event, after_event)


_encode = json.JSONEncoder(separators=(",", ":")).encode
