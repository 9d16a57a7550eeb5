"""`darkroom env`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from darkroom_cli.parsers.arguments import add_actions, add_command, add_group, port
from darkroom_cli.terminal.output import Output

if TYPE_CHECKING:
    from darkroom_cli.environments.environment import ActiveEnvironment

DESCRIPTION = """\
For developers of darkroom, in a checkout. The environments dev, demo and test are databases 4, 2 and 3 of one Redis,
each with its own key prefix. `make api-dev`, `make celery-dev` and so on run these commands.

Settings come from the environment, then env/.env.NAME, then env/.env (env/.env.example lists them), then the defaults.
"""

API = "Run the functions behind one port, and the courier, until Ctrl-C."
WORKER = "Run a worker that executes the jobs, until Ctrl-C."
FLOWER = "Run Flower, Celery's dashboard. The login is the name and password in FLOWER_BASIC_AUTH."
KEYS = "List the environment's keys in Redis."
INFO = "Show the number of the environment's keys, and the memory that Redis uses."
FLUSH = "Delete the environment's keys in Redis: jobs, queues, deliveries. Pictures and the history are kept. Asks for \
confirmation."


def add(commands: Any) -> None:
    group = add_group(
        commands, "env", "run the parts of the environment dev, demo or test, or inspect its Redis", DESCRIPTION
    )
    group.add_argument("environment", metavar="NAME", help="dev, demo or test")
    actions = add_actions(group)
    _add_port(add_command(actions, "api", "run functions and courier", API, _run_api), "8001, 8002, 8003")
    add_command(actions, "worker", "run a worker", WORKER, _run_worker)
    _add_port(add_command(actions, "flower", "run Celery's dashboard", FLOWER, _run_flower), "5555, 5556, 5557")
    add_command(actions, "keys", "list the keys in Redis", KEYS, _run_keys)
    add_command(actions, "info", "show the number of keys and the memory in use", INFO, _run_info)
    flush = add_command(actions, "flush", "delete the keys in Redis", FLUSH, _run_flush)
    flush.add_argument("--yes", action="store_true", help="do not ask for confirmation")
    for action in actions.choices.values():
        action.add_argument("--dry-run", action="store_true", help="print what would be done, and do nothing")


def _add_port(parser: argparse.ArgumentParser, defaults: str) -> None:
    parser.add_argument("--port", type=port, help=f"the port to serve (default: {defaults} for dev, demo, test)")


def _run_api(options: argparse.Namespace, output: Output) -> int:
    from darkroom_cli.environments.parts import api

    return api(_active(options), output, port=options.port, dry_run=options.dry_run)


def _run_worker(options: argparse.Namespace, output: Output) -> int:
    from darkroom_cli.environments.parts import worker

    return worker(_active(options), output, dry_run=options.dry_run)


def _run_flower(options: argparse.Namespace, output: Output) -> int:
    from darkroom_cli.environments.parts import flower

    return flower(_active(options), output, port=options.port, dry_run=options.dry_run)


def _run_keys(options: argparse.Namespace, output: Output) -> int:
    from darkroom_cli.environments.keys import keys

    return keys(_active(options), output, dry_run=options.dry_run)


def _run_info(options: argparse.Namespace, output: Output) -> int:
    from darkroom_cli.environments.keys import info

    return info(_active(options), output, dry_run=options.dry_run)


def _run_flush(options: argparse.Namespace, output: Output) -> int:
    from darkroom_cli.environments.keys import flush

    return flush(_active(options), output, yes=options.yes, dry_run=options.dry_run)


def _active(options: argparse.Namespace) -> ActiveEnvironment:
    from darkroom_cli.environments.environment import activate

    return activate(options.environment)
