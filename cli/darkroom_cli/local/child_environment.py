"""The environment of each process that `up` starts: the variables that it needs, and no others.

A shell's environment may hold unrelated secrets; a process without them cannot leak them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

KEPT = frozenset(
    {
        *("HOME", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "LOGNAME", "PATH", "PYTHONPATH", "TMPDIR", "TZ"),
        *("SSL_CERT_DIR", "SSL_CERT_FILE", "USER", "XDG_CACHE_HOME"),
    }
)
"""Variables that any program may need."""

PREFIX = "DARKROOM_"
NOT_INHERITED = frozenset(
    {
        *("DARKROOM_HOME", "DARKROOM_KEY", "DARKROOM_KEY_FILE", "DARKROOM_URL"),
        *("DARKROOM_AUTH", "DARKROOM_ROOT_KEY"),
        *("DARKROOM_DATABASE_URL", "DARKROOM_HOST", "DARKROOM_LINK_KEY", "DARKROOM_MODELS", "DARKROOM_NAMESPACE"),
        *(
            "DARKROOM_POOL",
            "DARKROOM_PROBE_PORT",
            "DARKROOM_PROOF_KEYS",
            "DARKROOM_PUBLIC_URL",
            "DARKROOM_REDIS_URL",
            "DARKROOM_STORE",
        ),
        *("DARKROOM_WEBHOOK_ALLOW", "DARKROOM_WEBHOOK_KEYS"),
    }
)
"""Settings of the command line itself, and those that `up` sets for each part. All other settings with the prefix are
inherited."""

DEVICES = ("ACCELERATE_", "CUDA_", "HF_", "MKL_", "NVIDIA_", "OMP_", "PYTORCH_", "TORCH_", "TRANSFORMERS_")
"""Variables of a worker's libraries: GPU, threads, the folder of models, and the hub's token."""

PROXIES = frozenset({"ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "REQUESTS_CA_BUNDLE"})
"""Proxies by which a worker reaches the hub. No other part connects to another machine."""


def environment(own: Mapping[str, str], *, for_worker: bool = False, **more: str) -> dict[str, str]:
    """The complete environment of a process: `own`, `more`, and the inherited variables."""

    def is_kept(name: str) -> bool:
        return (
            name in KEPT
            or (name.startswith(PREFIX) and name not in NOT_INHERITED)
            or (for_worker and (name.startswith(DEVICES) or name.upper() in PROXIES))
        )

    kept = {name: value for name, value in os.environ.items() if is_kept(name)}
    return {**kept, "PYTHONUNBUFFERED": "1", **own, **more}
