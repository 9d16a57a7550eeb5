"""The Celery app of Flower: the workers' queue broker, with the prefix of this environment.

Flower's image contains only `darkroom.ledger.address` of darkroom, so the prefix of
`darkroom.ledger.queues.transport_options` is repeated here; a test compares the two. It does not start without
credentials.
"""

from __future__ import annotations

import os

from celery import Celery
from darkroom.ledger.address import RedisAddress
from flower.views import monitor
from tornado import web

# Flower requires no password for its metrics, which contain the names of workers, pools and tasks.
monitor.Metrics.get = web.authenticated(monitor.Metrics.get)

if ":" not in os.environ.get("FLOWER_BASIC_AUTH", ""):
    raise SystemExit("FLOWER_BASIC_AUTH is not set: Flower can terminate jobs, so it requires a password")

try:
    address = RedisAddress.parse(os.environ["DARKROOM_REDIS_URL"])
except ValueError as error:
    raise SystemExit(f"DARKROOM_REDIS_URL=(hidden): is not a Redis address: {error}") from None
if address.socket is not None:
    raise SystemExit("DARKROOM_REDIS_URL=(hidden): Flower connects to Redis by redis:// or rediss:// only")
if missing := address.missing_files():
    raise SystemExit(f"DARKROOM_REDIS_URL=(hidden): the option {missing[0]} names a file or folder that does not exist")

app = Celery("darkroom.flower")
app.conf.update(
    **address.broker_settings,
    broker_transport_options={
        "global_keyprefix": f"{os.environ['DARKROOM_NAMESPACE']}:celery:",
        "ack_emulation": False,  # Flower consumes no tasks that would have to be restored
    },
    # kombu restores tasks and expires queues by scripts, which Flower's user in Redis may not run. Its queues are
    # deleted when it stops; a killed Flower leaves a few bytes.
    control_queue_expires=None,
    event_queue_expires=None,
    accept_content=["json"],
    task_serializer="json",
    event_serializer="json",
)
