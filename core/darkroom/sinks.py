"""The credential for the sink, in clusters where Knative's OIDC authentication is on.

A SinkBinding mounts a token for the sink's audience into its subject, and replaces it before it expires.
https://knative.dev/docs/eventing/features/sender-identity/
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def authorization(token_file: Path | None) -> Mapping[str, str]:
    """The header of a post to the sink; empty where no file is configured. Raises OSError if it cannot be read."""
    if token_file is None:
        return {}
    return {"authorization": f"Bearer {token_file.read_text().strip()}"}
