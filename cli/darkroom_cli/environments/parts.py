"""`darkroom env NAME api|worker|flower`: the parts of an environment, each in a terminal of its own.

`api` is `darkroom up` without a worker, with the environment's Redis. `worker` and `flower` take this process' place.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from darkroom.errors import SettingError

from darkroom_cli.environments.command import environment
from darkroom_cli.environments.environment import Entered, check_redis
from darkroom_cli.exits import DONE
from darkroom_cli.terminal.output import Output

FLOWER_APP = Path("knative/base/flower/darkroom_flower.py")
"""The program that the cluster's Flower runs too."""

MAX_TASKS = 10_000
"""Tasks that Flower keeps, in memory: the newest, as in the cluster."""


def api(entered: Entered, output: Output, *, port: int | None, dry_run: bool) -> int:
    """Run the functions and the courier until a signal comes; answers the exit status."""
    port = entered.environment.api_port if port is None else port
    os.environ["DARKROOM_REDIS_URL"] = entered.redis_url("operator")
    if dry_run:
        output.result(f"would run functions and courier of {_place(entered)}")
        output.result(f"  at http://127.0.0.1:{port}, data in {entered.folder.path}")
        return DONE
    from darkroom_cli.local.up import COURIER, FUNCTIONS, Options, up

    check_redis(entered)
    redis_urls = {name: entered.redis_url(name) for name in (FUNCTIONS, COURIER)}
    return up(Options(port, entered.folder.path, (), redis_urls=redis_urls, worker=False), output)


def worker(entered: Entered, output: Output, *, dry_run: bool) -> int:
    """Become a worker of the pool that `api` announces."""
    command = [sys.executable, "-m", "darkroom_worker"]
    if dry_run:
        return _say(command, entered, output)
    from darkroom_cli.local.up import POOL

    check_redis(entered)
    folder = entered.folder
    folders = [folder.stand_ins / "models", *(path.absolute() for path in entered.settings.models)]
    told = environment(
        {
            "DARKROOM_REDIS_URL": entered.redis_url("worker"),
            "DARKROOM_NAMESPACE": entered.environment.namespace,
            "DARKROOM_POOL": POOL,
            "DARKROOM_MODELS": os.pathsep.join(map(str, folders)),
            "DARKROOM_STORE": folder.store.as_uri(),
        },
        for_worker=True,
    )
    folder.make()
    make = [sys.executable, "-m", "darkroom_worker.standins", str(folder.stand_ins)]
    subprocess.run(make, env=environment({}), stdout=subprocess.DEVNULL, check=True)
    return _become(command, told)


def flower(entered: Entered, output: Output, *, port: int | None, dry_run: bool) -> int:
    """Become Flower, which asks for the name and password in FLOWER_BASIC_AUTH."""
    port = entered.environment.flower_port if port is None else port
    if not FLOWER_APP.is_file():
        raise SettingError(f"{FLOWER_APP} is not here: Flower is started from a checkout of darkroom")
    own = {name: value for name, value in os.environ.items() if name.startswith("FLOWER_")}
    own.setdefault("FLOWER_MAX_TASKS", str(MAX_TASKS))
    paths = [str(FLOWER_APP.parent.absolute()), os.environ.get("PYTHONPATH")]
    own |= {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "DARKROOM_REDIS_URL": entered.redis_url("flower"),
        "DARKROOM_NAMESPACE": entered.environment.namespace,
    }
    celery = [sys.executable, "-m", "celery", f"--app={FLOWER_APP.stem}", "flower"]
    command = [*celery, "--address=127.0.0.1", f"--port={port}"]
    if dry_run:
        return _say(command, entered, output)
    if ":" not in own.get("FLOWER_BASIC_AUTH", ""):
        raise SettingError("FLOWER_BASIC_AUTH is not set: in env/.env, a name and a password as name:password")
    check_redis(entered)
    output.say(f"darkroom: Flower of {entered.environment.name} at http://127.0.0.1:{port}")
    return _become(command, environment(own))


def _say(command: Sequence[str], entered: Entered, output: Output) -> int:
    output.result(f"would run for {_place(entered)}:\n  python {' '.join(command[1:])}")
    return DONE


def _place(entered: Entered) -> str:
    return f"{entered.environment.name}: {entered.where}, prefix {entered.environment.namespace}"


def _become(command: list[str], variables: Mapping[str, str]) -> int:
    os.execve(command[0], command, variables)  # noqa: S606 - it takes our place: its signals are its own
