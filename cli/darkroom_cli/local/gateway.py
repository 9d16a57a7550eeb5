"""The gateway of one machine: whether it can run here, and its environment.

`up` starts it before the functions if nginx with Lua is installed (Debian: `nginx`, `libnginx-mod-http-lua`,
`lua-cjson`), so that `POST /sync/{model}` works as in a cluster. Otherwise the functions serve the port.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from darkroom_cli.local.child_environment import environment

START = Path(__file__).resolve().parents[3] / "functions" / "gateway" / "start"
"""The program that runs the gateway; only a checkout has it."""

CHECK_LIMIT_S = 30.0
"""The check takes 0.1 s."""

CONNECTIONS = "2000"
CONNECTIONS_PER_ADDRESS = "1900"
RATE = "2000"
"""Requests per second from one address. All clients share an address here: more than the functions can serve."""


LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Gateway:
    """A gateway that listens on `port`, with all functions at `functions_port`. It writes only into `folder`."""

    host: str
    """The address to listen on. The functions are on loopback."""
    port: int
    functions_port: int
    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """The complete environment of the process."""
        functions = f"{LOOPBACK}:{self.functions_port}"
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
        """The reason why the gateway cannot run here; None if it can."""
        return fault(self.environment)


def fault(variables: Mapping[str, str]) -> str | None:
    """The reason why a gateway cannot run with this environment, by nginx' own check; None if it can."""
    if not START.exists():
        return "the gateway is part of a checkout, and this is an installed package"
    try:
        done = subprocess.run(
            [START, "--check"],
            env=dict(variables),
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
    lines = done.stderr.strip().splitlines() or [f"nginx exited with status {done.returncode}"]
    return str(json.loads(lines[0])["message"]) if lines[0].startswith("{") else lines[0]
