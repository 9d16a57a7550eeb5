"""`darkroom up`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from darkroom_cli.parsers.arguments import add_command, port
from darkroom_cli.terminal.output import Output

DEFAULT_PORT = 8000

HOST = "127.0.0.1"

DESCRIPTION = """\
Run darkroom on this machine until Ctrl-C: Redis, the functions behind one port, a worker and a courier. Each is a
process with its own log. Jobs and pictures are stored in the data folder, and the next `darkroom up` continues there.

The models flux and sd are served by untrained stand-ins, whose pictures are coloured noise, until --model names
weights. Additional model files are read from the folders in DARKROOM_MODELS.

If DARKROOM_REDIS_URL is set, that Redis is used and none is started.
"""


def add(commands: Any) -> None:
    parser = add_command(commands, "up", "run darkroom on this machine", DESCRIPTION, _run)
    parser.add_argument(
        "--port", type=port, default=DEFAULT_PORT, help=f"the port to serve (default: {DEFAULT_PORT}); 0: any free port"
    )
    parser.add_argument(
        "--host",
        default=HOST,
        metavar="ADDRESS",
        help=f"the address to serve, such as 0.0.0.0 for all of this machine (default: {HOST}); except on "
        "loopback every request needs a key, and the first start prints one",
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FOLDER",
        help="the data folder (default: DARKROOM_HOME, or .darkroom in this folder)",
    )
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="NAME=SOURCE",
        help="serve a model from a folder of weights or a hub id, such as flux=black-forest-labs/FLUX.1-schnell; can "
        "be repeated",
    )


def _run(options: argparse.Namespace, output: Output) -> int:
    from darkroom_cli.local.models import ModelSource
    from darkroom_cli.local.stack import UpOptions
    from darkroom_cli.local.up import up

    sources = tuple(map(ModelSource.parse, options.model))
    return up(UpOptions(options.port, options.data, sources, host=options.host), output)
