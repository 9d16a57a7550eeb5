"""What a worker reads from its environment, once, when it starts; its child gets the same object."""

from __future__ import annotations

from typing import Literal

from darkroom.catalogue.models import Catalogue, Model
from darkroom.errors import SettingError
from darkroom.settings import LedgerSettings, ModelSettings, StoreSettings
from pydantic import Field

BAD_SETTING = 2
"""The exit status for a setting that cannot be used."""


class WorkerSettings(LedgerSettings, ModelSettings, StoreSettings):
    """The settings of one worker."""

    pool: str = Field(pattern=r"^[a-z][a-z0-9-]{0,40}$")
    """Whose jobs it takes: it loads every model whose file names this pool."""

    drain_grace_s: float = Field(default=60, ge=0, le=3600)
    """How long a running job may go on after SIGTERM, in seconds, before it is given back. Stay some seconds below the
    pod's `terminationGracePeriodSeconds`."""

    interrupt_grace_s: float = Field(default=10, gt=0, le=600)
    """How long an engine may take to notice that its job was cancelled, is overdue or is no longer its own, in seconds,
    before its process is ended. Longer than a denoising step takes."""

    host: str = "127.0.0.1"
    """Where probes are answered; in a pod `0.0.0.0`."""

    probe_port: int | None = Field(default=None, ge=1, le=65535)
    """Port of `/healthz` and `/readyz`; without one there are none. The courier's has a name of its own, since both may
    run on one machine with the same variables."""

    picture_metadata: Literal["full", "none"] = "full"
    """Whether a picture's file names the parameters that it was made with, the prompt among them; `none` leaves them
    out. The job's own record has them either way."""


def served_models(settings: WorkerSettings) -> tuple[Model, ...]:
    """The models of the worker's pool. Raises SettingError where there is none."""
    catalogue = Catalogue.load(settings.models)
    models = tuple(model for model in catalogue if model.pool == settings.pool)
    if not models:
        pools = ", ".join(sorted({model.pool for model in catalogue}))
        raise SettingError(f"DARKROOM_POOL={settings.pool!r}: no model file names this pool; there are: {pools}")
    return models
