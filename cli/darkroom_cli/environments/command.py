"""The environment of each process that `up` starts: what it needs of ours, and nothing else.

A shell's environment is full of other people's secrets; a process that has not got them cannot lose them.
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
"""What any program may need to run at all."""

OURS = "DARKROOM_"
NOT_HANDED_ON = frozenset(
    {
        *("DARKROOM_HOME", "DARKROOM_URL"),
        *("DARKROOM_DATABASE_URL", "DARKROOM_HOST", "DARKROOM_LINK_KEY", "DARKROOM_MODELS", "DARKROOM_NAMESPACE"),
        *("DARKROOM_POOL", "DARKROOM_PROBE_PORT", "DARKROOM_PUBLIC_URL", "DARKROOM_REDIS_URL", "DARKROOM_STORE"),
        *("DARKROOM_WEBHOOK_ALLOW", "DARKROOM_WEBHOOK_KEYS"),
    }
)
"""Settings of the command line itself, and those that `up` gives to each part that needs them. All others of ours are
settings of the parts, and only the parts know which."""

DEVICES = ("ACCELERATE_", "CUDA_", "HF_", "MKL_", "NVIDIA_", "OMP_", "PYTORCH_", "TORCH_", "TRANSFORMERS_")
"""What else libraries of a worker read: which GPU, how many threads, where models are kept, and the hub's token."""

PROXIES = frozenset({"ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "REQUESTS_CA_BUNDLE"})
"""How a worker reaches the hub. Nobody else leaves this machine."""


def environment(own: Mapping[str, str], *, for_worker: bool = False, **more: str) -> dict[str, str]:
    """The whole environment of a process: `own` and `more`, and of ours what it needs."""

    def is_kept(name: str) -> bool:
        return (
            name in KEPT
            or (name.startswith(OURS) and name not in NOT_HANDED_ON)
            or (for_worker and (name.startswith(DEVICES) or name.upper() in PROXIES))
        )

    kept = {name: value for name, value in os.environ.items() if is_kept(name)}
    return {**kept, "PYTHONUNBUFFERED": "1", **own, **more}
