"""`darkroom tenants check` and `darkroom keys generate`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from darkroom_cli.parsers.arguments import add_command
from darkroom_cli.terminal.output import Output

CHECK = """\
Check a file of tenants (DARKROOM_TENANTS_FILE) before it is mounted. Each fault is a line with its position, and the
exit status is 1 then. No server is needed. Secret files are read with --secrets only, since these are often elsewhere.
"""

GENERATE = """\
Print a new key, which no server knows, and its id and digest on stderr: for a file of tenants, or for
DARKROOM_ROOT_KEY. With --id it is a new secret of that key, for a rotation.
"""


def add_check(actions: Any) -> None:
    """Add `check` to the actions of `tenants`."""
    parser = add_command(actions, "check", "check a file of tenants", CHECK, _check)
    parser.add_argument("file", type=Path, metavar="FILE", help="the file of tenants, in YAML")
    parser.add_argument("--secrets", action="store_true", help="read the secret files that it names, too")


def add_generate(actions: Any) -> None:
    """Add `generate` to the actions of `keys`."""
    parser = add_command(actions, "generate", "make a key for a file of tenants", GENERATE, _generate)
    parser.add_argument("--id", type=_key_id, metavar="ID", help="the id of the key whose secret is to be rotated")


def _key_id(text: str) -> str:
    from darkroom.access.credentials import is_key_id

    if not is_key_id(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not the id of a key: 12 lower-case letters and digits")
    return text


def _check(options: argparse.Namespace, output: Output) -> int:
    from darkroom_cli.commands.declarations import check_file

    return check_file(options.file, output, with_secrets=options.secrets)


def _generate(options: argparse.Namespace, output: Output) -> int:
    from darkroom_cli.commands.declarations import generate_key

    return generate_key(output, key_id=options.id)
