"""The gateway of one machine: whether it can run here, and how.

`up` puts it before the functions where nginx with Lua is installed (Debian: `nginx`, `libnginx-mod-http-lua`,
`lua-cjson`), so that `POST /sync/{model}` works as it does in a cluster. Where it is not, the functions take the port.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from darkroom_cli.environments.command import environment

START = Path(__file__).resolve().parents[3] / "functions" / "gateway" / "start"
"""The program that runs it, in a checkout: it is no part of the Python package."""

CHECK_LIMIT_S = 30.0
"""nginx reads its configuration in 0.1 s."""

CONNECTIONS = "2000"
CONNECTIONS_PER_ADDRESS = "1900"
RATE = "2000"
"""Requests a second from one address. On one machine all callers share an address: more than the functions answer."""


@dataclass(frozen=True)
class Gateway:
    """One that listens on `port`, with all functions behind `functions_port`; it writes into `folder` alone."""

    host: str
    port: int
    functions_port: int
    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """All of its process' environment."""
        functions = f"{self.host}:{self.functions_port}"
        return environment(
            {
                **{f"DARKROOM_GATEWAY_{name}": functions for name in ("SUBMIT", "JOBS", "RESULT", "UNDELIVERED")},
                "DARKROOM_HOST": self.host,
                "DARKROOM_GATEWAY_PORT": str(self.port),
                "DARKROOM_GATEWAY_FOLDER": str(self.folder),
                "DARKROOM_GATEWAY_CONNECTIONS": CONNECTIONS,
                "DARKROOM_GATEWAY_CONNECTIONS_PER_ADDRESS": CONNECTIONS_PER_ADDRESS,
                "DARKROOM_GATEWAY_RATE": RATE,
            }
        )

    def fault(self) -> str | None:
        """Why it cannot run here; None where it can."""
        return fault(self.environment)


def fault(told: Mapping[str, str]) -> str | None:
    """Why a gateway cannot run with this environment; None where it can. nginx itself is asked."""
    if not START.exists():
        return "it is part of a checkout, and this is none"
    try:
        done = subprocess.run(
            [START, "--check"],
            env=dict(told),
            capture_output=True,
            text=True,
            timeout=CHECK_LIMIT_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode == 0:
        return None
    lines = done.stderr.strip().splitlines() or [f"nginx ended with exit status {done.returncode}"]
    return str(json.loads(lines[0])["message"]) if lines[0].startswith("{") else lines[0]
