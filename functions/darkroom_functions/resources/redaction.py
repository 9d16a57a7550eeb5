"""Redaction of secrets in the events that a response shows.

`undelivered` shows events of any source for debugging. A secret is recognised by its name (`password`, `apikey`), by
its form (a signing secret, a bearer token), or by its position in a URL: the user part, the query (which signs links to
artifacts), and in the URL of a webhook also the path.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

HIDDEN = "(hidden)"

_SECRET_NAME = re.compile(
    r"secret|passw|passphrase|token|authori[sz]ation|credential|cookie|signature|session"
    r"|darkroomproof|(?:api|access|private|link|signing|encryption|webhook)[-_]?key",
    re.IGNORECASE,
)
_HOOK_NAME = re.compile("hook|callback", re.IGNORECASE)

# A signing secret of Standard Webhooks, what follows the scheme of an Authorization header, a JSON Web Token.
_SECRET_TEXT = re.compile(
    r"\bwhs(?:ec|k)_[\w+/=-]+|\b(?:Bearer|Basic)\s+[\w+/=.~-]{8,}|\beyJ[\w-]{8,}\.[\w-]+\.[\w-]*", re.IGNORECASE
)
_ADDRESS = re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s\"'<>\\]+", re.IGNORECASE)


def redacted(value: Any, *, name: str = "") -> Any:
    """The JSON value with its secrets hidden; `name` is the name of its member."""
    if value is not None and _SECRET_NAME.search(name):
        return HIDDEN
    if isinstance(value, Mapping):
        return {redacted(key): redacted(item, name=key) for key, item in value.items()}
    if isinstance(value, list):
        return [redacted(item, name=name) for item in value]
    if isinstance(value, str):
        shown = _ADDRESS.sub(lambda found: _address(found[0], is_hook=bool(_HOOK_NAME.search(name))), value)
        return _SECRET_TEXT.sub(HIDDEN, shown)
    return value


def _address(text: str, *, is_hook: bool) -> str:
    """Scheme, host, port and, except for a webhook, the path."""
    try:
        parts = urlsplit(text)
    except ValueError:
        return HIDDEN
    host = parts.netloc.rpartition("@")[2]
    user = f"{HIDDEN}@" if "@" in parts.netloc else ""
    path = f"/{HIDDEN}" if is_hook and parts.path.strip("/") else parts.path
    query = f"?{HIDDEN}" if parts.query else ""
    fragment = f"#{HIDDEN}" if parts.fragment else ""
    return f"{parts.scheme}://{user}{host}{path}{query}{fragment}"
