"""The Broker: one post of an event to `K_SINK`, and its response."""

from __future__ import annotations

from dataclasses import dataclass

import httpx
from darkroom import logs
from darkroom.cloudevents.event import Event
from darkroom.errors import SinkUnavailable
from darkroom.settings import SinkSettings
from darkroom.sinks import authorization

ANSWER_BYTES = 1024
"""The part of a sink's response that is read; Knative stores as much of a subscriber's response."""

_log = logs.logger(__name__)


@dataclass(frozen=True)
class Broker:
    """The Broker of `settings`; `client` has the timeout of a post."""

    client: httpx.AsyncClient
    settings: SinkSettings

    async def post(self, event: Event) -> tuple[int, str]:
        """The status of the Broker's response, and the beginning of its text. Raises SinkUnavailable without one."""
        sink = self.settings.sink
        if sink is None:
            raise SinkUnavailable("K_SINK is not set: there is no sink to post to", retry_after=30)
        headers, body = event.encode_binary()
        text = b""
        try:
            headers |= authorization(self.settings.sink_token_file)
            async with self.client.stream("POST", sink, headers=headers, content=body) as response:
                async for chunk in response.aiter_bytes():
                    text += chunk
                    if len(text) > ANSWER_BYTES:
                        break
        except (httpx.HTTPError, OSError) as error:
            _log.warning("sink_away", event_id=event.id, error=type(error).__name__)
            raise SinkUnavailable(f"the sink did not respond: {type(error).__name__}", retry_after=5) from None
        return response.status_code, text[:ANSWER_BYTES].decode(errors="replace")
