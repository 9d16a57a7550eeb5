"""Commands that submit, read and cancel jobs, and list the models that jobs can name."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from darkroom_cli.parsers.arguments import (
    add_command,
    add_id,
    add_output,
    add_parameter,
    add_url,
    connect,
    count,
)
from darkroom_cli.terminal.output import Output

if TYPE_CHECKING:
    from darkroom_cli.terminal.pictures import PictureTarget

LISTED = 20
"""Default number of jobs that `list` shows: one screen."""

SUBMIT = """\
Submit a job, wait for it, and save its pictures. The result is one line per picture: the file, the model, and the seed
that reproduces it. Parameters that are not given have the model's defaults; `darkroom models` lists them.
"""

SUBMIT_EXAMPLES = """\
examples:
  darkroom submit "a lighthouse at dusk"
  darkroom submit "a lighthouse at dusk" --model sd --width 832 --height 1216 --steps 4 --seed 7
  darkroom submit "a lighthouse at dusk" --images 4 --output pictures/
  darkroom submit "a lighthouse at dusk" -p scheduler=euler -p guidance=5
  darkroom submit "a lighthouse at dusk" --no-wait        prints the id, for `darkroom watch` and `darkroom cancel`
  darkroom submit "a lighthouse at dusk" --json | tail -1  the finished job, with its files
"""

WATCH = """\
Follow a job until it finishes. Its pictures are saved if --output is given; otherwise their links are printed.
"""

CANCEL = """\
Cancel a job. A pending job will not run; a running job stops within one denoising step. A finished job cannot be
cancelled (exit status 1).
"""


def add(commands: Any) -> None:
    _add_submit(commands)
    watch = add_command(commands, "watch", "follow a job until it finishes", WATCH, _run_watch)
    add_id(watch)
    add_output(watch, default=None, shown="nothing is saved")
    status = add_command(
        commands, "status", "show a job's state", "Show a job's current state and return.", _run_status
    )
    add_id(status)
    cancel = add_command(commands, "cancel", "cancel a job", CANCEL, _run_cancel)
    add_id(cancel)
    _add_list(commands)
    text = "Delete a finished job and its pictures. This cannot be undone."
    delete = add_command(commands, "delete", "delete a finished job and its pictures", text, _run_delete)
    add_id(delete)
    text = "List the server's models with their parameters, limits and defaults."
    models = add_command(commands, "models", "list the models and their parameters", text, _run_models)
    for parser in (watch, status, cancel, delete, models):
        add_url(parser)


def _add_submit(commands: Any) -> None:
    parser = add_command(
        commands, "submit", "submit a job, wait, and save its pictures", SUBMIT, run_submit, epilog=SUBMIT_EXAMPLES
    )
    parser.add_argument("prompt", metavar="PROMPT", help="a description of the picture, in quotes")
    parser.add_argument("--model", metavar="NAME", help="the model (default: the server's default model)")
    parser.add_argument("--width", type=int, metavar="PIXELS", help="width of the pictures in pixels")
    parser.add_argument("--height", type=int, metavar="PIXELS", help="height of the pictures in pixels")
    parser.add_argument("--steps", type=int, metavar="N", help="number of denoising steps; more steps take longer")
    parser.add_argument("--seed", type=int, metavar="N", help="the random seed; the same seed makes the same picture")
    parser.add_argument("--images", type=int, metavar="N", help="number of pictures")
    parser.add_argument("--negative-prompt", metavar="TEXT", help="a description of what the picture must not show")
    add_parameter(parser, "any other parameter of the model")
    parser.add_argument("--no-wait", action="store_true", help="print the job's id and return immediately")
    add_output(parser, default=".", shown="<job id>.png in this folder")
    add_url(parser)


def _add_list(commands: Any) -> None:
    text = "List jobs, newest first: id, time, state, model and prompt."
    parser = add_command(commands, "list", "list jobs, newest first", text, _run_list)
    parser.add_argument("--state", metavar="STATE", help="only jobs in this state: pending, running, completed, …")
    parser.add_argument("--model", metavar="NAME", help="only jobs of this model")
    parser.add_argument("--user-id", metavar="ID", help="only jobs of this user")
    parser.add_argument(
        "--limit", type=count, default=LISTED, metavar="N", help=f"maximum number of jobs (default: {LISTED})"
    )
    add_url(parser)


def run_submit(options: argparse.Namespace, output: Output) -> int:
    from darkroom_cli.commands import submit

    names = ("width", "height", "steps", "seed", "images", "negative_prompt")
    given = {name: value for name in names if (value := getattr(options, name)) is not None}
    request = submit.JobRequest(
        model=options.model,
        parameters=submit.parameters(options.parameter, options={"prompt": options.prompt, **given}),
    )
    target = None if options.no_wait else _target(options)
    with connect(options) as client:
        return submit.submit(client, request, output, target=target)


def _target(options: argparse.Namespace) -> PictureTarget | None:
    from darkroom.errors import InvalidInput

    from darkroom_cli.terminal.pictures import STDOUT, PictureTarget

    if options.output is None:
        return None
    if options.output == STDOUT and options.json:
        raise InvalidInput(f"--output {STDOUT} cannot be combined with --json, which writes JSON to standard output")
    return PictureTarget.parse(options.output, overwrite=options.force)


def _run_watch(options: argparse.Namespace, output: Output) -> int:
    from darkroom_cli.commands.watch import watch

    with connect(options) as client:
        return watch(client, options.id, output, target=_target(options))


def _run_status(options: argparse.Namespace, output: Output) -> int:
    from darkroom_cli.commands.status import status

    with connect(options) as client:
        return status(client, options.id, output)


def _run_cancel(options: argparse.Namespace, output: Output) -> int:
    from darkroom_cli.commands.cancel import cancel

    with connect(options) as client:
        return cancel(client, options.id, output)


def _run_list(options: argparse.Namespace, output: Output) -> int:
    from darkroom_cli.commands.listing import list_jobs

    named = {"state": options.state, "model": options.model, "user_id": options.user_id}
    filters = {name: value for name, value in named.items() if value is not None}
    with connect(options) as client:
        return list_jobs(client, output, filters=filters, limit=options.limit)


def _run_delete(options: argparse.Namespace, output: Output) -> int:
    from darkroom_cli.commands.listing import delete

    with connect(options) as client:
        return delete(client, options.id, output)


def _run_models(options: argparse.Namespace, output: Output) -> int:
    from darkroom_cli.commands.models import models

    with connect(options) as client:
        return models(client, output)
