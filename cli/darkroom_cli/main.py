"""The entry of `darkroom`: which commands there are, what they take, and how they end.

Each command is a module of its own, imported when it is asked for. What they raise ends here: a sentence on stderr
(with `--json`, an object on stdout too) and an exit status of `exits.py`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from darkroom_cli.exits import BAD_INPUT, DONE, FAILED, HELP, INTERRUPTED, UNREACHABLE
from darkroom_cli.local.welcome import DEFAULT_URL
from darkroom_cli.terminal.output import NotWritten, Output

if TYPE_CHECKING:
    from darkroom.errors import DarkroomError

    from darkroom_cli.client import Client
    from darkroom_cli.environments.environment import Entered
    from darkroom_cli.terminal.pictures import Destination

DEFAULT_PORT = 8000

MAX_PORT = 65_535

LISTED = 20
"""Jobs that `list` shows: a screenful."""

DESCRIPTION = """\
darkroom makes images from text. Run it on this machine:

  darkroom up                                  in one terminal; it says when it is ready
  darkroom submit "a lighthouse at dusk"       in another; waits, and saves the picture

or talk to one that runs elsewhere, by --url or DARKROOM_URL.
"""

UP = """\
Run everything on this machine until Ctrl-C: Redis, the functions behind one port, a worker and a courier, each a
process of its own with its own log. Jobs and pictures are kept in the data folder: the next `up` there goes on with
them.

The models flux and sd are served by untrained stand-ins, whose pictures are coloured noise, until --model names
weights. Model files of your own are read from the folders in DARKROOM_MODELS.

With DARKROOM_REDIS_URL that Redis is used, and none is started.
"""

SUBMIT = """\
Ask for a picture, wait for it, and save it. The result is one line: the file, what made it, and the seed that makes it
again. Parameters left out are the model's own defaults; `darkroom models` lists them.
"""

SUBMIT_EXAMPLES = """\
examples:
  darkroom submit "a lighthouse at dusk"
  darkroom submit "a lighthouse at dusk" --model sd --width 832 --height 1216 --steps 4 --seed 7
  darkroom submit "a lighthouse at dusk" --images 4 --output pictures/
  darkroom submit "a lighthouse at dusk" -p scheduler=euler -p guidance=5
  darkroom submit "a lighthouse at dusk" --no-wait        says the id, for `darkroom watch` and `darkroom cancel`
  darkroom submit "a lighthouse at dusk" --json | tail -1  the finished job, with its files
"""

AUDIT = """\
For operators. Read all that Redis holds, a slice at a time, and hold it against itself, the object store and the
history: every job is in exactly one place, its log has no gap, its end is told or still to be told, its pictures are
those that were published. What seems wrong is looked at again after two seconds. Messages that no job needs any more
are named as stale, and are no finding: workers drop them.

Redis, the store and the history are those of DARKROOM_REDIS_URL, DARKROOM_STORE and DARKROOM_DATABASE_URL; without the
first, those of the `darkroom up` that runs here. With --repair the exit status is 0 when all that was found was put
right.
"""

DOCTOR = """\
For operators. Look at Redis, the workers, the courier and the sink, and say for each finding what to do about it.
Workers that say they are idle are sent a message that stands for no job, to see that they take it.

Redis is that of DARKROOM_REDIS_URL; without it, that of the `darkroom up` that runs here.
"""


REPLAY = """\
For operators. The operator writes down how many replicas a pool was to have, with all that the decision was made of.
Decide all of it again and say what comes out differently: nothing, unless the rules have changed since. With --policy
also say what another policy would have done with the same jobs, in simulated time: waits, replica-seconds, and jobs
that were interrupted.

Redis is that of DARKROOM_REDIS_URL; without it, that of the `darkroom up` that runs here. The exit status is 1 when
something comes out differently.
"""

ENV = """\
For those who develop darkroom, in a checkout. The environments dev, demo and test are databases 4, 2 and 3 of one
Redis, each with a prefix of its own; `make api-dev`, `make celery-dev` and so on run these commands.

Settings come from the environment, then env/.env.NAME, then env/.env (env/.env.example lists them), then the defaults.
"""

SUBSCRIPTIONS = """\
A subscription is an address to which the events of all jobs, or of those of some models, are posted as webhooks.
"""

DEAD_LETTERS = """\
A job whose attempts are used up is a dead letter: it is kept, with what asked for it and how each attempt ended, until
it is purged, or redriven, which makes a new job of it.
"""

DEAD_LETTERS_EXAMPLES = """\
examples:
  darkroom dead-letters list
  darkroom dead-letters redrive ID                        as it was
  darkroom dead-letters redrive ID -p steps=4 -p seed=7   with other parameters
  darkroom dead-letters purge --all
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; answers its exit status."""
    options = _options(arguments)
    output = Output(as_json=options.json)
    from darkroom.errors import DarkroomError

    try:
        run: Callable[[argparse.Namespace, Output], int] = options.run
        return run(options, output)
    except DarkroomError as error:
        return _failed(error, output)
    except KeyboardInterrupt:
        return INTERRUPTED


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line, read. What is at fault is reported with the usage of the command that it was given to."""
    options, unknown = _parser().parse_known_args(arguments)
    if unknown:
        given = " ".join(unknown)
        if options.run is _run_submit and not any(word.startswith("-") for word in unknown):
            options.command.error(f'quote the prompt: darkroom submit "{options.prompt} {given}"')
        options.command.error(f"unrecognized arguments: {given}")
    return options


def _failed(error: DarkroomError, output: Output) -> int:
    from darkroom.errors import TemporaryError

    from darkroom_cli.client import NotNow

    problem = error.problem()
    with suppress(NotWritten):
        output.record({"error": problem})
    again = f"; try again in {error.retry_after} s" if isinstance(error, NotNow) else ""
    # What is said of the fields is often said in the sentence too, in the server's own words for them.
    is_said_twice = any(fault.detail in error.detail for fault in error.fields)
    output.complain(f"darkroom: {problem.get('title') if is_said_twice else error.detail}{again}")
    for fault in error.fields:
        output.complain(f"  {fault.field.removeprefix('data.').removeprefix('input.')} {fault.detail}")
    if isinstance(error, TemporaryError):
        return UNREACHABLE
    if isinstance(error, NotWritten):
        return FAILED
    return BAD_INPUT


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="darkroom", description=DESCRIPTION, epilog=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_up(commands)
    _add_submit(commands)
    _add_watch(commands)
    _add_status(commands)
    _add_cancel(commands)
    _add_list(commands)
    _add_delete(commands)
    _add_models(commands)
    _add_subscriptions(commands)
    _add_dead_letters(commands)
    _add_audit(commands)
    _add_doctor(commands)
    _add_replay(commands)
    _add_env(commands)
    _add_completion(commands)
    return parser


def _add_up(commands: Any) -> None:
    parser = _command(commands, "up", "run everything on this machine", UP, _run_up)
    parser.add_argument(
        "--port", type=_port, default=DEFAULT_PORT, help="the port to serve (8000); 0 is any that is free"
    )
    parser.add_argument(
        "--data", type=Path, metavar="FOLDER", help="the data folder (DARKROOM_HOME, or .darkroom where you are)"
    )
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="NAME=SOURCE",
        help="serve a model from a folder of weights or a hub id, such as flux=black-forest-labs/FLUX.1-schnell; may "
        "be given several times",
    )


def _add_submit(commands: Any) -> None:
    parser = _command(
        commands, "submit", "ask for a picture, wait and save it", SUBMIT, _run_submit, epilog=SUBMIT_EXAMPLES
    )
    parser.add_argument("prompt", metavar="PROMPT", help="what the picture shows, in quotes")
    parser.add_argument("--model", metavar="NAME", help="the model; left out, the server's default")
    parser.add_argument("--width", type=int, metavar="PIXELS")
    parser.add_argument("--height", type=int, metavar="PIXELS")
    parser.add_argument("--steps", type=int, metavar="N", help="denoising steps: more take longer")
    parser.add_argument("--seed", type=int, metavar="N", help="the same seed makes the same picture")
    parser.add_argument("--images", type=int, metavar="N", help="how many pictures")
    parser.add_argument("--negative-prompt", metavar="TEXT", help="what the picture does not show")
    _add_parameter(parser, "any other parameter of the model.")
    parser.add_argument("--no-wait", action="store_true", help="say the job's id and return at once")
    _add_output(parser, default=".", shown="<job id>.png where you are")
    _add_url(parser)


def _add_watch(commands: Any) -> None:
    text = (
        "Follow a job to its end, wherever it is now. Its pictures are saved with --output, else their links are said."
    )
    parser = _command(commands, "watch", "follow a job to its end", text, _run_watch)
    _add_id(parser)
    _add_output(parser, default=None, shown="nothing is saved")
    _add_url(parser)


def _add_status(commands: Any) -> None:
    parser = _command(commands, "status", "say how a job is now", "Say how a job is now, and return.", _run_status)
    _add_id(parser)
    _add_url(parser)


def _add_cancel(commands: Any) -> None:
    text = (
        "Cancel a job. One that waits will not run; one that runs is stopped within a denoising step. After its end "
        "it is too late (exit status 1)."
    )
    parser = _command(commands, "cancel", "cancel a job", text, _run_cancel)
    _add_id(parser)
    _add_url(parser)


def _add_list(commands: Any) -> None:
    text = "List jobs, the newest first: id, time, state, model and prompt."
    parser = _command(commands, "list", "list jobs", text, _run_list)
    parser.add_argument("--state", metavar="STATE", help="jobs in this state: pending, running, completed, failed, …")
    parser.add_argument("--model", metavar="NAME", help="jobs of this model")
    parser.add_argument("--user-id", metavar="ID", help="jobs of this user")
    parser.add_argument("--limit", type=_count, default=LISTED, metavar="N", help=f"how many; {LISTED} when left out")
    _add_url(parser)


def _add_delete(commands: Any) -> None:
    text = "Delete a job that has finished, with its pictures. Nothing of it can be read afterwards."
    parser = _command(commands, "delete", "delete a finished job with its pictures", text, _run_delete)
    _add_id(parser)
    _add_url(parser)


def _add_subscriptions(commands: Any) -> None:
    parser = commands.add_parser(
        "subscriptions",
        help="list, create and delete webhooks for all jobs",
        description=SUBSCRIPTIONS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    _add_url(_command(actions, "list", "list them", "List the subscriptions.", _run_subscriptions_list))
    text = "Create a subscription, and print its id. `secret` prints what verifies its posts."
    created = _command(actions, "create", "create one", text, _run_subscriptions_create)
    created.add_argument("receiver", metavar="ADDRESS", help="the address that events are posted to")
    created.add_argument(
        "--event",
        action="append",
        metavar="EVENT",
        help="an event to post, such as completed; may be given several times; left out: every end of a job",
    )
    created.add_argument("--model", action="append", metavar="NAME", help="jobs of this model; several times for more")
    _add_url(created)
    text = "Print the secret that verifies the posts of a subscription."
    for name, summary, described, run in (
        ("secret", "print the secret of one", text, _run_subscriptions_secret),
        ("delete", "delete one", "Delete a subscription: nothing more is posted to it.", _run_subscriptions_delete),
    ):
        one = _command(actions, name, summary, described, run)
        one.add_argument("id", metavar="ID", help="the subscription's id")
        _add_url(one)


def _add_completion(commands: Any) -> None:
    text = 'Print a script that completes the commands in a shell: eval "$(darkroom completion bash)".'
    parser = _command(commands, "completion", "print a script for completion in a shell", text, _run_completion)
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="the shell")


def _add_models(commands: Any) -> None:
    text = "List the models of the server with their parameters, limits and defaults."
    parser = _command(commands, "models", "list the models and what they take", text, _run_models)
    _add_url(parser)


def _add_dead_letters(commands: Any) -> None:
    parser = commands.add_parser(
        "dead-letters",
        help="list, show, redrive and purge jobs whose attempts are used up",
        description=DEAD_LETTERS,
        epilog=DEAD_LETTERS_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    text = "List the dead letters, the last that ended first."
    _add_url(_command(actions, "list", "list them", text, _run_dead_letters_list))

    text = "Show why the job failed, how each attempt ended, and the event that asked for it."
    shown = _command(actions, "show", "show one of them", text, _run_dead_letters_show)
    _add_id(shown)
    _add_url(shown)

    text = "Make a new job of a dead letter, which is one no more; says the id of the new job."
    redriven = _command(actions, "redrive", "make a new job of one of them", text, _run_dead_letters_redrive)
    _add_id(redriven)
    _add_parameter(redriven, "a parameter that is to be another.")
    _add_url(redriven)

    text = "Let a dead letter be one no more. Its job stays failed, and is forgotten in its time."
    purged = _command(actions, "purge", "let one of them, or all, be forgotten", text, _run_dead_letters_purge)
    which = purged.add_mutually_exclusive_group(required=True)
    which.add_argument("id", metavar="ID", nargs="?", help="the job's id")
    which.add_argument("--all", action="store_true", help="all there are")
    _add_url(purged)


def _add_audit(commands: Any) -> None:
    parser = _command(commands, "audit", "find jobs that are nowhere, or in two places", AUDIT, _run_audit)
    parser.add_argument("--repair", action="store_true", help="put each job where its record says that it belongs")
    parser.add_argument("--no-artifacts", action="store_true", help="do not read the pictures")
    _add_data(parser)


def _add_doctor(commands: Any) -> None:
    parser = _command(commands, "doctor", "find what is wrong, and say what to do about it", DOCTOR, _run_doctor)
    _add_data(parser)


def _add_replay(commands: Any) -> None:
    parser = _command(commands, "replay", "decide a pool's scaling again, or by another policy", REPLAY, _run_replay)
    parser.add_argument("pool", metavar="POOL", help="the worker pool")
    parser.add_argument(
        "--policy",
        type=Path,
        metavar="FILE",
        help="a WorkerPool, or the spec of one, in YAML or JSON: what would it do?",
    )
    _add_data(parser)


def _add_env(commands: Any) -> None:
    parser = commands.add_parser(
        "env",
        help="run the parts of the environment dev, demo or test, or look at its Redis",
        description=ENV,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("environment", metavar="NAME", help="dev, demo or test")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    text = "Run the functions behind one port, and the courier, until Ctrl-C."
    _add_port(_command(actions, "api", "run functions and courier", text, _run_env_api), "8001, 8002, 8003")
    text = "Run a worker that takes the jobs, until Ctrl-C."
    _command(actions, "worker", "run a worker", text, _run_env_worker)
    text = "Run Flower, Celery's dashboard. It asks for the name and password in FLOWER_BASIC_AUTH."
    _add_port(_command(actions, "flower", "run Flower", text, _run_env_flower), "5555, 5556, 5557")
    _command(actions, "keys", "list its keys in Redis", "List its keys in Redis.", _run_env_keys)
    text = "Say how many keys it has, and how much memory Redis takes."
    _command(actions, "info", "say how much is in Redis", text, _run_env_info)
    text = "Delete its keys in Redis: jobs, queues, deliveries. Pictures and the history stay. It asks first."
    flushed = _command(actions, "flush", "delete its keys in Redis", text, _run_env_flush)
    flushed.add_argument("--yes", action="store_true", help="do not ask")
    for action in actions.choices.values():
        action.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")


def _add_port(parser: argparse.ArgumentParser, defaults: str) -> None:
    parser.add_argument("--port", type=_port, help=f"the port to serve ({defaults} by the environment)")


def _command(
    commands: Any,
    name: str,
    summary: str,
    text: str,
    run: Callable[[argparse.Namespace, Output], int],
    *,
    epilog: str | None = None,
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=text, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.set_defaults(run=run, command=parser)
    parser.add_argument(
        "--json", action="store_true", help="one JSON object a line on stdout, and nothing but errors on stderr"
    )
    return parser


def _add_id(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", metavar="ID", help="the job's id")


def _add_parameter(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument(
        "-p",
        "--parameter",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help=f'{what} A value that is JSON (5, 0.5, true, "text") is taken as that, any other as text',
    )


def _add_output(parser: argparse.ArgumentParser, *, default: str | None, shown: str) -> None:
    parser.add_argument(
        "-o",
        "--output",
        default=default,
        metavar="FILE|FOLDER|-",
        help=f"where pictures are saved, - for standard output; left out: {shown}",
    )
    parser.add_argument("--force", action="store_true", help="overwrite files that exist")


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FOLDER",
        help="the data folder of the `darkroom up` to look at (DARKROOM_HOME, or .darkroom where you are)",
    )


def _add_url(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", help=f"the server's address (DARKROOM_URL, or {DEFAULT_URL})")


def _port(text: str) -> int:
    port = int(text) if text.isdecimal() else -1
    if not 0 <= port <= MAX_PORT:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port, 0 to {MAX_PORT}")
    return port


def _count(text: str) -> int:
    count = int(text) if text.isdecimal() else 0
    if count < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1")
    return count


def _version() -> str:
    try:
        return f"darkroom {version('darkroom')}"
    except PackageNotFoundError:
        return "darkroom, not installed: run from its sources"


def _run_up(options: argparse.Namespace, output: Output) -> int:
    from darkroom_cli.local.models import Replacement
    from darkroom_cli.local.up import Options, up

    return up(Options(options.port, options.data, tuple(map(Replacement.parse, options.model))), output)


def _run_submit(options: argparse.Namespace, output: Output) -> int:
    from darkroom_cli.commands import submit

    names = ("width", "height", "steps", "seed", "images", "negative_prompt")
    given = {name: value for name in names if (value := getattr(options, name)) is not None}
    request = submit.JobRequest(
        model=options.model,
        parameters=submit.parameters(options.parameter, options={"prompt": options.prompt, **given}),
    )
    destination = None if options.no_wait else _destination(options)
    with _client(options) as client:
        return submit.submit(client, request, output, destination=destination)


def _destination(options: argparse.Namespace) -> Destination | None:
    from darkroom.errors import InvalidInput

    from darkroom_cli.terminal.pictures import STDOUT, Destination

    if options.output is None:
        return None
    if options.output == STDOUT and options.json:
        raise InvalidInput(f"--output {STDOUT}: with --json standard output carries JSON alone")
    return Destination.parse(options.output, overwrite=options.force)


def _run_watch(options: argparse.Namespace, output: Output) -> int:
    from darkroom_cli.commands.watch import watch

    with _client(options) as client:
        return watch(client, options.id, output, destination=_destination(options))


def _run_status(options: argparse.Namespace, output: Output) -> int:
    from darkroom_cli.commands.status import status

    with _client(options) as client:
        return status(client, options.id, output)


def _run_cancel(options: argparse.Namespace, output: Output) -> int:
    from darkroom_cli.commands.cancel import cancel

    with _client(options) as client:
        return cancel(client, options.id, output)


def _run_list(options: argparse.Namespace, output: Output) -> int:
    from darkroom_cli.commands.listing import list_jobs

    named = {"state": options.state, "model": options.model, "user_id": options.user_id}
    with _client(options) as client:
        filters = {name: value for name, value in named.items() if value is not None}
        return list_jobs(client, output, filters=filters, limit=options.limit)


def _run_delete(options: argparse.Namespace, output: Output) -> int:
    from darkroom_cli.commands.listing import delete

    with _client(options) as client:
        return delete(client, options.id, output)


def _run_subscriptions_list(options: argparse.Namespace, output: Output) -> int:
    from darkroom_cli.commands.subscriptions import list_subscriptions

    with _client(options) as client:
        return list_subscriptions(client, output)


def _run_subscriptions_create(options: argparse.Namespace, output: Output) -> int:
    from darkroom_cli.commands.subscriptions import create

    with _client(options) as client:
        return create(client, output, url=options.receiver, events=options.event, models=options.model)


def _run_subscriptions_secret(options: argparse.Namespace, output: Output) -> int:
    from darkroom_cli.commands.subscriptions import secret

    with _client(options) as client:
        return secret(client, options.id, output)


def _run_subscriptions_delete(options: argparse.Namespace, output: Output) -> int:
    from darkroom_cli.commands.subscriptions import delete

    with _client(options) as client:
        return delete(client, options.id, output)


def _run_completion(options: argparse.Namespace, output: Output) -> int:
    import shtab

    script = shtab.complete(_parser(), options.shell)
    output.record({"shell": options.shell, "script": script})
    output.result(script)
    return DONE


def _run_models(options: argparse.Namespace, output: Output) -> int:
    from darkroom_cli.commands.models import models

    with _client(options) as client:
        return models(client, output)


def _run_dead_letters_list(options: argparse.Namespace, output: Output) -> int:
    from darkroom_cli.commands.dead_letters import list_letters

    with _client(options) as client:
        return list_letters(client, output)


def _run_dead_letters_show(options: argparse.Namespace, output: Output) -> int:
    from darkroom_cli.commands.dead_letters import show

    with _client(options) as client:
        return show(client, options.id, output)


def _run_dead_letters_redrive(options: argparse.Namespace, output: Output) -> int:
    from darkroom_cli.commands.dead_letters import redrive
    from darkroom_cli.commands.submit import parameters

    with _client(options) as client:
        return redrive(client, options.id, parameters(options.parameter), output)


def _run_dead_letters_purge(options: argparse.Namespace, output: Output) -> int:
    from darkroom_cli.commands.dead_letters import purge, purge_all

    with _client(options) as client:
        return purge_all(client, output) if options.all else purge(client, options.id, output)


def _run_audit(options: argparse.Namespace, output: Output) -> int:
    from darkroom_cli.commands.audit import Options, audit

    return audit(Options(options.data, repair=options.repair, artifacts=not options.no_artifacts), output)


def _run_doctor(options: argparse.Namespace, output: Output) -> int:
    from darkroom_cli.commands.doctor import doctor

    return doctor(options.data, output)


def _run_replay(options: argparse.Namespace, output: Output) -> int:
    from darkroom_cli.commands.replay import Options, replay

    return replay(Options(options.pool, options.policy, options.data), output)


def _run_env_api(options: argparse.Namespace, output: Output) -> int:
    from darkroom_cli.environments.parts import api

    return api(_entered(options), output, port=options.port, dry_run=options.dry_run)


def _run_env_worker(options: argparse.Namespace, output: Output) -> int:
    from darkroom_cli.environments.parts import worker

    return worker(_entered(options), output, dry_run=options.dry_run)


def _run_env_flower(options: argparse.Namespace, output: Output) -> int:
    from darkroom_cli.environments.parts import flower

    return flower(_entered(options), output, port=options.port, dry_run=options.dry_run)


def _run_env_keys(options: argparse.Namespace, output: Output) -> int:
    from darkroom_cli.environments.keys import keys

    return keys(_entered(options), output, dry_run=options.dry_run)


def _run_env_info(options: argparse.Namespace, output: Output) -> int:
    from darkroom_cli.environments.keys import info

    return info(_entered(options), output, dry_run=options.dry_run)


def _run_env_flush(options: argparse.Namespace, output: Output) -> int:
    from darkroom_cli.environments.keys import flush

    return flush(_entered(options), output, yes=options.yes, dry_run=options.dry_run)


def _entered(options: argparse.Namespace) -> Entered:
    from darkroom_cli.environments.environment import enter

    return enter(options.environment)


def _client(options: argparse.Namespace) -> Client:
    from darkroom_cli.client import client_of

    return client_of(options.url)
