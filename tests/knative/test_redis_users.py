"""The users of Redis, as the bootstrap Job writes them: each part can do its work, and reaches nothing else."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
import redis
from darkroom.ledger import calls
from darkroom.ledger.client import Ledger
from darkroom.ledger.connection import connect
from darkroom.ledger.scripts import texts

from tests.darkroom_command import darkroom
from tests.knative import manifest_redis
from tests.knative.rendering import Object
from tests.parts import Functions, Part
from tests.ports import free_port
from tests.redis_server import RedisKind, needed_binary
from tests.waiting import eventually
from tests.worker.running_worker import MODEL, POOL, WorkerHost

Users = dict[str, str]

PREFIX = "darkroom"


@pytest.fixture(scope="module", params=list(RedisKind))
def users(
    request: pytest.FixtureRequest,
    rendered: dict[str, list[Object]],
    bootstrap: ModuleType,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Users]:
    """As the shared fixture of this name, but one server for all tests of this file, which change next to nothing."""
    secret = bootstrap.redis_secret({"DARKROOM_NAMESPACE": PREFIX, "REDIS_DATABASE": "4"})
    folder = tmp_path_factory.mktemp("redis")
    with manifest_redis.running(
        needed_binary(request.param),
        rendered["k3d"],
        secret,
        folder,
        more_users=["user tests on nopass ~* &* +@all"],
    ) as found:
        yield {**found, "tests": f"redis://tests:any@127.0.0.1:{found['port']}/4"}


SCRIPTS = {
    "functions": (
        "accept cancel mark_applied delete_job purge_dead_letter subscribe unsubscribe rotate_secret "
        "redeliver store_undelivered mark_replayed delete_undelivered read_job "
        "publish_access record_key_use issue_grant redeem_ticket use_session end_session append_audit"
    ),
    "courier": (
        "adjust_clock set_retention reap sweep promote expire lease_outbox reschedule mark_archived lease_deliveries "
        "record_attempt set_rate_limit ack_notice delete_job observe read_job advance_epoch "
        "publish_access record_key_use append_audit collect_audit drop_audit"
    ),
    "operator": "announce_pool drain append_decision reap release register_worker observe read_job",
    "worker": "claim renew progress finish retry release cancel register_worker read_job",
    "flower": "",
    "admin": (
        "announce_pool canary inspect_job inspect_delivery repair recount_limits sweep read_job observe advance_epoch"
    ),
}
"""The scripts that each user runs (ARCHITECTURE.md, section 2)."""


def _used_by(user: str, pattern: str) -> set[str]:
    """The names that match in the scripts of the user, without comments."""
    scripts = texts()
    return {
        found
        for name in SCRIPTS[user].split()
        for found in re.findall(pattern, re.sub(r"--.*", "", scripts[name].decode()))
    }


def _covers(patterns: tuple[str, ...], key: str) -> bool:
    """Whether one of the patterns covers the key, or all keys that begin with it where it ends with a colon."""
    return any(key == each or (each.endswith("*") and key.startswith(each[:-1])) for each in patterns)


@pytest.mark.parametrize("user", SCRIPTS)
def test_each_user_has_the_keys_and_channels_of_its_scripts(user: str, bootstrap: ModuleType) -> None:
    keys = {key.replace("celery:pool.", "celery:pool.*") for key in _used_by(user, r"P \.\. ':([a-z:.-]+)'")}
    channels = {"live:", "wake", "access-changed"}  # named like keys; what is published there is in no key
    assert [key for key in sorted(keys - channels) if not _covers(bootstrap.REDIS_KEYS[user], key)] == []
    assert [name for name in keys & channels if not _covers(bootstrap.REDIS_CHANNELS[user], name)] == []


@pytest.mark.parametrize("user", SCRIPTS)
def test_each_user_has_the_commands_of_its_scripts(user: str, bootstrap: ModuleType, redis_url: str) -> None:
    """According to Redis itself: commands are granted one by one or by category."""
    commands = {each.lower() for each in _used_by(user, r"redis\.call\(\s*'([A-Z]+)'")}
    name = f"u-{user}"
    with redis.Redis.from_url(redis_url) as client:
        client.execute_command("ACL", "SETUSER", name, "reset", "on", ">word", "~*", "&*", *_commands(bootstrap, user))
        try:
            with redis.Redis.from_url(redis_url, username=name, password="word") as own:
                refused = [each for each in sorted(commands) if _is_refused(own, each, *_arguments(client, each))]
        finally:
            client.execute_command("ACL", "DELUSER", name)
            client.delete(_PROBED)
    assert refused == []


def _commands(bootstrap: ModuleType, user: str) -> list[str]:
    return ["-@all", *bootstrap.REDIS_COMMANDS[user].split()]


_PROBED = "probed"


def _arguments(client: redis.Redis, command: str) -> list[str]:
    """The fewest arguments that Redis accepts: it counts them before it checks rights."""
    (about,) = client.execute_command("COMMAND", "INFO", command).values()
    return [_PROBED] * (abs(about["arity"]) - 1)


def _is_refused(client: redis.Redis, *command: object) -> bool:
    """Whether Redis refuses the command to the user."""
    try:
        client.execute_command(*command)
    except redis.exceptions.NoPermissionError:
        return True
    except redis.exceptions.ResponseError as error:
        # In a script 6.2 and 7.0 name the reason in words of their own.
        return "can't access" in str(error) or "can't run" in str(error)
    return False


def _in_a_script(*command: str) -> str:
    return f"return redis.call({', '.join(map(repr, command))})"


SECRETS_OF_TENANTS = [
    ("HGETALL", "subscription:s-1"),
    ("ZRANGE", "subscriptions:other", "0", "-1"),
    ("HGETALL", "target:other https://inside.example"),
    ("HGETALL", "delivery:j-1.2.s-1"),
    ("ZRANGE", "deliveries-of:j-1", "0", "-1"),
    ("GET", "idem:other:key"),
    ("HGETALL", "undelivered:e-1"),
    ("ZRANGE", "tenant:other", "0", "-1"),
    ("HGETALL", "access"),
    ("HSET", "access", "key:0123456789ab", "9 {}"),
    ("HGETALL", "key-uses"),
    ("GET", "grant:0"),
    ("HGETALL", "grant:0"),
]

JOBS = [
    ("HGETALL", "job:j-1"),
    ("HGET", "job:j-1", "input"),
    ("XRANGE", "log:j-1", "-", "+"),
    ("XRANGE", "news:other", "-", "+"),
    ("LRANGE", "celery:pool.flux", "0", "-1"),
    ("LPOP", "celery:pool.flux"),
    ("RPOP", "celery:pool.flux"),
    ("BRPOP", "celery:pool.flux", "1"),
    ("LPUSH", "celery:pool.flux", "a message"),
    ("ZRANGE", "waiting:flux", "0", "-1"),
]

OF_ANY_LIST = ("RPOP", "BRPOP", "LPUSH")
"""Flower needs them for its own lists, and the key of a pool's list to count its messages."""

REFUSED = {
    "functions": [
        ("HGETALL", "worker:w-1"),
        ("HGETALL", "busy"),
        ("XRANGE", "decisions:flux", "-", "+"),
    ],
    "courier": [("HGETALL", "undelivered:e-1"), ("GET", "idem:other:key"), ("XRANGE", "decisions:flux", "-", "+")],
    "operator": SECRETS_OF_TENANTS,
    "worker": SECRETS_OF_TENANTS,
    "flower": [*(command for command in JOBS if command[0] not in OF_ANY_LIST), *SECRETS_OF_TENANTS],
}
"""Commands on keys, without their prefix, that a part does not need."""


@pytest.mark.parametrize(
    ("user", "command"),
    [(user, command) for user, commands in REFUSED.items() for command in commands],
    ids=lambda value: value if isinstance(value, str) else " ".join(value[:2]),
)
def test_a_part_reaches_no_data_that_is_not_its_own(user: str, command: tuple[str, ...], users: Users) -> None:
    name, key, *more = command
    own = (name, f"{PREFIX}:{key}", *more)
    with redis.Redis.from_url(users[user]) as client:
        assert _is_refused(client, *own)
        if user == "flower":
            return
        sha = client.execute_command("SCRIPT", "LOAD", _in_a_script(*own))
        assert _is_refused(client, "EVALSHA", sha, 0), "in a script"


@pytest.mark.parametrize(
    "command",
    [
        ("EVAL", "return 1", 0),
        ("SCRIPT", "FLUSH"),
        ("SCRIPT", "KILL"),
        ("FLUSHALL",),
        ("FLUSHDB",),
        ("SWAPDB", 0, 1),
        ("CONFIG", "GET", "*"),
        ("ACL", "LIST"),
        ("CLIENT", "LIST"),
        ("MONITOR",),
        ("SHUTDOWN",),
        ("SLAVEOF", "no", "one"),
        ("KEYS", "*"),
        ("SCAN", 0),
        ("RANDOMKEY",),
        ("SORT", f"{PREFIX}:never", "GET", "*"),
        ("MIGRATE", "127.0.0.1", 1, f"{PREFIX}:never", 0, 1),
        ("GET", "other:key"),
        ("GET", f"{PREFIX}-dev:never"),
        ("PSUBSCRIBE", "*"),
        ("PSUBSCRIBE", f"{PREFIX}:*"),
        ("SUBSCRIBE", "other:wake"),
        ("PUBLISH", "other:wake", "1"),
    ],
    ids=lambda command: " ".join(map(str, command)),
)
def test_no_part_may_do_what_no_part_does(command: tuple[object, ...], users: Users) -> None:
    for user in REFUSED:
        with redis.Redis.from_url(users[user]) as client:
            assert _is_refused(client, *command), user


@pytest.mark.parametrize("user", ["functions", "courier", "operator"])
def test_only_workers_and_flower_reach_celerys_remote_control(user: str, users: Users) -> None:
    channel = f"{PREFIX}:celery:/4.celery.pidbox"
    with redis.Redis.from_url(users[user]) as client:
        for command in (("PUBLISH", channel, "{}"), ("SUBSCRIBE", channel), ("PSUBSCRIBE", channel)):
            assert _is_refused(client, *command)


@pytest.mark.parametrize(
    "command",
    [
        ("EVALSHA", "0" * 40, 0),
        ("SCRIPT", "LOAD", "return 1"),
        ("PSUBSCRIBE", f"{PREFIX}:live:*"),
        ("PUBLISH", f"{PREFIX}:wake", "outbox"),
    ],
    ids=lambda command: " ".join(map(str, command[:2])),
)
def test_flower_runs_no_script_and_receives_no_job_event(command: tuple[object, ...], users: Users) -> None:
    with redis.Redis.from_url(users["flower"]) as client:
        assert _is_refused(client, *command)


def test_operators_read_everything_of_the_environment_and_configure_nothing(users: Users) -> None:
    with redis.Redis.from_url(users["admin"]) as client:
        for command in (*JOBS, *SECRETS_OF_TENANTS):
            if command[0] != "BRPOP":
                assert not _is_refused(client, command[0], f"{PREFIX}:{command[1]}", *command[2:]), command
        assert not _is_refused(client, "SCAN", 0)
        assert _is_refused(client, "GET", "other:key")
        assert _is_refused(client, "CONFIG", "GET", "*")


def test_each_part_does_its_work_under_its_user(users: Users, repository: Path, tmp_path: Path) -> None:
    """Real parts; the test acts as the operator and the admin. Redis refuses none of their commands, and no part stops
    when Redis has lost its scripts, as after a restart.
    """
    place = WorkerHost(redis_url=users["worker"], namespace=PREFIX, folder=tmp_path)
    settings = place.environment()
    with ExitStack() as stack:
        operator = Ledger(stack.enter_context(connect(users["operator"])), PREFIX)
        operator.run(calls.announce_pool(POOL, models=[MODEL]))
        stack.callback(place.stop)
        place.worker()
        functions = Functions(
            "all", environment=settings | {"DARKROOM_REDIS_URL": users["functions"]}, log=tmp_path / "functions.log"
        )
        functions.start()
        stack.callback(functions.stop)
        courier = Part(
            "darkroom_courier",
            environment=settings | {"DARKROOM_REDIS_URL": users["courier"], "K_SINK": f"{functions.url}/events"},
            log=tmp_path / "courier.log",
        )
        courier.start()
        stack.callback(courier.stop)
        flower = _flower(users["flower"], settings, repository, tmp_path)
        flower.start()
        stack.callback(flower.stop)
        client = stack.enter_context(httpx.Client(base_url=functions.url, trust_env=False, timeout=60))
        redis_itself = stack.enter_context(connect(users["tests"]))
        redis_itself.acl_log_reset()

        for _ in range(2):
            answer = client.post(f"/{MODEL}", json={"prompt": "a lighthouse"})
            assert answer.status_code == 202, answer.text
            is_done = partial(_is_done, redis_itself, answer.json()["id"])
            eventually(is_done, what="its end is applied and archived")
            redis_itself.script_flush()
        operator.run(calls.observe(POOL))
        operator.run(calls.append_decision(POOL, at=1, entry="{}"))
        for command in ("doctor", "audit"):
            done = darkroom([command], folder=tmp_path, DARKROOM_REDIS_URL=users["admin"], DARKROOM_NAMESPACE=PREFIX)
            assert "NOPERM" not in done.stdout + done.stderr
        eventually(lambda: _workers_in(flower), what="Flower asks the worker, and the worker answers")
        eventually(lambda: _hears_events(flower, client), what="Flower hears what becomes of a task")

        # 6.2 has no rights for single forms of CLIENT; redis-py names itself by one, and does without.
        refused = [entry for entry in redis_itself.acl_log() if entry["object"] != "client"]
    assert refused == []


def _is_done(redis_itself: redis.Redis, job_id: str) -> bool:
    state, *times = redis_itself.hmget(f"{PREFIX}:job:{job_id}", "state", "applied", "archived")
    return state == b"completed" and None not in times


class _Flower(Part):
    """Flower as its image starts it."""

    port = 0

    def ask(self, path: str) -> Any:
        """The response of its API; None while there is none."""
        try:
            answer = httpx.get(f"http://127.0.0.1:{self.port}/api/{path}", auth=("a", "b"), trust_env=False, timeout=30)
        except httpx.TransportError:
            return None
        return answer.json() if answer.is_success else None


def _flower(redis_url: str, settings: Mapping[str, str], repository: Path, folder: Path) -> _Flower:
    port = free_port()
    app = repository / "knative" / "base" / "flower"
    flower = _Flower(
        "celery",
        *("--app=darkroom_flower", "flower", f"--port={port}", "--address=127.0.0.1"),
        environment={
            **settings,
            "DARKROOM_REDIS_URL": redis_url,
            "FLOWER_BASIC_AUTH": "a:b",
            "PYTHONPATH": f"{settings['PYTHONPATH']}{os.pathsep}{app}",
        },
        log=folder / "flower.log",
    )
    flower.port = port
    return flower


def _workers_in(flower: _Flower) -> bool:
    """Whether Flower has a worker that answered when it was asked for its queues."""
    return any(worker.get("active_queues") for worker in (flower.ask("workers?refresh=1") or {}).values())


def _hears_events(flower: _Flower, client: httpx.Client) -> bool:
    client.post(f"/{MODEL}", json={"prompt": "a lighthouse"})
    return bool(flower.ask("tasks"))
