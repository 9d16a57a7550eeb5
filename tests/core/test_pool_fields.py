"""Unknown fields of a worker pool's specification are reported by name."""

from __future__ import annotations

from typing import Any

import pytest
from darkroom.scaling.fields import unknown

UNKNOWN: dict[str, tuple[dict[str, Any], str, str]] = {
    "of the specification": ({"maxReplica": 3}, "maxReplica", "did you mean maxReplicas?"),
    "of the target": ({"target": {"jobsPerReplika": 4}}, "target.jobsPerReplika", "did you mean jobsPerReplica?"),
    "in another case": ({"target": {"waitseconds": 4}}, "target.waitseconds", "did you mean waitSeconds?"),
    "of no likeness": ({"target": {"cpu": 80}}, "target.cpu", "known: jobsPerReplica, waitSeconds"),
    "of another part": ({"scaleUp": {"idleSeconds": 4}}, "scaleUp.idleSeconds", "known: maxStep, waitSeconds"),
    "of scaleDown": ({"scaleDown": {"idle": 4}}, "scaleDown.idle", "known: idleSeconds, maxStep"),
    "of a window": ({"schedule": [{}, {"timeZone": "UTC"}]}, "schedule[1].timeZone", "did you mean timezone?"),
    "of the GPUs": ({"gpu": {"resource": "amd.com/gpu"}}, "gpu.resource", "did you mean resourceName?"),
    "of the rollout": ({"rollout": {"surge": 1}}, "rollout.surge", "known: maxSurge, maxUnavailable"),
    "of the template": ({"template": {"labels": {}}}, "template.labels", "known: metadata, spec"),
}


@pytest.mark.parametrize(("spec", "field", "hint"), UNKNOWN.values(), ids=UNKNOWN)
def test_an_unknown_field_is_named_with_the_known_ones(spec: dict[str, Any], field: str, hint: str) -> None:
    (fault,) = unknown(spec)
    assert fault.field == field
    assert hint in fault.detail


@pytest.mark.parametrize("spec", [{}, {"target": None, "schedule": {}}, {"template": {"spec": {"anyhow": 1}}}])
def test_known_fields_of_any_type_are_not_unknown(spec: dict[str, Any]) -> None:
    assert unknown(spec) == []
