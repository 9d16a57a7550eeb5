"""Receive webhooks: verify each one with the secret that is yours, and act once on each event.

WEBHOOK_SECRET=whsec_... python receive_webhooks.py 9000    (needs: pip install standardwebhooks)
"""

from __future__ import annotations

import json
import os
import sys
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from standardwebhooks import Webhook, WebhookVerificationError

LONGEST_BODY = 1024 * 1024

webhook = Webhook(os.environ["WEBHOOK_SECRET"])
seen: set[str] = set()  # in production: a column with a unique key, written in the transaction of the work


class Receiver(BaseHTTPRequestHandler):
    """Answers 204 to each event that it accepts, also to repeats."""

    def do_POST(self) -> None:
        length = int(self.headers["content-length"] or 0)
        if length > LONGEST_BODY:
            return self.answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        body = self.rfile.read(length)
        try:
            webhook.verify(body, dict(self.headers.items()))  # the signature, and that it is not older than 5 minutes
        except WebhookVerificationError:
            return self.answer(HTTPStatus.UNAUTHORIZED)
        if self.headers["webhook-id"] not in seen:
            seen.add(self.headers["webhook-id"])
            event = json.loads(body)
            print(event["type"], event["subject"], event["data"]["status"], flush=True)
        return self.answer(HTTPStatus.NO_CONTENT)

    def answer(self, status: HTTPStatus) -> None:
        self.send_response(status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Print the accepted events, and nothing else."""


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Receiver).serve_forever()
