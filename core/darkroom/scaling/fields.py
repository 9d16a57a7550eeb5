"""The names of the fields of a `WorkerPool`'s specification, and the detection of unknown fields.

The API server would drop an unknown field silently, so the CRD preserves them
(`x-kubernetes-preserve-unknown-fields`), and each reader of a specification rejects them: the operator, and
`darkroom replay`. A test holds the names equal to the CRD's. The fields below `template` are those of a Deployment's
pods; the API server validates them when the operator applies the Deployment.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from darkroom.errors import FieldError

FIELDS: Mapping[str, tuple[str, ...]] = {
    "": (
        *("models", "template", "minReplicas", "maxReplicas", "target", "scaleUp", "scaleDown", "buffer", "schedule"),
        *("paused", "gpu", "rollout", "drainSeconds", "graceSeconds"),
    ),
    "template": ("metadata", "spec"),
    "target": ("jobsPerReplica", "waitSeconds"),
    "scaleUp": ("maxStep", "waitSeconds"),
    "scaleDown": ("idleSeconds", "maxStep"),
    "schedule[]": ("start", "end", "timezone", "replicas"),
    "gpu": ("count", "resourceName"),
    "rollout": ("maxSurge", "maxUnavailable"),
}
"""The names of each object in the specification, by its path."""


def unknown(spec: Mapping[str, Any]) -> list[FieldError]:
    """A FieldError for each unknown field."""
    objects = ((where, value, known) for path, known in FIELDS.items() for where, value in _at(spec, path))
    return [fault for where, value, known in objects for fault in _in(where, value, known)]


def _at(spec: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    name, is_list = path.removesuffix("[]"), path.endswith("[]")
    if not path:
        yield "", spec
    elif not is_list:
        yield f"{name}.", spec.get(name)
    elif isinstance(items := spec.get(name), list | tuple):
        for index, item in enumerate(items):
            yield f"{name}[{index}].", item


def _in(where: str, value: Any, known: tuple[str, ...]) -> Iterator[FieldError]:
    if not isinstance(value, Mapping):
        return  # the reader of the field rejects its type
    for name in value:
        if name not in known:
            close = get_close_matches(str(name), known, n=1)
            hint = f", did you mean {close[0]}?" if close else ""
            yield FieldError(f"{where}{name}", f"unknown field{hint} (known: {', '.join(known)})")
