"""`darkroom dead-letters`."""

from __future__ import annotations

import argparse
from typing import Any

from darkroom_cli.parsers.arguments import (
    add_actions,
    add_command,
    add_group,
    add_id,
    add_parameter,
    add_url,
    connect,
)
from darkroom_cli.terminal.output import Output

DESCRIPTION = """\
A job whose attempts are used up is a dead letter. Dead letters are stored with the requesting event and the
outcome of each attempt until they are purged or redriven. A redrive makes a new job of the dead letter.
"""

EXAMPLES = """\
examples:
  darkroom dead-letters list
  darkroom dead-letters redrive ID                        with the same parameters
  darkroom dead-letters redrive ID -p steps=4 -p seed=7   with other parameters
  darkroom dead-letters purge --all
"""

LIST = "List the dead letters, most recently failed first."
SHOW = "Show why the job failed, the outcome of each attempt, and the event that requested the job."
REDRIVE = "Make a new job of a dead letter and print the id of the new job. The dead letter leaves the list."
PURGE = "Remove dead letters from the list. The job stays failed until its retention ends."


def add(commands: Any) -> None:
    group = add_group(
        commands,
        "dead-letters",
        "list, show, redrive and purge jobs whose attempts are used up",
        DESCRIPTION,
        epilog=EXAMPLES,
    )
    actions = add_actions(group)
    add_url(add_command(actions, "list", "list dead letters", LIST, _run_list))
    show = add_command(actions, "show", "show a dead letter", SHOW, _run_show)
    add_id(show)
    add_url(show)
    redrive = add_command(actions, "redrive", "make a new job of a dead letter", REDRIVE, _run_redrive)
    add_id(redrive)
    add_parameter(redrive, "a parameter to change")
    add_url(redrive)
    purge = add_command(actions, "purge", "remove one dead letter or all dead letters", PURGE, _run_purge)
    which = purge.add_mutually_exclusive_group(required=True)
    which.add_argument("id", metavar="ID", nargs="?", help="the id of the job")
    which.add_argument("--all", action="store_true", help="purge all dead letters")
    add_url(purge)


def _run_list(options: argparse.Namespace, output: Output) -> int:
    from darkroom_cli.commands.dead_letters import list_letters

    with connect(options) as client:
        return list_letters(client, output)


def _run_show(options: argparse.Namespace, output: Output) -> int:
    from darkroom_cli.commands.dead_letters import show

    with connect(options) as client:
        return show(client, options.id, output)


def _run_redrive(options: argparse.Namespace, output: Output) -> int:
    from darkroom_cli.commands.dead_letters import redrive
    from darkroom_cli.commands.submit import parameters

    with connect(options) as client:
        return redrive(client, options.id, parameters(options.parameter), output)


def _run_purge(options: argparse.Namespace, output: Output) -> int:
    from darkroom_cli.commands.dead_letters import purge, purge_all

    with connect(options) as client:
        return purge_all(client, output) if options.all else purge(client, options.id, output)
