"""Two clients that exist already, in JavaScript and Python, as processes: only the address and the id are changed.

`document_client.js` and `document_client.py.txt` are examples of Genonaut's documentation ("WebSocket Real-Time
Updates"), word for word: clients of the same API, which darkroom serves unchanged.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
JAVASCRIPT = FOLDER / "document_client.js"
PYTHON = FOLDER / "document_client.py.txt"
LENT_WEBSOCKET = FOLDER / "websocket_for_node.cjs"

ADDRESS = "ws://localhost:8001"
"""The address in the examples."""
JOB_ID = "123"

DEADLINE_S = 300
"""A real job on a busy CPU may take minutes."""


@dataclass(frozen=True)
class Ran:
    """The exit status and the output of a client."""

    status: int
    output: str
    errors: str


def run_python_client(base_ws_url: str, job_id: str) -> Ran:
    """Run the Python client until it exits, which it does when the job has completed or failed."""
    return _run([sys.executable, "-u", "-"], _python(base_ws_url, job_id))


def run_javascript_client(base_ws_url: str, job_id: str) -> Ran:
    """Run the JavaScript client until its socket is closed. Raises LookupError without node or its `ws`."""
    node = shutil.which("node")
    if node is None or not (FOLDER / "node_modules" / "ws").is_dir():
        raise LookupError("the JavaScript client needs node and `npm ci` in tests/clients: see `make setup`")
    return _run([node, "--require", str(LENT_WEBSOCKET), "-"], _javascript(base_ws_url, job_id))


def _python(base_ws_url: str, job_id: str) -> str:
    """The example's ids are numbers and darkroom's are strings, so the argument of the call is put in quotes."""
    text = _replaced(PYTHON.read_text(), ADDRESS, base_ws_url)
    return _replaced(text, f"monitor_job({JOB_ID})", f"monitor_job({job_id!r})")


def _javascript(base_ws_url: str, job_id: str) -> str:
    # The id comes first: a port may hold its digits.
    return _replaced(_replaced(JAVASCRIPT.read_text(), JOB_ID, job_id), ADDRESS, base_ws_url)


def _replaced(text: str, old: str, new: str) -> str:
    assert old in text, f"the client does not contain {old}"
    return text.replace(old, new)


def _run(command: list[str], program: str) -> Ran:
    done = subprocess.run(
        command,
        input=program,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    return Ran(done.returncode, done.stdout, done.stderr)
