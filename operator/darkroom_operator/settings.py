"""The settings of the operator. kopf and lightkube find the API server by themselves: a service account in a pod,
`KUBECONFIG` elsewhere.
"""

from __future__ import annotations

from typing import Annotated

from darkroom.settings import LedgerSettings, Renamed
from pydantic import Field

SETTINGS_MAP, MODELS_MAP = "darkroom-settings", "darkroom-models"


class OperatorSettings(LedgerSettings):
    """The operator's settings. Times are in seconds."""

    watch_namespace: str = Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")
    """The Kubernetes namespace of the pools. `namespace` is the prefix in Redis."""

    settings_map: str = Field(default=SETTINGS_MAP, min_length=1)
    """The current name of the ConfigMap that pools refer to as `darkroom-settings`. Kustomize adds a hash of the
    contents, so that pods are replaced when the contents change."""

    models_map: str = Field(default=MODELS_MAP, min_length=1)
    """The current name of the ConfigMap that pools refer to as `darkroom-models`."""

    host: str = "127.0.0.1"
    """The address where probes and metrics are served; in a pod `0.0.0.0`."""

    probe_port: Annotated[int | None, Renamed("DARKROOM_PORT")] = Field(default=None, ge=1, le=65535)
    """The port of `/healthz`, `/readyz` and `/metrics`; without a value they are not served."""

    @property
    def config_maps(self) -> dict[str, str]:
        """The current names of ConfigMaps by the names that pools refer to."""
        return {SETTINGS_MAP: self.settings_map, MODELS_MAP: self.models_map}

    reconcile_interval_s: Annotated[float, Renamed("DARKROOM_TICK_S")] = Field(default=1, gt=0, le=10)
    """The pause between two reconciliations of all pools. An idle pool that receives a job is reconciled at once."""

    election_lease_s: Annotated[float, Renamed("DARKROOM_LEASE_S")] = Field(default=15, ge=3, le=600)
    """The duration of the leader's lease, which it renews every third of it. Another operator takes over after it."""

    replace_after_s: float = Field(default=60, ge=1, le=3600)
    """The time after which the pod of a faulty worker is replaced. The worker tests itself meanwhile and may recover.
    """

    resync_s: float = Field(default=60, ge=1, le=3600)
    """The pause between two listings of all objects, which find changes that a watch did not deliver."""
