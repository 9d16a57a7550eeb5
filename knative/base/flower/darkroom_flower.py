"""The Celery app that Flower looks through: the workers' broker, with the prefix of this environment.

Flower's image holds nothing of darkroom, so what `darkroom.queues.transport_options` says stands here once more; a test
compares the two. Without credentials it does not start.
"""

from __future__ import annotations

import os

from celery import Celery

if ":" not in os.environ.get("FLOWER_BASIC_AUTH", ""):
    raise SystemExit("FLOWER_BASIC_AUTH is not set: Flower can end jobs, so it opens for nobody without a password")

app = Celery("darkroom.flower", broker=os.environ["DARKROOM_REDIS_URL"])
app.conf.update(
    broker_transport_options={"global_keyprefix": f"{os.environ['DARKROOM_NAMESPACE']}:celery:"},
    accept_content=["json"],
    task_serializer="json",
    event_serializer="json",
)
