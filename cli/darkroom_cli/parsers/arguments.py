"""Arguments that several commands share, and the options that every command has."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from darkroom_cli.address import DEFAULT_URL
from darkroom_cli.terminal.output import Output

if TYPE_CHECKING:
    from darkroom_cli.client import Client

Run = Callable[[argparse.Namespace, Output], int]
"""Runs a command with its parsed arguments; returns the exit status."""

MAX_PORT = 65_535


def add_command(
    commands: Any, name: str, summary: str, description: str, run: Run, *, epilog: str | None = None
) -> argparse.ArgumentParser:
    """Add a command with the options that all commands have; `commands` is what `add_subparsers` returned."""
    parser = _add_parser(commands, name, summary, description, epilog)
    parser.set_defaults(run=run, command=parser)
    parser.add_argument(
        "--json", action="store_true", help="write one JSON object per line to stdout, and only errors to stderr"
    )
    return parser


def add_group(
    commands: Any, name: str, summary: str, description: str, *, epilog: str | None = None
) -> argparse.ArgumentParser:
    """Add a command that only has subcommands."""
    return _add_parser(commands, name, summary, description, epilog)


def _add_parser(
    commands: Any, name: str, summary: str, description: str, epilog: str | None
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    return parser


def add_actions(group: argparse.ArgumentParser) -> Any:
    """The subcommands of a group, for `add_command`."""
    return group.add_subparsers(title="actions", metavar="ACTION", required=True)


def add_id(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", metavar="ID", help="the id of the job")


def add_parameter(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument(
        "-p",
        "--parameter",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help=f'{what}; a value that is valid JSON (5, 0.5, true, "text") is parsed as JSON, any other is text',
    )


def add_output(parser: argparse.ArgumentParser, *, default: str | None, shown: str) -> None:
    parser.add_argument(
        "-o",
        "--output",
        default=default,
        metavar="FILE|FOLDER|-",
        help=f"where to save pictures, - for standard output (default: {shown})",
    )
    parser.add_argument("--force", action="store_true", help="overwrite existing files")


def add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FOLDER",
        help="the data folder of a running `darkroom up` (default: DARKROOM_HOME, or .darkroom in this folder)",
    )


def add_url(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", help=f"the server's address (default: DARKROOM_URL, or {DEFAULT_URL})")


def port(text: str) -> int:
    number = int(text) if text.isdecimal() else -1
    if not 0 <= number <= MAX_PORT:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port, 0 to {MAX_PORT}")
    return number


def count(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return number


def connect(options: argparse.Namespace) -> Client:
    """A client of the server that `--url` or the environment names, to be closed after use."""
    from darkroom_cli.client import client_of

    return client_of(options.url)
