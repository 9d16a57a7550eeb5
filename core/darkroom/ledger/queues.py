"""The queue of a pool and the message of a job, as Celery knows them.

`submit` builds a message here; `lua/prelude.lua` pushes it; a Celery worker of the pool, ours or a stock one with the
same broker settings, receives it. Celery's and kombu's own code creates the bytes, so Flower and `celery inspect` can
read them.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Any

from celery import Celery
from kombu.connection import Connection
from kombu.serialization import dumps
from kombu.transport.virtual import Channel

from darkroom.cloudevents.event import REQUESTED
from darkroom.ledger.keys import QUEUE_PREFIX, Keys

TASK_NAME = "darkroom.run"
"""The one task of a worker. It has no arguments: the task's id is the job's, and the job's record has its input. The
header `cloudEvent` has the attributes of the event that requested the job, whose data is in the record, too."""

VISIBILITY_TIMEOUT_S = 24 * 3600
"""For cleanup alone: recovery follows the lease, and a redelivered message is a hint that `claim` checks."""

CANARY = "canary-"
"""Prefix of the id of a message that belongs to no job: it tests whether a worker receives messages."""

_TAG = "darkroom-delivery-tag"
"""Placeholder of the delivery tag of a push; the script writes `<job>:<push>` there."""

_ASSUMED: tuple[object, ...] = (None, 0, {}, [None, None])
"""Values of headers that a worker assumes where they are absent."""

_JOB, _TRACEPARENT, _EVENT = "darkroom-job", "darkroom-traceparent", "darkroom-event"
"""Placeholders in a template of what each message has its own of."""


class Foreign(StrEnum):
    """Why a message is not one that `submit` writes. Workers drop such messages, and report how many they dropped."""

    NOT_JSON = "not JSON"
    NOT_A_MESSAGE = "not a Celery message"
    OTHER_TASK = "another task"
    OTHER_ENCODING = "another content type or encoding"
    BODY = "a body that is not a call of the task"
    HEADERS = "a time, an expiry, a time limit or a trace that no job's message has"
    COMMAND = "no command of Celery's"
    REFUSED = "refused by Celery"


@dataclass(frozen=True)
class MessageTemplate:
    """A message cut in two around its delivery tag."""

    head: str
    tail: str


def queue_name(pool: str) -> str:
    """The Celery queue of a pool."""
    return f"{QUEUE_PREFIX}{pool}"


def is_queue(name: str) -> bool:
    """Whether that is the queue of a pool, and not one of Celery's own."""
    return name.startswith(QUEUE_PREFIX)


def transport_options(namespace: str, pool: str) -> dict[str, Any]:
    """The `broker_transport_options` of every Celery app on this broker.

    The prefix covers lists and channels; `unacked` is each pool's own, so that the cleanup of one pool never touches
    another.
    """
    keys = Keys(namespace)
    return {
        "global_keyprefix": keys.celery_prefix,
        "visibility_timeout": VISIBILITY_TIMEOUT_S,
        "unacked_key": keys.unacked(pool).removeprefix(keys.celery_prefix),
        "unacked_index_key": f"unacked_index.{pool}",
        "unacked_mutex_key": f"unacked_mutex.{pool}",
        "queue_order_strategy": "priority",
    }


def build_message(
    *, job_id: str, pool: str, traceparent: str | None, event: Mapping[str, str] | None = None
) -> MessageTemplate:
    """One task call with the job id as its Celery task id, as `apply_async` on the Redis transport would write it.

    `event`: the attributes of the CloudEvent that requested the job; a canary has none.
    """
    template = _template(pool, traced=traceparent is not None, is_asked=event is not None)
    attributes = {"specversion": "1.0", "type": REQUESTED, **(event or {}), "subject": job_id}
    # Values of callers come last, since they may contain a placeholder; no text in JSON has one between quotes.
    values = {_JOB: job_id, _TRACEPARENT: _encode(traceparent or "")[1:-1], f'"{_EVENT}"': _encode(attributes)}
    head, tail = template.head, template.tail
    for placeholder, text in values.items():
        head, tail = head.replace(placeholder, text), tail.replace(placeholder, text)
    return MessageTemplate(head, tail)


def foreign(raw: bytes) -> Foreign | None:
    """Why an entry of a pool's queue is not a job's message, or None if it is one."""
    try:
        message = json.loads(raw)
    except (ValueError, RecursionError):
        return Foreign.NOT_JSON
    return foreign_message(message)


def foreign_message(message: object) -> Foreign | None:
    """The same for a message that was read as JSON."""
    if not isinstance(message, Mapping):
        return Foreign.NOT_A_MESSAGE
    headers, properties = message.get("headers"), message.get("properties")
    if not isinstance(headers, Mapping) or not isinstance(properties, Mapping):
        return Foreign.NOT_A_MESSAGE
    if not isinstance(properties.get("delivery_tag"), str) or not isinstance(properties.get("delivery_info"), Mapping):
        return Foreign.NOT_A_MESSAGE
    if headers.get("task") != TASK_NAME or not isinstance(headers.get("id"), str):
        return Foreign.OTHER_TASK
    encodings = message.get("content-type"), message.get("content-encoding"), properties.get("body_encoding")
    if encodings != _ENCODINGS or headers.get("compression") is not None:
        return Foreign.OTHER_ENCODING
    if (
        headers.get("eta") is not None
        or headers.get("expires") is not None
        or not _are_limits(headers.get("timelimit"))
        or not isinstance(headers.get("traceparent"), str | None)
    ):
        return Foreign.HEADERS
    return None if _is_call(message.get("body")) else Foreign.BODY


def foreign_command(message: object) -> Foreign | None:
    """Why what came over the workers' control channel is not a command, or None if it is one.

    Read as JSON, as kombu's `Mailbox` publishes it. Celery decides whether the command exists.
    """
    match message:
        case {
            "headers": Mapping() as headers,
            "properties": {"body_encoding": "base64", "delivery_tag": str(), "delivery_info": Mapping()},
            "body": str(body),
        }:
            command = _decoded(body)
        case _:
            return Foreign.NOT_A_MESSAGE
    if not isinstance(headers.get("clock"), int | None):
        return Foreign.HEADERS
    match command:
        case {"method": str(), **rest} if all(isinstance(rest.get(name), kind) for name, kind in _COMMAND.items()):
            return None
        case _:
            return Foreign.COMMAND


_COMMAND = {
    "arguments": Mapping | None,
    "destination": list | None,
    "pattern": str | None,
    "matcher": str | None,
    "reply_to": Mapping | None,
    "ticket": str | None,
}
"""The fields of a command beside its method, each with its type."""


def _are_limits(given: object) -> bool:
    """Whether `given` is a hard and a soft time limit, or none."""
    match given:
        case None | [int() | float() | None, int() | float() | None]:
            return True
        case _:
            return False


def _is_call(body: object) -> bool:
    """Whether `body` is that of a task call, in Base64: no keyword arguments, no calls that follow. Messages of records
    before version 3 have an argument.
    """
    call = _decoded(body)
    match call:
        case [[] | [_], dict(keywords), dict(following)]:
            return not keywords and not any(following.values())
        case _:
            return False


def _decoded(body: object) -> object:
    """The JSON value of a body in Base64; None where there is none."""
    try:
        return json.loads(base64.b64decode(body, validate=True)) if isinstance(body, str) else None
    except (binascii.Error, ValueError, RecursionError):
        return None


_ENCODINGS = ("application/json", "utf-8", "base64")


@cache
def _template(pool: str, *, traced: bool, is_asked: bool) -> MessageTemplate:
    """The template of a pool's messages, as Celery and kombu write it. Created once: that takes longer than the rest of
    a submission.
    """
    app = Celery("darkroom.submit", broker="memory://", set_as_current=False)
    channel: Channel = Connection("memory://").channel()
    task = app.amqp.as_task_v2(
        _JOB,
        TASK_NAME,
        args=[],
        kwargs={},
        argsrepr="[]",
        kwargsrepr="{}",
        ignore_result=True,
        create_sent_event=False,
        origin="darkroom",
    )
    # Headers that a worker assumes are left out: each waiting job has a message in its record.
    headers = {name: value for name, value in task.headers.items() if value not in _ASSUMED}
    if traced:
        headers["traceparent"] = _TRACEPARENT
    if is_asked:
        headers["cloudEvent"] = _EVENT
    args, kwargs, _ = task.body
    content_type, content_encoding, body = dumps((args, kwargs, {}), "json")
    message = channel.prepare_message(body, 0, content_type, content_encoding, headers, task.properties)
    message["body"], body_encoding = channel.encode_body(message["body"], "base64")
    message["properties"] |= {
        "body_encoding": body_encoding,
        "delivery_mode": 2,
        "delivery_info": {"exchange": "", "routing_key": queue_name(pool)},
        "delivery_tag": _TAG,
    }
    head, tail = _encode(message).split(_TAG)
    return MessageTemplate(head, tail)


_encode = json.JSONEncoder(separators=(",", ":")).encode
