"""The Celery app that Flower looks through: the workers' broker, with the prefix of this environment.

Flower's image holds `darkroom.ledger.address` and nothing else of darkroom, so the prefix of
`darkroom.ledger.queues.transport_options` stands here once more; a test compares the two. Without credentials it does
not start.
"""

from __future__ import annotations

import os

from celery import Celery
from darkroom.ledger.address import RedisAddress
from flower.views import monitor
from tornado import web

# Flower itself asks for no password there, and names of workers, pools and tasks are in it.
monitor.Metrics.get = web.authenticated(monitor.Metrics.get)

if ":" not in os.environ.get("FLOWER_BASIC_AUTH", ""):
    raise SystemExit("FLOWER_BASIC_AUTH is not set: Flower can end jobs, so it opens for nobody without a password")

try:
    address = RedisAddress.parse(os.environ["DARKROOM_REDIS_URL"])
except ValueError as error:
    raise SystemExit(f"DARKROOM_REDIS_URL=(hidden): is not a Redis address: {error}") from None
if address.socket is not None:
    raise SystemExit("DARKROOM_REDIS_URL=(hidden): Flower connects to Redis by redis:// or rediss:// only")
if missing := address.missing_files():
    raise SystemExit(f"DARKROOM_REDIS_URL=(hidden): the option {missing[0]} names a file or folder that is not there")

app = Celery("darkroom.flower")
app.conf.update(
    **address.broker_settings,
    broker_transport_options={
        "global_keyprefix": f"{os.environ['DARKROOM_NAMESPACE']}:celery:",
        "ack_emulation": False,  # Flower takes no tasks that would have to be restored
    },
    # Restoring tasks and expiring queues are scripts of kombu, and Flower's user in Redis may run none. Its queues go
    # when it stops; one that is killed leaves a few bytes.
    control_queue_expires=None,
    event_queue_expires=None,
    accept_content=["json"],
    task_serializer="json",
    event_serializer="json",
)
