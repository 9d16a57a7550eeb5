"""The program of the bootstrap Job, loaded from the manifests, since it is no module."""

from __future__ import annotations

import importlib.util
from types import ModuleType

from tests.knative.rendering import KNATIVE

PROGRAM = KNATIVE / "base" / "bootstrap" / "bootstrap.py"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("darkroom_bootstrap", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
