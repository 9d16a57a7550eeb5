"""`darkroom tenants`, `darkroom keys` and `darkroom usage`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from darkroom_cli.parsers.arguments import add_actions, add_command, add_group, add_url, connect
from darkroom_cli.parsers.declarations import add_check, add_generate
from darkroom_cli.terminal.output import Output

TENANTS = """\
A tenant owns jobs, webhooks and keys, and sees no others. These commands need a key with the scope admin, in
DARKROOM_KEY or in the file that DARKROOM_KEY_FILE names.
"""

TENANT_EXAMPLES = """\
examples:
  darkroom tenants create studio --weight 2 --limit running_jobs=4
  darkroom tenants change studio --limit images_per_day=1000 --limit running_jobs=none
  darkroom tenants disable studio
"""

KEYS = """\
A key belongs to a tenant and permits what its scopes name: submit (jobs), read (jobs, results and events), cancel,
manage (webhooks, dead letters and deletion), admin (tenants, keys, usage and the audit trail). These commands need a
key with the scope admin, in DARKROOM_KEY or in the file that DARKROOM_KEY_FILE names.
"""

KEY_EXAMPLES = """\
examples:
  darkroom keys create studio --name website --scope submit --scope read > website.key
  darkroom keys rotate 4k9s0c1x2v3b --overlap 3600 > website.key
  DARKROOM_KEY_FILE=website.key darkroom submit "a lighthouse at dusk"
"""

USAGE = """\
Report the jobs that finished, their images, their GPU time in seconds, and refused submissions, by tenant, key, model
and day (UTC). A key with the scope admin sees all tenants, any other one its own. A job counts some seconds after it
has finished.
"""

SCOPES = ("submit", "read", "cancel", "manage", "admin")
DEFAULT_SCOPES = ["submit", "read", "cancel"]

NO_LIMIT = "none"
NEVER = "never"


def add(commands: Any) -> None:
    tenants = add_group(commands, "tenants", "list, create and change tenants", TENANTS, epilog=TENANT_EXAMPLES)
    actions = add_actions(tenants)
    _add_tenants(actions)
    add_check(actions)
    keys = add_group(commands, "keys", "list, create, rotate and change API keys", KEYS, epilog=KEY_EXAMPLES)
    actions = add_actions(keys)
    _add_keys(actions)
    add_generate(actions)
    _add_usage(commands)


def _add_usage(commands: Any) -> None:
    parser = add_command(commands, "usage", "report jobs, images, GPU time and refusals", USAGE, _run_usage)
    parser.add_argument("--tenant", metavar="NAME", help="only this tenant; others than the own need the scope admin")
    parser.add_argument("--key", metavar="ID", help="only this key")
    parser.add_argument("--model", metavar="NAME", help="only this model")
    parser.add_argument(
        "--from", dest="first", metavar="DAY", help="the first day, in UTC (default: 29 days before --to)"
    )
    parser.add_argument("--to", metavar="DAY", help="the last day, in UTC, which is included (default: today)")
    parser.add_argument(
        "--by",
        metavar="NAMES",
        help="dimensions of the rows, of tenant, key, model and day, separated by commas (default: all)",
    )
    parser.add_argument("--csv", action="store_true", help="print the report as CSV")
    add_url(parser)


def _run_usage(options: argparse.Namespace, output: Output) -> int:
    from darkroom_cli.commands.usage import usage, usage_as_csv

    given = {
        "tenant": options.tenant,
        "key": options.key,
        "model": options.model,
        "from": options.first,
        "to": options.to,
        "group_by": options.by,
    }
    filters = {name: value for name, value in given.items() if value is not None}
    with connect(options) as client:
        return usage_as_csv(client, output, filters) if options.csv else usage(client, output, filters)


def _add_tenants(actions: Any) -> None:
    add_url(add_command(actions, "list", "list tenants", "List the tenants by name.", _list_tenants))
    show = add_command(actions, "show", "show a tenant", "Show a tenant with its limits and keys.", _show_tenant)
    create = add_command(actions, "create", "create a tenant", "Create a tenant and print its name.", _create_tenant)
    text = "Change the weight or limits of a tenant. A limit that is not named keeps its value."
    change = add_command(actions, "change", "change a tenant", text, _change_tenant)
    for parser in (show, create, change):
        _add_name(parser)
    for parser in (create, change):
        parser.add_argument("--weight", type=float, metavar="NUMBER", help="share of each pool, relative to others")
        _add_limits(parser)
    for parser in (show, create, change):
        add_url(parser)
    for name, run, description in (
        ("disable", _disable_tenant, "Refuse all credentials of a tenant. Its running jobs finish."),
        ("enable", _enable_tenant, "Accept the credentials of a tenant again."),
        ("delete", _delete_tenant, "Delete a tenant that has no keys."),
    ):
        parser = add_command(actions, name, f"{name} a tenant", description, run)
        _add_name(parser)
        add_url(parser)


def _add_keys(actions: Any) -> None:
    found = add_command(actions, "list", "list API keys", "List the keys by tenant.", _list_keys)
    found.add_argument("--tenant", metavar="NAME", help="only keys of this tenant")
    add_url(found)
    show = add_command(actions, "show", "show an API key", "Show a key without its secret.", _show_key)
    _add_id(show)
    add_url(show)
    text = "Create a key and print the key, which is shown only this time."
    create = add_command(actions, "create", "create a key", text, _create_key)
    create.add_argument("tenant", metavar="TENANT", help="the name of the tenant")
    create.add_argument("--name", required=True, help="the purpose of the key")
    _add_attributes(create, scopes=f" (default: {', '.join(DEFAULT_SCOPES)})")
    text = "Change a key. Options that are not given keep their values; --scope and --model replace all."
    change = add_command(actions, "change", "change a key", text, _change_key)
    _add_id(change)
    change.add_argument("--name", help="the purpose of the key")
    _add_attributes(change)
    text = "Give a key a new secret and print the key, which is shown only this time."
    rotate = add_command(actions, "rotate", "give a key a new secret", text, _rotate_key)
    _add_id(rotate)
    rotate.add_argument(
        "--overlap", type=_number, metavar="SECONDS", help="validity of the previous secret from now (default: a day)"
    )
    add_url(rotate)
    for name, run, description in (
        ("disable", _disable_key, "Refuse a key until `darkroom keys enable`."),
        ("enable", _enable_key, "Accept a disabled key again."),
        ("delete", _delete_key, "Delete a key. This cannot be undone."),
    ):
        parser = add_command(actions, name, f"{name} a key", description, run)
        _add_id(parser)
        add_url(parser)


def _add_attributes(parser: argparse.ArgumentParser, *, scopes: str = "") -> None:
    parser.add_argument(
        "--scope", action="append", choices=SCOPES, help=f"a scope that the key grants; can be repeated{scopes}"
    )
    parser.add_argument("--model", action="append", metavar="NAME", help="only this model; can be repeated")
    parser.add_argument(
        "--expires", metavar="TIME", help=f"the end of validity, such as 2027-01-31T00:00:00Z, or {NEVER}"
    )
    _add_limits(parser)
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
        help=f"a limit, such as running_jobs=4 or images_per_day=1000; {NO_LIMIT} instead of a number removes a limit; "
        "can be repeated",
    )


def _limit(text: str) -> tuple[str, int | None]:
    name, equals, number = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=NUMBER, such as running_jobs=4")
    return name, None if number == NO_LIMIT else _number(number)


def _number(text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def _list_tenants(options: argparse.Namespace, output: Output) -> int:
    from darkroom_cli.commands.access import list_tenants

    with connect(options) as client:
        return list_tenants(client, output)


def _show_tenant(options: argparse.Namespace, output: Output) -> int:
    from darkroom_cli.commands.access import show_tenant

    with connect(options) as client:
        return show_tenant(client, options.name, output)


def _create_tenant(options: argparse.Namespace, output: Output) -> int:
    from darkroom_cli.commands.access import create_tenant

    members = {"name": options.name, **_given(options, "weight"), "limits": dict(options.limit)}
    with connect(options) as client:
        return create_tenant(client, output, members)


def _change_tenant(options: argparse.Namespace, output: Output) -> int:
    members = _given(options, "weight")
    if not members and not options.limit:
        options.command.error("nothing to change: give --weight or --limit")
    return _set_tenant(options, output, members)


def _disable_tenant(options: argparse.Namespace, output: Output) -> int:
    return _set_tenant(options, output, {"disabled": True})


def _enable_tenant(options: argparse.Namespace, output: Output) -> int:
    return _set_tenant(options, output, {"disabled": False})


def _set_tenant(options: argparse.Namespace, output: Output, members: Mapping[str, Any]) -> int:
    from darkroom_cli.commands.access import change_tenant, changes

    with connect(options) as client:
        return change_tenant(client, options.name, output, changes(members, _limits_of(options)))


def _delete_tenant(options: argparse.Namespace, output: Output) -> int:
    from darkroom_cli.commands.access import delete_tenant

    with connect(options) as client:
        return delete_tenant(client, options.name, output)


def _list_keys(options: argparse.Namespace, output: Output) -> int:
    from darkroom_cli.commands.access import list_keys

    with connect(options) as client:
        return list_keys(client, output, tenant=options.tenant)


def _show_key(options: argparse.Namespace, output: Output) -> int:
    from darkroom_cli.commands.access import show_key

    with connect(options) as client:
        return show_key(client, options.id, output)


def _create_key(options: argparse.Namespace, output: Output) -> int:
    from darkroom_cli.commands.access import create_key

    members = {"tenant": options.tenant, "scopes": DEFAULT_SCOPES, **_attributes(options)}
    with connect(options) as client:
        return create_key(client, output, {**members, "limits": dict(options.limit)})


def _change_key(options: argparse.Namespace, output: Output) -> int:
    members = _attributes(options)
    if not members and not options.limit:
        options.command.error("nothing to change: give --name, --scope, --model, --expires or --limit")
    return _set_key(options, output, members)


def _attributes(options: argparse.Namespace) -> dict[str, Any]:
    """The fields of a key that are given."""
    members = _given(options, "name")
    for option, field in (("scope", "scopes"), ("model", "models"), ("expires", "expires_at")):
        if (value := getattr(options, option)) is not None:
            members[field] = None if value == NEVER else value
    return members


def _rotate_key(options: argparse.Namespace, output: Output) -> int:
    from darkroom_cli.commands.access import rotate_key

    with connect(options) as client:
        return rotate_key(client, options.id, output, overlap_s=options.overlap)


def _disable_key(options: argparse.Namespace, output: Output) -> int:
    return _set_key(options, output, {"disabled": True})


def _enable_key(options: argparse.Namespace, output: Output) -> int:
    return _set_key(options, output, {"disabled": False})


def _set_key(options: argparse.Namespace, output: Output, members: Mapping[str, Any]) -> int:
    from darkroom_cli.commands.access import change_key, changes

    with connect(options) as client:
        return change_key(client, options.id, output, changes(members, _limits_of(options)))


def _delete_key(options: argparse.Namespace, output: Output) -> int:
    from darkroom_cli.commands.access import delete_key

    with connect(options) as client:
        return delete_key(client, options.id, output)


def _given(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    return {name: value for name in names if (value := getattr(options, name)) is not None}


def _limits_of(options: argparse.Namespace) -> dict[str, int | None]:
    return dict(getattr(options, "limit", ()))
