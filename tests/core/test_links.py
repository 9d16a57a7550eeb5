"""Links to artifacts: a link gives access to one artifact, for a limited time."""

from __future__ import annotations

from urllib.parse import parse_qsl, unquote, urlsplit

import pytest
from darkroom.errors import LinkRefused
from darkroom.links import PATH, Links
from darkroom.settings import LinkSettings, load
from pydantic import SecretStr

NOW_S = 1_800_000_000.7
KEY = "default/01a1f999-2b9e-7804-88d9-9fd5d3c06016/1/0-abc.png"
LINKS = Links("https://darkroom.test/api", SecretStr("0123456789abcdef0123456789abcdef"), ttl_s=600)


def read(url: str) -> tuple[str, dict[str, str]]:
    """The artifact's key and the query, as the function `jobs` receives them."""
    parts = urlsplit(url)
    assert parts.path.startswith(f"/api{PATH}")
    return unquote(parts.path.removeprefix(f"/api{PATH}")), dict(parse_qsl(parts.query))


def test_a_link_is_absolute_and_names_the_artifact() -> None:
    url = LINKS.to(KEY, now_s=NOW_S)
    assert url.startswith(f"https://darkroom.test/api/artifacts/{KEY}?")
    assert read(url)[0] == KEY


def test_a_link_is_valid_until_it_expires() -> None:
    key, query = read(LINKS.to(KEY, now_s=NOW_S))
    for later in (0.0, 599.2):
        LINKS.check(key, query, now_s=NOW_S + later)
    with pytest.raises(LinkRefused, match="has expired"):
        LINKS.check(key, query, now_s=NOW_S + 600)


def test_links_that_are_written_shortly_after_another_are_the_same() -> None:
    """So that the view of a job stays the same, and a client that has it gets 304."""
    assert LINKS.to(KEY, now_s=NOW_S + 59) == LINKS.to(KEY, now_s=NOW_S)
    later = LINKS.to(KEY, now_s=NOW_S + 119)
    assert later != LINKS.to(KEY, now_s=NOW_S)
    LINKS.check(*read(later), now_s=NOW_S + 119 + 540)


def test_a_key_of_any_characters_comes_back_as_it_was() -> None:
    key = "a tenant/ü ?&#%2F/1/0-abc.png"
    assert read(LINKS.to(key, now_s=NOW_S))[0] == key
    LINKS.check(*read(LINKS.to(key, now_s=NOW_S)), now_s=NOW_S)


def test_a_link_opens_no_other_artifact() -> None:
    _, query = read(LINKS.to(KEY, now_s=NOW_S))
    with pytest.raises(LinkRefused, match="signature"):
        LINKS.check(KEY.replace("/1/", "/2/"), query, now_s=NOW_S)


@pytest.mark.parametrize(
    "changed",
    [
        {"expires": "1900000000"},
        {"expires": ""},
        {"expires": "never"},
        {"expires": "١٨٠٠٠٠٠٦٠٠"},
        {"signature": ""},
        {"signature": "0" * 64},
        {"signature": "ü"},
    ],
    ids=str,
)
def test_a_link_that_was_changed_is_refused(changed: dict[str, str]) -> None:
    key, query = read(LINKS.to(KEY, now_s=NOW_S))
    with pytest.raises(LinkRefused, match="signature"):
        LINKS.check(key, {**query, **changed}, now_s=NOW_S)


@pytest.mark.parametrize("left_out", ["expires", "signature"])
def test_a_link_without_its_time_or_its_signature_is_refused(left_out: str) -> None:
    key, query = read(LINKS.to(KEY, now_s=NOW_S))
    del query[left_out]
    with pytest.raises(LinkRefused, match="signature"):
        LINKS.check(key, query, now_s=NOW_S)


def test_a_link_of_another_signing_key_is_refused() -> None:
    others = Links(LINKS.public_url, SecretStr("fedcba9876543210fedcba9876543210"), ttl_s=600)
    with pytest.raises(LinkRefused, match="signature"):
        LINKS.check(*read(others.to(KEY, now_s=NOW_S)), now_s=NOW_S)


def test_the_signing_key_is_not_shown() -> None:
    assert LINKS.key.get_secret_value() not in repr(LINKS)


def test_links_follow_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DARKROOM_PUBLIC_URL", "https://darkroom.test/api/")
    monkeypatch.setenv("DARKROOM_LINK_KEY", LINKS.key.get_secret_value())
    monkeypatch.setenv("DARKROOM_LINK_TTL_S", "600")
    assert Links.of(load(LinkSettings)) == LINKS
