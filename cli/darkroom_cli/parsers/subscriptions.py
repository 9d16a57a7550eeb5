"""`darkroom subscriptions`."""

from __future__ import annotations

import argparse
from typing import Any

from darkroom_cli.parsers.arguments import add_actions, add_command, add_group, add_url, connect
from darkroom_cli.terminal.output import Output

DESCRIPTION = """\
A subscription is an address to which the events of all jobs, or of the jobs of some models, are posted as webhooks.
"""

CREATE = "Create a subscription and print its id. `secret` prints the secret that verifies its deliveries."
SECRET = "Print the secret that verifies the deliveries of a subscription."
DELETE = "Delete a subscription. Nothing more is posted to its address."


def add(commands: Any) -> None:
    group = add_group(commands, "subscriptions", "list, create and delete webhook subscriptions", DESCRIPTION)
    actions = add_actions(group)
    add_url(add_command(actions, "list", "list subscriptions", "List the subscriptions, oldest first.", _run_list))
    create = add_command(actions, "create", "create a subscription", CREATE, _run_create)
    create.add_argument("receiver", metavar="ADDRESS", help="the address that events are posted to")
    create.add_argument(
        "--event",
        action="append",
        metavar="EVENT",
        help="an event to post, such as completed; can be repeated (default: all terminal events)",
    )
    create.add_argument("--model", action="append", metavar="NAME", help="only jobs of this model; can be repeated")
    add_url(create)
    for name, summary, description, run in (
        ("secret", "print the secret of a subscription", SECRET, _run_secret),
        ("delete", "delete a subscription", DELETE, _run_delete),
    ):
        parser = add_command(actions, name, summary, description, run)
        parser.add_argument("id", metavar="ID", help="the id of the subscription")
        add_url(parser)


def _run_list(options: argparse.Namespace, output: Output) -> int:
    from darkroom_cli.commands.subscriptions import list_subscriptions

    with connect(options) as client:
        return list_subscriptions(client, output)


def _run_create(options: argparse.Namespace, output: Output) -> int:
    from darkroom_cli.commands.subscriptions import create

    with connect(options) as client:
        return create(client, output, url=options.receiver, events=options.event, models=options.model)


def _run_secret(options: argparse.Namespace, output: Output) -> int:
    from darkroom_cli.commands.subscriptions import secret

    with connect(options) as client:
        return secret(client, options.id, output)


def _run_delete(options: argparse.Namespace, output: Output) -> int:
    from darkroom_cli.commands.subscriptions import delete

    with connect(options) as client:
        return delete(client, options.id, output)
