"""`darkroom env NAME api|worker|flower`: the parts of an environment, each in its own terminal.

`api` is `darkroom up` without a worker, with the environment's Redis. `worker` and `flower` replace this process.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from darkroom.errors import SettingError

from darkroom_cli.environments.environment import ActiveEnvironment, check_redis
from darkroom_cli.exits import DONE
from darkroom_cli.local.child_environment import environment
from darkroom_cli.terminal.output import Output

FLOWER_APP = Path("knative/base/flower/darkroom_flower.py")
"""Flower's application, the same as in a cluster."""

MAX_TASKS = 10_000
"""Newest tasks that Flower stores in memory, the same as in a cluster."""


def api(active: ActiveEnvironment, output: Output, *, port: int | None, dry_run: bool) -> int:
    """Run the functions and the courier until a signal arrives; returns the exit status."""
    port = active.environment.api_port if port is None else port
    os.environ["DARKROOM_REDIS_URL"] = active.redis_url("operator")
    if dry_run:
        output.result(f"would run functions and courier of {_place(active)}")
        output.result(f"  at http://127.0.0.1:{port}, data in {active.folder.path}")
        return DONE
    from darkroom_cli.local.stack import COURIER, FUNCTIONS, UpOptions
    from darkroom_cli.local.up import up

    check_redis(active)
    redis_urls = {name: active.redis_url(name) for name in (FUNCTIONS, COURIER)}
    return up(UpOptions(port, active.folder.path, (), redis_urls=redis_urls, worker=False), output)


def worker(active: ActiveEnvironment, output: Output, *, dry_run: bool) -> int:
    """Replace this process by a worker of the pool that `api` announces."""
    command = [sys.executable, "-m", "darkroom_worker"]
    if dry_run:
        return _print_dry_run(command, active, output)
    from darkroom_cli.local.stack import POOL

    check_redis(active)
    folder = active.folder
    folders = [folder.stand_ins / "models", *(path.absolute() for path in active.settings.models)]
    variables = environment(
        {
            "DARKROOM_REDIS_URL": active.redis_url("worker"),
            "DARKROOM_NAMESPACE": active.environment.namespace,
            "DARKROOM_POOL": POOL,
            "DARKROOM_MODELS": os.pathsep.join(map(str, folders)),
            "DARKROOM_STORE": folder.store.as_uri(),
        },
        for_worker=True,
    )
    folder.make()
    make = [sys.executable, "-m", "darkroom_worker.standins", str(folder.stand_ins)]
    subprocess.run(make, env=environment({}), stdout=subprocess.DEVNULL, check=True)
    return _replace_process(command, variables)


def flower(active: ActiveEnvironment, output: Output, *, port: int | None, dry_run: bool) -> int:
    """Replace this process by Flower, with the login of FLOWER_BASIC_AUTH."""
    port = active.environment.flower_port if port is None else port
    if not FLOWER_APP.is_file():
        raise SettingError(f"{FLOWER_APP} does not exist: Flower is started from a checkout of darkroom")
    own = {name: value for name, value in os.environ.items() if name.startswith("FLOWER_")}
    own.setdefault("FLOWER_MAX_TASKS", str(MAX_TASKS))
    paths = [str(FLOWER_APP.parent.absolute()), os.environ.get("PYTHONPATH")]
    own |= {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "DARKROOM_REDIS_URL": active.redis_url("flower"),
        "DARKROOM_NAMESPACE": active.environment.namespace,
    }
    celery = [sys.executable, "-m", "celery", f"--app={FLOWER_APP.stem}", "flower"]
    command = [*celery, "--address=127.0.0.1", f"--port={port}"]
    if dry_run:
        return _print_dry_run(command, active, output)
    if ":" not in own.get("FLOWER_BASIC_AUTH", ""):
        raise SettingError("FLOWER_BASIC_AUTH is not set: set it in env/.env to name:password")
    check_redis(active)
    output.info(f"darkroom: Flower of {active.environment.name} at http://127.0.0.1:{port}")
    return _replace_process(command, environment(own))


def _print_dry_run(command: Sequence[str], active: ActiveEnvironment, output: Output) -> int:
    output.result(f"would run for {_place(active)}:\n  python {' '.join(command[1:])}")
    return DONE


def _place(active: ActiveEnvironment) -> str:
    return f"{active.environment.name}: {active.where}, prefix {active.environment.namespace}"


def _replace_process(command: list[str], variables: Mapping[str, str]) -> int:
    os.execve(command[0], command, variables)  # noqa: S606 - no shell; signals reach the program directly
