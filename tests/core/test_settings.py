"""Settings from the environment: defaults, renamed settings, and the error of an invalid one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import pytest
from darkroom.errors import SettingError
from darkroom.settings import (
    LedgerSettings,
    LinkSettings,
    ModelSettings,
    Renamed,
    Settings,
    StoreSettings,
    WebhookSettings,
    load,
)
from darkroom.webhooks.guard import NOTHING, Allow
from pydantic import Field, ValidationError
from structlog.testing import capture_logs

KEY = "0123456789abcdef0123456789abcdef"


class PartSettings(LedgerSettings, ModelSettings, StoreSettings, LinkSettings):
    """The settings of a part, with one variable of Knative."""

    sink: str = Field(default="", validation_alias="K_SINK", max_length=20)


REQUIRED = {
    "DARKROOM_REDIS_URL": "redis://:a-password@redis.test:6379/2",
    "DARKROOM_STORE": "file:///var/lib/darkroom",
    "DARKROOM_PUBLIC_URL": "https://darkroom.test",
    "DARKROOM_LINK_KEY": KEY,
}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The required variables, and none of the machine's own."""
    for name in os.environ:
        if name.upper().startswith("DARKROOM_"):
            monkeypatch.delenv(name)
    monkeypatch.delenv("K_SINK", raising=False)
    for name, value in REQUIRED.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_the_defaults() -> None:
    defaults = {
        name: getattr(load(PartSettings), name)
        for name in PartSettings.model_fields
        if f"DARKROOM_{name.upper()}" not in REQUIRED
    }
    assert defaults == {"namespace": "darkroom", "models": (), "link_ttl_s": 86_400, "sink": ""}


def test_variables_are_read(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("DARKROOM_NAMESPACE", "demo-2")
    environment.setenv("DARKROOM_LINK_TTL_S", "60")
    environment.setenv("DARKROOM_MODELS", f"/etc/models{os.pathsep}{os.pathsep}/more/models")
    environment.setenv("K_SINK", "http://sink.test")
    settings = load(PartSettings)
    assert settings.redis_url.get_secret_value() == REQUIRED["DARKROOM_REDIS_URL"]
    assert settings.link_key.get_secret_value() == KEY
    assert (settings.namespace, settings.link_ttl_s, settings.sink) == ("demo-2", 60, "http://sink.test")
    assert settings.models == (Path("/etc/models"), Path("/more/models"))


def test_other_variables_are_ignored(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("DARKROOM_POOL", "local")
    environment.setenv("STORE", "nonsense")
    assert load(PartSettings).store == REQUIRED["DARKROOM_STORE"]


def test_a_public_address_is_stored_without_a_trailing_slash(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("DARKROOM_PUBLIC_URL", "https://darkroom.test/api//")
    assert load(LinkSettings).public_url == "https://darkroom.test/api"


def test_settings_do_not_change() -> None:
    settings = load(LedgerSettings)
    with pytest.raises(ValidationError, match="frozen"):
        settings.namespace = "another"


def test_settings_show_no_secret() -> None:
    shown = repr(load(PartSettings)) + str(load(PartSettings))
    assert "a-password" not in shown
    assert KEY not in shown


GOOD: list[tuple[str, str]] = [
    ("DARKROOM_REDIS_URL", "redis://127.0.0.1"),
    ("DARKROOM_REDIS_URL", "redis://127.0.0.1/"),
    ("DARKROOM_REDIS_URL", "rediss://user:word@[::1]:6380/15?protocol=3"),
    ("DARKROOM_REDIS_URL", "unix:///run/redis.sock?db=2"),
    ("DARKROOM_NAMESPACE", "d"),
    ("DARKROOM_NAMESPACE", "0" * 63),
    ("DARKROOM_STORE", "s3://bucket/prefix"),
    ("DARKROOM_PUBLIC_URL", "http://127.0.0.1:8000"),
    ("DARKROOM_LINK_TTL_S", str(7 * 24 * 3600)),
]


@pytest.mark.parametrize(("name", "value"), GOOD)
def test_a_valid_value_is_accepted(environment: pytest.MonkeyPatch, name: str, value: str) -> None:
    environment.setenv(name, value)
    load(PartSettings)


BAD: list[tuple[str, str]] = [
    ("DARKROOM_NAMESPACE", ""),
    ("DARKROOM_NAMESPACE", "Capital"),
    ("DARKROOM_NAMESPACE", "with:colon"),
    ("DARKROOM_NAMESPACE", "line\n"),
    ("DARKROOM_NAMESPACE", "0" * 64),
    ("DARKROOM_STORE", "/var/lib/darkroom"),
    ("DARKROOM_STORE", "file://relative"),
    ("DARKROOM_STORE", "gs://bucket"),
    ("DARKROOM_PUBLIC_URL", "darkroom.test"),
    ("DARKROOM_PUBLIC_URL", "ftp://darkroom.test"),
    ("DARKROOM_PUBLIC_URL", "https://darkroom.test/?a=b"),
    ("DARKROOM_PUBLIC_URL", "https://darkroom.test:port"),
    ("DARKROOM_PUBLIC_URL", "https://darkroom.test:70000"),
    ("DARKROOM_LINK_TTL_S", "59"),
    ("DARKROOM_LINK_TTL_S", "604801"),
    ("DARKROOM_LINK_TTL_S", "a day"),
    ("DARKROOM_LINK_TTL_S", ""),
    ("K_SINK", "http://a-sink-with-a-long-name.test"),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_an_invalid_value_is_reported_in_one_line_by_name_and_value(
    environment: pytest.MonkeyPatch, name: str, value: str
) -> None:
    environment.setenv(name, value)
    with pytest.raises(SettingError) as refusal:
        load(PartSettings)
    detail = refusal.value.detail
    assert detail.startswith(f"{name}={value!r}: ")
    assert len(detail.splitlines()) == 1
    assert len(detail) > len(f"{name}={value!r}: ")


BAD_SECRETS: list[tuple[str, str]] = [
    ("DARKROOM_REDIS_URL", ""),
    ("DARKROOM_REDIS_URL", "http://:hush@redis.test"),
    ("DARKROOM_REDIS_URL", "redis://"),
    ("DARKROOM_REDIS_URL", "redis://:hush@redis.test:port/0"),
    ("DARKROOM_REDIS_URL", "redis://:hush@redis.test:6379/hush"),
    ("DARKROOM_REDIS_URL", "redis://[:hush"),
    ("DARKROOM_REDIS_URL", "unix://"),
    ("DARKROOM_LINK_KEY", ""),
    ("DARKROOM_LINK_KEY", "hush" + KEY[:27]),
]


@pytest.mark.parametrize(("name", "value"), BAD_SECRETS)
def test_an_invalid_secret_is_reported_by_name_and_never_shown(
    environment: pytest.MonkeyPatch, name: str, value: str
) -> None:
    environment.setenv(name, value)
    with pytest.raises(SettingError) as refusal:
        load(PartSettings)
    detail = refusal.value.detail
    assert detail.startswith(f"{name}=(hidden): ")
    assert "hush" not in detail
    assert len(detail.splitlines()) == 1


@pytest.mark.parametrize("name", REQUIRED)
def test_a_missing_setting_is_reported(environment: pytest.MonkeyPatch, name: str) -> None:
    environment.delenv(name)
    with pytest.raises(SettingError) as refusal:
        load(PartSettings)
    assert refusal.value.detail == f"{name} is not set"


def test_all_invalid_settings_are_reported_at_once(environment: pytest.MonkeyPatch) -> None:
    environment.delenv("DARKROOM_REDIS_URL")
    environment.setenv("DARKROOM_NAMESPACE", "Capital")
    with pytest.raises(SettingError) as refusal:
        load(PartSettings)
    detail = refusal.value.detail
    assert "DARKROOM_REDIS_URL is not set" in detail
    assert "DARKROOM_NAMESPACE='Capital': " in detail


def test_every_setting_has_a_description() -> None:
    silent = [name for name, field in PartSettings.model_fields.items() if not field.description and name != "sink"]
    assert silent == []


# Renamed settings


class RenamedSettings(Settings):
    """One setting with a former name, and one without."""

    interval_s: Annotated[float, Renamed("DARKROOM_OFTEN_S")] = Field(default=1, gt=0)
    port: Annotated[int | None, Renamed("DARKROOM_OLD_PORT")] = Field(default=None, ge=1)
    other: int = 1


@pytest.mark.parametrize(
    ("given", "interval_s"),
    [
        ({}, 1.0),
        ({"DARKROOM_INTERVAL_S": "2"}, 2.0),
        ({"DARKROOM_OFTEN_S": "3"}, 3.0),
        ({"DARKROOM_INTERVAL_S": "2", "DARKROOM_OFTEN_S": "3"}, 2.0),
    ],
    ids=["neither", "current", "former", "both"],
)
def test_a_former_name_counts_where_the_current_one_is_not_set(
    environment: pytest.MonkeyPatch, given: Mapping[str, str], interval_s: float
) -> None:
    for name, value in given.items():
        environment.setenv(name, value)
    with capture_logs() as logged:
        settings = load(RenamedSettings)
    assert settings.interval_s == interval_s
    warning = {"event": "setting_renamed", "variable": "DARKROOM_OFTEN_S", "use": "DARKROOM_INTERVAL_S"}
    assert logged == ([{**warning, "log_level": "warning"}] if "DARKROOM_OFTEN_S" in given else [])


def test_an_optional_setting_is_read_under_its_former_name(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("DARKROOM_OLD_PORT", "8080")
    assert load(RenamedSettings).port == 8080


def test_an_invalid_value_under_a_former_name_is_reported_under_that_name(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("DARKROOM_OFTEN_S", "-1")
    with pytest.raises(SettingError, match=r"^DARKROOM_OFTEN_S='-1': "):
        load(RenamedSettings)


@pytest.mark.parametrize("former", [None, "3"], ids=["current alone", "both"])
def test_an_invalid_value_under_the_current_name_is_reported_under_that_name(
    environment: pytest.MonkeyPatch, former: str | None
) -> None:
    environment.setenv("DARKROOM_INTERVAL_S", "-1")
    if former is not None:
        environment.setenv("DARKROOM_OFTEN_S", former)
    with pytest.raises(SettingError, match=r"^DARKROOM_INTERVAL_S='-1': "):
        load(RenamedSettings)


# Webhooks


def test_every_webhook_key_is_read_and_no_receiver_is_allowed_by_default(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("DARKROOM_WEBHOOK_KEYS", f" {KEY}, {KEY[::-1]},")
    settings = load(WebhookSettings)
    assert [key.get_secret_value() for key in settings.webhook_keys] == [KEY, KEY[::-1]]
    assert settings.webhook_allow == NOTHING
    environment.setenv("DARKROOM_WEBHOOK_ALLOW", "localhost:9000, 10.0.0.0/8 ,.example.internal")
    assert load(WebhookSettings).webhook_allow == Allow.parse(["localhost:9000", "10.0.0.0/8", ".example.internal"])


@pytest.mark.parametrize("keys", ["", ",", "hush", f"{KEY},hush", ",".join([KEY] * 5)])
def test_invalid_webhook_keys_are_reported_by_name_and_never_shown(environment: pytest.MonkeyPatch, keys: str) -> None:
    environment.setenv("DARKROOM_WEBHOOK_KEYS", keys)
    with pytest.raises(SettingError) as refusal:
        load(WebhookSettings)
    assert refusal.value.detail.startswith("DARKROOM_WEBHOOK_KEYS=(hidden): ")
    assert "hush" not in refusal.value.detail
    assert KEY not in refusal.value.detail


def test_an_invalid_allowance_is_reported_by_name_and_value(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("DARKROOM_WEBHOOK_KEYS", KEY)
    environment.setenv("DARKROOM_WEBHOOK_ALLOW", "localhost,http://receiver")
    with pytest.raises(SettingError) as refusal:
        load(WebhookSettings)
    assert refusal.value.detail.startswith("DARKROOM_WEBHOOK_ALLOW='localhost,http://receiver': 'http://receiver' must")
