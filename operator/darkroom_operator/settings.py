"""What the operator is told by its environment. Where the API server is, kopf and lightkube find by themselves: a
service account in a pod, `KUBECONFIG` elsewhere.
"""

from __future__ import annotations

from darkroom.settings import LedgerSettings
from pydantic import Field

SETTINGS_MAP, MODELS_MAP = "darkroom-settings", "darkroom-models"


class OperatorSettings(LedgerSettings):
    """The operator's settings. Times are in seconds."""

    watch_namespace: str = Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")
    """The Kubernetes namespace whose pools it works for. `namespace` is the prefix in Redis."""

    settings_map: str = Field(default=SETTINGS_MAP, min_length=1)
    """The current name of the ConfigMap that pools name as `darkroom-settings`. Kustomize adds a hash of the contents,
    so that pods which read them are replaced when they change."""

    models_map: str = Field(default=MODELS_MAP, min_length=1)
    """The same of `darkroom-models`."""

    host: str = "127.0.0.1"
    """Where probes and metrics are answered; in a pod `0.0.0.0`."""

    port: int | None = Field(default=None, ge=1, le=65535)
    """Port of `/healthz`, `/readyz` and `/metrics`; without one there are none."""

    @property
    def config_maps(self) -> dict[str, str]:
        """The current names of ConfigMaps by those that pools write."""
        return {SETTINGS_MAP: self.settings_map, MODELS_MAP: self.models_map}

    tick_s: float = Field(default=1, gt=0, le=10)
    """Pause between two looks at all pools. A pool that gets work while it has none is looked at in between."""

    lease_s: float = Field(default=15, ge=3, le=600)
    """How long an operator that says nothing is believed to be there; renewed every third of it."""

    replace_after_s: float = Field(default=60, ge=1, le=3600)
    """How long a worker may be faulty before its pod is replaced. A faulty worker tests itself again meanwhile, and may
    recover.
    """

    resync_s: float = Field(default=60, ge=1, le=3600)
    """Pause between two readings of the whole world, which find what a watch did not tell."""
