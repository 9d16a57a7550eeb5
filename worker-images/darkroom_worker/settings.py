"""The settings of a worker, read once when it starts; its child gets the same object."""

from __future__ import annotations

from typing import Literal

from darkroom.catalogue.models import Catalogue, Model
from darkroom.errors import SettingError
from darkroom.settings import LedgerSettings, ModelSettings, StoreSettings
from pydantic import Field

BAD_SETTING = 2
"""The exit status for an invalid setting."""


class WorkerSettings(LedgerSettings, ModelSettings, StoreSettings):
    """The settings of one worker."""

    pool: str = Field(pattern=r"^[a-z][a-z0-9-]{0,40}$")
    """The worker pool. The worker loads every model whose file names this pool, and runs the jobs of these."""

    drain_grace_s: float = Field(default=60, ge=0, le=3600)
    """How long a running job may continue after SIGTERM, in seconds, before it is released. Keep it some seconds below
    the pod's `terminationGracePeriodSeconds`."""

    interrupt_grace_s: float = Field(default=10, gt=0, le=600)
    """How long an engine may take to stop after its job was cancelled, exceeded its time or lost its lease, in seconds.
    After that its process is killed. Longer than a denoising step."""

    host: str = "127.0.0.1"
    """The address where probes are served; in a pod `0.0.0.0`."""

    probe_port: int | None = Field(default=None, ge=1, le=65535)
    """The port of `/healthz` and `/readyz`; without a value they are not served."""

    picture_metadata: Literal["full", "none"] = "full"
    """Whether an image file contains the parameters that it was made with, including the prompt (`full` or `none`). The
    job's record contains them in both cases."""


def served_models(settings: WorkerSettings) -> tuple[Model, ...]:
    """The models of the worker's pool. Raises SettingError where there is none."""
    catalogue = Catalogue.load(settings.models)
    models = tuple(model for model in catalogue if model.pool == settings.pool)
    if not models:
        pools = ", ".join(sorted({model.pool for model in catalogue}))
        raise SettingError(f"DARKROOM_POOL={settings.pool!r}: no model file names this pool; there are: {pools}")
    return models
