"""The header fields of limits: `RateLimit-Policy` and `RateLimit`.

A response to a submission has an item for each limit of the tenant and of the key, whether the job was accepted or not.

https://datatracker.ietf.org/doc/draft-ietf-httpapi-ratelimit-headers/ (draft 10), a List of Strings with parameters
(RFC 9651).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from darkroom.access.limits import Quota

POLICY_FIELD, LIMIT_FIELD = "RateLimit-Policy", "RateLimit"

UNITS: Mapping[str, str] = {
    "waiting_jobs": "concurrent-requests",
    "waiting_bytes": "content-bytes",
    "images_per_day": "images",
    "images_per_month": "images",
    "gpu_seconds_per_day": "gpu-seconds",
    "gpu_seconds_per_month": "gpu-seconds",
}
"""The unit of each limit's quota; `requests`, the draft's default, for others. `images` and `gpu-seconds` are not among
the draft's units.
"""

_MAX_INTEGER = 999_999_999_999_999
"""The largest Integer of a structured field (RFC 9651, section 3.3.1)."""


def rate_limit_fields(quotas: Sequence[Quota]) -> dict[str, str]:
    """The header fields; none without a limit."""
    if not quotas:
        return {}
    return {
        POLICY_FIELD: ", ".join(
            _item(quota.policy, q=quota.most, qu=UNITS.get(quota.limit), w=quota.window_s) for quota in quotas
        ),
        LIMIT_FIELD: ", ".join(_item(quota.policy, r=quota.remaining, t=quota.reset_s) for quota in quotas),
    }


def _item(name: str, **parameters: int | str | None) -> str:
    """An Item with those parameters that are not None. The names of policies and units need no escapes."""
    given = [
        f';{key}="{value}"' if isinstance(value, str) else f";{key}={min(value, _MAX_INTEGER)}"
        for key, value in parameters.items()
        if value is not None
    ]
    return f'"{name}"{"".join(given)}'
