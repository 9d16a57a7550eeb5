"""The entry of `darkroom`: parses the command line, runs the command, and turns errors into an exit status.

`parsers/` defines the commands and their arguments, `commands/` and the other rooms implement them. An error that a
command raises is written to stderr (with `--json`, to stdout as an object too); `exits.py` defines the exit statuses.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from darkroom_cli.exits import BAD_INPUT, DONE, FAILED, HELP, INTERRUPTED, UNREACHABLE
from darkroom_cli.parsers import access, dead_letters, environments, jobs, operators, subscriptions, up
from darkroom_cli.parsers.arguments import Run, add_command
from darkroom_cli.terminal.output import NotWritten, Output

if TYPE_CHECKING:
    from darkroom.errors import DarkroomError

DESCRIPTION = """\
darkroom generates images from text. To run it on this machine:

  darkroom up                                  in one terminal; prints the address when ready
  darkroom submit "a lighthouse at dusk"       in another; waits, and saves the picture

To use a server elsewhere, name it with --url or DARKROOM_URL. The key for it is read from DARKROOM_KEY, or from the
file that DARKROOM_KEY_FILE names.
"""

COMPLETION = 'Print a script that completes the commands in a shell: eval "$(darkroom completion bash)".'


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    options = _options(arguments)
    output = Output(as_json=options.json)
    from darkroom.errors import DarkroomError

    try:
        run: Run = options.run
        return run(options, output)
    except DarkroomError as error:
        return _report(error, output)
    except KeyboardInterrupt:
        return INTERRUPTED


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The parsed command line. An error is reported with the usage of the command that was given."""
    options, unknown = parser().parse_known_args(arguments)
    if unknown:
        given = " ".join(unknown)
        if options.run is jobs.run_submit and not any(word.startswith("-") for word in unknown):
            options.command.error(f'quote the prompt: darkroom submit "{options.prompt} {given}"')
        options.command.error(f"unrecognized arguments: {given}")
    return options


def _report(error: DarkroomError, output: Output) -> int:
    from darkroom.errors import TemporaryError

    from darkroom_cli.problems import RequestRefused, ServerUnavailable

    problem = error.problem()
    with suppress(NotWritten):
        output.record({"error": problem})
    remedy = f"; try again in {error.retry_after} s" if isinstance(error, ServerUnavailable) else ""
    if isinstance(error, RequestRefused) and error.advice:
        remedy = f": {error.advice}"
    # The server often repeats a field's error in the problem's detail.
    is_repeated = any(fault.detail in error.detail for fault in error.fields)
    output.error(f"darkroom: {problem.get('title') if is_repeated else error.detail}{remedy}")
    for fault in error.fields:
        output.error(f"  {fault.field.removeprefix('data.').removeprefix('input.')} {fault.detail}")
    if isinstance(error, TemporaryError):
        return UNREACHABLE
    if isinstance(error, NotWritten):
        return FAILED
    return BAD_INPUT


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    root = argparse.ArgumentParser(
        prog="darkroom", description=DESCRIPTION, epilog=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    root.add_argument("--version", action="version", version=_version())
    commands = root.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for group in (up, jobs, subscriptions, dead_letters, access, operators, environments):
        group.add(commands)
    _add_completion(commands)
    return root


def _add_completion(commands: Any) -> None:
    completion = add_command(commands, "completion", "print a script for shell completion", COMPLETION, _run_completion)
    completion.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="the shell that runs the script")


def _run_completion(options: argparse.Namespace, output: Output) -> int:
    import shtab

    script = shtab.complete(parser(), options.shell)
    output.record({"shell": options.shell, "script": script})
    output.result(script)
    return DONE


def _version() -> str:
    try:
        return f"darkroom {version('darkroom')}"
    except PackageNotFoundError:
        return "darkroom, not installed: run from its sources"
