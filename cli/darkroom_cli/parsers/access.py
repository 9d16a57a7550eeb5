"""`darkroom tenants` and `darkroom keys`."""

from __future__ import annotations

import argparse
from typing import Any

from darkroom_cli.parsers.arguments import add_actions, add_command, add_group, add_url, connect, count
from darkroom_cli.terminal.output import Output

TENANTS = """\
A tenant owns jobs, webhooks and keys, and sees its own alone. These commands need a key with the scope admin
(DARKROOM_KEY).
"""

KEYS = """\
A key belongs to a tenant and permits what its scopes name: submit, read, cancel, manage (webhooks, dead letters and
deletion), admin (tenants and keys). These commands need a key with the scope admin (DARKROOM_KEY).
"""

SCOPES = ("submit", "read", "cancel", "manage", "admin")
DEFAULT_SCOPES = ["submit", "read", "cancel"]


def add(commands: Any) -> None:
    _add_tenants(add_actions(add_group(commands, "tenants", "list, create, disable and delete tenants", TENANTS)))
    _add_keys(add_actions(add_group(commands, "keys", "list, create, rotate, disable and delete keys", KEYS)))


def _add_tenants(actions: Any) -> None:
    add_url(add_command(actions, "list", "list tenants", "List the tenants by name.", _list_tenants))
    create = add_command(actions, "create", "create a tenant", "Create a tenant and print its name.", _create_tenant)
    _add_name(create)
    create.add_argument("--weight", type=float, help="its share of each pool, relative to others (default: 1)")
    _add_limits(create)
    add_url(create)
    for name, run, description in (
        ("disable", _disable_tenant, "Refuse all credentials of a tenant. Its running jobs finish."),
        ("enable", _enable_tenant, "Accept the credentials of a tenant again."),
        ("delete", _delete_tenant, "Delete a tenant that has no keys."),
    ):
        parser = add_command(actions, name, f"{name} a tenant", description, run)
        _add_name(parser)
        add_url(parser)


def _add_keys(actions: Any) -> None:
    found = add_command(actions, "list", "list keys", "List the keys by tenant.", _list_keys)
    found.add_argument("--tenant", metavar="NAME", help="only keys of this tenant")
    add_url(found)
    create = add_command(actions, "create", "create a key", "Create a key and print it, this one time.", _create_key)
    create.add_argument("tenant", metavar="TENANT", help="the name of the tenant")
    create.add_argument("--name", required=True, help="what the key is for")
    create.add_argument(
        "--scope",
        action="append",
        choices=SCOPES,
        help=f"what it permits; can be repeated (default: {', '.join(DEFAULT_SCOPES)})",
    )
    create.add_argument("--model", action="append", metavar="NAME", help="only this model; can be repeated")
    create.add_argument("--expires", metavar="TIME", help="when it expires, such as 2027-01-31T00:00:00Z")
    _add_limits(create)
    add_url(create)
    rotate = add_command(
        actions,
        "rotate",
        "give a key a new secret",
        "Give a key a new secret and print it, this one time.",
        _rotate_key,
    )
    _add_id(rotate)
    rotate.add_argument(
        "--overlap", type=_seconds, metavar="SECONDS", help="how long the previous secret stays valid (default: a day)"
    )
    add_url(rotate)
    for name, run, description in (
        ("disable", _disable_key, "Refuse a key until it is enabled again."),
        ("enable", _enable_key, "Accept a key again."),
        ("delete", _delete_key, "Delete a key for ever."),
    ):
        parser = add_command(actions, name, f"{name} a key", description, run)
        _add_id(parser)
        add_url(parser)


def _add_name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="the name of the tenant")


def _add_id(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", metavar="ID", help="the id of the key, which follows dk_ in it")


def _add_limits(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--limit",
        action="append",
        default=[],
        type=_limit,
        metavar="NAME=NUMBER",
        help="a limit, such as running_jobs=4 or images_per_day=1000; can be repeated",
    )


def _limit(text: str) -> tuple[str, int]:
    name, _, number = text.partition("=")
    return name, count(number)


def _seconds(text: str) -> int:
    return 0 if text == "0" else count(text)


def _list_tenants(options: argparse.Namespace, output: Output) -> int:
    from darkroom_cli.commands.access import list_tenants

    with connect(options) as client:
        return list_tenants(client, output)


def _create_tenant(options: argparse.Namespace, output: Output) -> int:
    from darkroom_cli.commands.access import create_tenant

    members: dict[str, Any] = {"name": options.name, "limits": dict(options.limit)}
    if options.weight is not None:
        members["weight"] = options.weight
    with connect(options) as client:
        return create_tenant(client, output, members)


def _disable_tenant(options: argparse.Namespace, output: Output) -> int:
    return _set_tenant(options, output, disabled=True)


def _enable_tenant(options: argparse.Namespace, output: Output) -> int:
    return _set_tenant(options, output, disabled=False)


def _set_tenant(options: argparse.Namespace, output: Output, *, disabled: bool) -> int:
    from darkroom_cli.commands.access import change_tenant

    with connect(options) as client:
        return change_tenant(client, options.name, output, {"disabled": disabled})


def _delete_tenant(options: argparse.Namespace, output: Output) -> int:
    from darkroom_cli.commands.access import delete_tenant

    with connect(options) as client:
        return delete_tenant(client, options.name, output)


def _list_keys(options: argparse.Namespace, output: Output) -> int:
    from darkroom_cli.commands.access import list_keys

    with connect(options) as client:
        return list_keys(client, output, tenant=options.tenant)


def _create_key(options: argparse.Namespace, output: Output) -> int:
    from darkroom_cli.commands.access import create_key

    members: dict[str, Any] = {
        "tenant": options.tenant,
        "name": options.name,
        "scopes": options.scope or DEFAULT_SCOPES,
        "limits": dict(options.limit),
    }
    if options.model:
        members["models"] = options.model
    if options.expires:
        members["expires_at"] = options.expires
    with connect(options) as client:
        return create_key(client, output, members)


def _rotate_key(options: argparse.Namespace, output: Output) -> int:
    from darkroom_cli.commands.access import rotate_key

    with connect(options) as client:
        return rotate_key(client, options.id, output, overlap_s=options.overlap)


def _disable_key(options: argparse.Namespace, output: Output) -> int:
    return _set_key(options, output, disabled=True)


def _enable_key(options: argparse.Namespace, output: Output) -> int:
    return _set_key(options, output, disabled=False)


def _set_key(options: argparse.Namespace, output: Output, *, disabled: bool) -> int:
    from darkroom_cli.commands.access import change_key

    with connect(options) as client:
        return change_key(client, options.id, output, {"disabled": disabled})


def _delete_key(options: argparse.Namespace, output: Output) -> int:
    from darkroom_cli.commands.access import delete_key

    with connect(options) as client:
        return delete_key(client, options.id, output)
