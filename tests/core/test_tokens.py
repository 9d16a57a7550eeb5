"""The verification of JWT bearer tokens against a real issuer on loopback: which pass, and what is said of others."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from darkroom.access.directory import Directory
from darkroom.access.limits import Limits
from darkroom.access.principals import CredentialKind, Scope
from darkroom.access.records import Tenant
from darkroom.access.store import Revised, Snapshot
from darkroom.access.tokens import issuer as issuers
from darkroom.access.tokens.addresses import address_fault, issuer_fault
from darkroom.access.tokens.claims import TokenRules, find, scopes_of
from darkroom.access.tokens.issuer import (
    FRESH_S,
    LEAST_FRESH_S,
    MAX_BYTES,
    MOST_FRESH_S,
    PAUSE_S,
    STALE_S,
    IssuerKeys,
    fresh_for,
    issuer_client,
    keys_of,
)
from darkroom.access.tokens.verification import MAX_TOKEN, TokenVerifier
from darkroom.access.verification import CACHE_S, KeyVerifier
from darkroom.errors import AccessUnavailable, CredentialRefused
from darkroom.ledger.client import AsyncLedger
from darkroom.ledger.connection import connect_async
from joserfc.jwk import OctKey

from tests.oidc_issuer import AUDIENCE, Issuer, new_key, serving_issuer
from tests.ports import free_port

STUDIO = Tenant(name="studio", weight=3, limits=Limits(running_jobs=4))
SKEW_S = 60.0


@dataclass
class Clock:
    """Seconds since the epoch, as the test sets them."""

    now: float

    def __call__(self) -> float:
        return self.now


@dataclass
class Verification:
    """A verifier with the keys that it uses, on one clock."""

    tokens: TokenVerifier
    keys: IssuerKeys
    clock: Clock
    ledger: AsyncLedger

    async def publish(self, *tenants: Tenant, revision: int = 1) -> None:
        known = tuple(Revised(tenant, revision) for tenant in tenants)
        await Directory(self.ledger).publish_all(Snapshot(revision, known, ()))


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with serving_issuer() as serving:
        yield serving


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with issuer_client() as client:
        yield client


Verifying = Callable[..., Verification]


@pytest.fixture
async def verifying(ledger: AsyncLedger, redis_url: str, client: httpx.AsyncClient) -> AsyncIterator[Verifying]:
    """Makes verifiers of an issuer's tokens; the rules of claims are given by name."""
    redis = connect_async(redis_url)

    def make(issuer: str, **rules: Any) -> Verification:
        clock = Clock(time.time())
        keys = IssuerKeys(issuer, client, clock=clock)
        every = TokenRules(
            **{
                "issuer": issuer,
                "audience": AUDIENCE,
                "tenant_claim": "tenant",
                "scope_claim": "scope",
                "scope_prefix": "darkroom:",
                "skew_s": SKEW_S,
                **rules,
            }
        )
        tokens = TokenVerifier(every, keys, KeyVerifier(ledger, redis, clock=clock), clock=clock)
        return Verification(tokens, keys, clock, ledger)

    yield make
    await redis.aclose()


@pytest.fixture
async def verification(verifying: Verifying, issuer: Issuer) -> Verification:
    made = verifying(issuer.url)
    await made.publish(STUDIO)
    return made


async def refusal(verification: Verification, token: str) -> str:
    """What is said of a token that is refused. No part of it is repeated."""
    with pytest.raises(CredentialRefused) as refused:
        await verification.tokens.verify(token)
    for part in token.split("."):
        assert len(part) < 8 or part not in refused.value.detail
    return refused.value.detail


# -- tokens ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["RSA", "EC", "OKP"])
async def test_a_valid_token_speaks_for_its_tenant(kind: str, verification: Verification, issuer: Issuer) -> None:
    issuer.rotate(kind)
    expires = time.time() + 100

    principal = await verification.tokens.verify(issuer.token(exp=expires))

    assert (principal.tenant, principal.actor, principal.kind) == ("studio", "anna", CredentialKind.TOKEN)
    assert principal.scopes == {Scope.SUBMIT, Scope.READ}
    assert (principal.weight, principal.tenant_limits) == (3, STUDIO.limits)
    assert principal.expires == pytest.approx(expires + SKEW_S)


@pytest.mark.parametrize(
    ("claims", "said"),
    [
        pytest.param({"aud": "another"}, "another audience", id="wrong audience"),
        pytest.param({"aud": ["another", "account"]}, "another audience", id="wrong audiences"),
        pytest.param({"aud": "darkroom2"}, "another audience", id="longer audience"),
        pytest.param({"aud": None}, "another audience", id="no audience"),
        pytest.param({"aud": {"darkroom": True}}, "another audience", id="audience of another type"),
        pytest.param({"iss": "https://elsewhere.example"}, "another issuer", id="wrong issuer"),
        pytest.param({"iss": None}, "another issuer", id="no issuer"),
        pytest.param({"exp": None}, "no claim exp", id="no exp"),
        pytest.param({"exp": "tomorrow"}, "exp is not a time", id="exp is text"),
        pytest.param({"exp": True}, "exp is not a time", id="exp is a truth value"),
        pytest.param({"exp": 10**400}, "exp is not a time", id="exp without end"),
        pytest.param({"exp": float("nan")}, "exp is not a time", id="exp is no number"),
        pytest.param({"nbf": []}, "nbf is not a time", id="nbf is a list"),
        pytest.param({"sub": None}, "sub is not a text", id="no subject"),
        pytest.param({"sub": "a\nb"}, "sub is not a text", id="subject with a line feed"),
        pytest.param({"sub": "x" * 256}, "sub is not a text", id="long subject"),
        pytest.param({"tenant": None}, "no claim tenant", id="no tenant"),
        pytest.param({"tenant": "Studio"}, "tenant is not the name", id="no name"),
        pytest.param({"tenant": ["studio", "agency"]}, "tenant is not the name", id="two tenants"),
        pytest.param({"tenant": {"name": "studio"}}, "tenant is not the name", id="tenant of another type"),
        pytest.param({"tenant": "unknown"}, "the tenant unknown does not exist", id="unknown tenant"),
        pytest.param({"cnf": {"jkt": "x"}}, "proof of possession", id="bound to a key"),
    ],
)
async def test_a_token_with_a_wrong_claim_is_refused_and_the_claim_is_named(
    claims: dict[str, Any], said: str, verification: Verification, issuer: Issuer
) -> None:
    assert said in await refusal(verification, issuer.token(**claims))


async def test_an_audience_may_be_one_of_several_and_a_tenant_a_list_of_one(
    verification: Verification, issuer: Issuer
) -> None:
    token = issuer.token(aud=["account", AUDIENCE], tenant=["studio"])

    assert (await verification.tokens.verify(token)).tenant == "studio"


@pytest.mark.parametrize(
    ("claim", "offset_s", "is_accepted"),
    [
        ("exp", -SKEW_S - 1, False),
        ("exp", -SKEW_S + 1, True),
        ("nbf", SKEW_S - 1, True),
        ("nbf", SKEW_S + 1, False),
        ("iat", SKEW_S - 1, True),
        ("iat", SKEW_S + 1, False),
    ],
)
async def test_the_issuers_clock_may_differ_by_the_skew_and_no_more(
    claim: str, offset_s: float, is_accepted: bool, verification: Verification, issuer: Issuer
) -> None:
    times: dict[str, Any] = {claim: verification.clock.now + offset_s}
    token = issuer.token(**times)
    if is_accepted:
        await verification.tokens.verify(token)
    else:
        assert ("expired" if claim == "exp" else f"claim {claim} is in the future") in await refusal(
            verification, token
        )


async def test_a_verified_token_is_refused_from_its_end_on(verification: Verification, issuer: Issuer) -> None:
    token = issuer.token(exp=verification.clock.now + 100)
    await verification.tokens.verify(token)
    verification.clock.now += 100 + SKEW_S - 1
    await verification.tokens.verify(token)
    verification.clock.now += 1

    assert await refusal(verification, token) == "the token has expired"


def unsigned(claims: dict[str, Any], *, algorithm: str = "none", signature: bytes = b"", **header: Any) -> str:
    parts = [json.dumps({"alg": algorithm, **header}).encode(), json.dumps(claims).encode(), signature]
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


def with_public_key_as_secret(issuer: Issuer) -> str:
    """A token signed by HMAC with the public key, which some libraries verify with (CVE-2015-9235)."""
    public = issuer.keys[0].as_pem(private=False)  # type: ignore[union-attr]
    token = unsigned(issuer.claims(), algorithm="HS256", kid=issuer.keys[0].kid)
    signing = token.rpartition(".")[0]
    signature = hmac.new(public, signing.encode(), hashlib.sha256).digest()
    return f"{signing}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


FORGED: dict[str, tuple[Callable[[Issuer], str], str]] = {
    "alg none": (lambda issuer: unsigned(issuer.claims(), kid=issuer.keys[0].kid), "alg"),
    "alg NONE": (lambda issuer: unsigned(issuer.claims(), algorithm="NONE"), "alg"),
    "alg of another type": (lambda issuer: unsigned(issuer.claims(), algorithm=["RS256"]), "alg"),  # type: ignore[arg-type]
    "HS256 with the public key": (with_public_key_as_secret, "alg"),
    "HS256 with an own secret": (lambda issuer: issuer.token(key=OctKey.generate_key(256)), "alg"),
    "no signature": (
        lambda issuer: unsigned(issuer.claims(), algorithm="RS256", kid=issuer.keys[0].kid),
        "signature",
    ),
    "another key of the same id": (
        lambda issuer: issuer.token(key=new_key("RSA", issuer.keys[0].kid)),
        "signature",
    ),
    "another key without an id": (
        lambda issuer: issuer.token(key=new_key("RSA", None), header={"kid": None}),
        "signature",
    ),
    "an algorithm of another type of key": (
        lambda issuer: issuer.token(key=new_key("EC", issuer.keys[0].kid)),
        "does not publish",
    ),
    "changed claims": (
        lambda issuer: ".".join(
            part if place != 1 else unsigned(issuer.claims(tenant="agency")).split(".")[1]
            for place, part in enumerate(issuer.token().split("."))
        ),
        "signature",
    ),
    "unknown critical header": (
        lambda issuer: unsigned(issuer.claims(), algorithm="RS256", crit=["b65"], b65=1, kid=issuer.keys[0].kid),
        "signature",
    ),
    "a logout token": (lambda issuer: issuer.token(header={"typ": "logout+jwt"}), "typ"),
    "an id that is no text": (lambda issuer: unsigned(issuer.claims(), algorithm="RS256", kid=7), "kid"),
    "no JSON": (lambda _: "e30x.e30.AAAA", "not a signed JWT"),
    "no header": (lambda _: "..", "not a signed JWT"),
    "deep nesting": (
        lambda _: base64.urlsafe_b64encode(b'{"alg":' + b"[" * 2900).decode() + ".e30.AAAA",
        "not a signed JWT",
    ),
    "not base64": (lambda _: "\u00e9\u00e9\u00e9.e30.AAAA", "not a signed JWT"),
    "too long": (lambda issuer: issuer.token(groups=["x" * MAX_TOKEN]), f"longer than {MAX_TOKEN}"),
}


@pytest.mark.parametrize("name", FORGED)
async def test_a_forged_token_is_refused(name: str, verification: Verification, issuer: Issuer) -> None:
    forge, said = FORGED[name]

    assert said in await refusal(verification, forge(issuer))


async def test_a_token_without_a_key_id_is_verified_with_every_key(verification: Verification, issuer: Issuer) -> None:
    issuer.keys = [new_key("EC", "other"), new_key("RSA", "first"), new_key("RSA", "second")]

    await verification.tokens.verify(issuer.token(key=issuer.keys[2], header={"kid": None}))


# -- tenants -----------------------------------------------------------------------------------------------------------


async def test_the_token_of_a_disabled_tenant_is_refused_as_soon_as_for_keys(
    verification: Verification, issuer: Issuer
) -> None:
    token = issuer.token()
    await verification.tokens.verify(token)
    await verification.publish(STUDIO.model_copy(update={"disabled": True}), revision=2)
    verification.clock.now += CACHE_S

    assert await refusal(verification, token) == "the tenant studio is disabled"


async def test_before_tenants_are_published_nothing_is_refused_for_good(verifying: Verifying, issuer: Issuer) -> None:
    with pytest.raises(AccessUnavailable, match="tenants"):
        await verifying(issuer.url).tokens.verify(issuer.token())


# -- claims ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("tenant", "a"),
        ("realm_access.roles", ["b"]),
        ("https://example.org/tenant", "c"),
        ("https://example.org/claims.name", "d"),
        ("org.unit.name", "e"),
        ("org.unit", {"name": "f"}),
        ("realm_access", {"roles": ["b"]}),
        ("tenant.name", None),
        ("nothing", None),
        ("realm_access.", None),
        ("", None),
    ],
)
def test_a_claim_is_found_by_its_path(path: str, found: object) -> None:
    claims = {
        "tenant": "a",
        "realm_access": {"roles": ["b"]},
        "https://example.org/tenant": "c",
        "https://example.org/claims": {"name": "d"},
        "org": {"unit": {"name": "f"}},
        "org.unit.name": "e",
    }
    assert find(claims, path) == found


@pytest.mark.parametrize(
    ("value", "prefix", "scopes"),
    [
        ("openid darkroom:submit darkroom:read", "darkroom:", {Scope.SUBMIT, Scope.READ}),
        (["darkroom:admin", "offline_access"], "darkroom:", {Scope.ADMIN}),
        ("submit admin", "darkroom:", set()),
        ("submit  admin\tread", "", {Scope.SUBMIT, Scope.ADMIN, Scope.READ}),
        ("Submit SUBMIT submits darkroom:submit", "", set()),
        ("darkroom:darkroom:submit darkroom:", "darkroom:", set()),
        ([["submit"], None, 3, {"submit": 1}], "", set()),
        (None, "", set()),
        ({"submit": True}, "", set()),
        (True, "", set()),
    ],
)
def test_only_known_words_with_the_prefix_are_scopes(value: object, prefix: str, scopes: set[Scope]) -> None:
    assert scopes_of(value, prefix=prefix) == scopes


async def test_claims_and_prefix_are_settings(verifying: Verifying, issuer: Issuer) -> None:
    verification = verifying(issuer.url, tenant_claim="org.name", scope_claim="realm_access.roles", scope_prefix="")
    await verification.publish(STUDIO)
    token = issuer.token(org={"name": "studio"}, tenant="agency", realm_access={"roles": ["cancel", "offline_access"]})

    principal = await verification.tokens.verify(token)

    assert principal.tenant == "studio"
    assert principal.scopes == {Scope.CANCEL}


# -- the issuer's keys -------------------------------------------------------------------------------------------------


async def test_a_rotated_key_is_read_once_and_the_old_one_is_refused(
    verification: Verification, issuer: Issuer
) -> None:
    old = issuer.keys[0]
    accepted = issuer.token(key=old)
    await verification.tokens.verify(accepted)
    issuer.rotate()
    verification.clock.now += PAUSE_S
    await verification.tokens.verify(issuer.token())
    await verification.tokens.verify(issuer.token())

    assert issuer.readings == 2
    assert "does not publish" in await refusal(verification, accepted)
    assert "does not publish" in await refusal(verification, issuer.token(key=old))


async def test_unknown_key_ids_do_not_burden_the_issuer(verification: Verification, issuer: Issuer) -> None:
    stranger = new_key("EC", "unknown")
    for number in range(50):
        token = issuer.token(key=stranger, header={"kid": f"unknown-{number}"})
        assert "does not publish" in await refusal(verification, token)
    assert issuer.readings == 1

    verification.clock.now += PAUSE_S
    tokens = [issuer.token(key=stranger, header={"kid": f"more-{number}"}) for number in range(50)]
    await asyncio.gather(*(refusal(verification, token) for token in tokens))
    assert issuer.readings == 2


async def test_an_issuer_that_is_down_at_start_is_read_once_it_is_back(verifying: Verifying) -> None:
    port = free_port()
    verification = verifying(f"http://127.0.0.1:{port}")
    await verification.publish(STUDIO)
    with pytest.raises(AccessUnavailable, match=rf"http://127\.0\.0\.1:{port} .*did not answer") as refused:
        await verification.tokens.verify(unsigned({}, algorithm="RS256", kid="a"))
    assert refused.value.retry_after >= 1

    with serving_issuer(port) as issuer:
        verification.clock.now += PAUSE_S
        await verification.tokens.verify(issuer.token())


async def test_keys_are_used_for_a_bounded_time_while_the_issuer_is_down(verifying: Verifying) -> None:
    with serving_issuer() as issuer:
        verification = verifying(issuer.url)
        await verification.publish(STUDIO)
        token = issuer.token(exp=verification.clock.now + 100_000)
        another = issuer.token(key=new_key("RSA", "later"), exp=verification.clock.now + 100_000)
        await verification.tokens.verify(token)
    verification.clock.now += 300 + STALE_S - 1

    await verification.tokens.verify(token)
    with pytest.raises(AccessUnavailable, match="did not answer"):  # it may have a new key
        await verification.tokens.verify(another)
    verification.clock.now += 1
    with pytest.raises(AccessUnavailable):
        await verification.tokens.verify(token)


@pytest.mark.parametrize(
    ("path", "response", "said"),
    [
        ("discovery", (302, {"Location": "http://127.0.0.1:9/"}, b""), "answered 302 .* redirects are not followed"),
        ("keys", (307, {"Location": "/.well-known/openid-configuration"}, b""), "answered 307"),
        ("keys", (200, {}, b"{" + b" " * MAX_BYTES), "key set is larger than"),
        ("discovery", (200, {}, b"{" + b" " * MAX_BYTES), "discovery document is larger than"),
        ("keys", (200, {"Content-Encoding": "gzip"}, b"x"), "compressed"),
        ("keys", (500, {}, b"a stack trace"), "answered 500"),
        ("keys", (200, {}, b"<html>"), "not a JSON object"),
        ("keys", (200, {}, b"[" * 200_000), "not a JSON object"),
        ("keys", (200, {}, b"[]"), "not a JSON object"),
        ("keys", (200, {}, b'{"keys": []}'), "no key that verifies"),
        ("keys", (200, {}, b'{"keys": {"a": 1}}'), "no key that verifies"),
        ("discovery", (200, {}, b'{"issuer": "https://elsewhere.example"}'), "of another issuer"),
    ],
)
async def test_an_answer_of_the_issuer_that_cannot_be_used_is_named(
    path: str, response: tuple[int, dict[str, str], bytes], said: str, verification: Verification, issuer: Issuer
) -> None:
    issuer.responses[Issuer.DISCOVERY if path == "discovery" else Issuer.KEYS] = response

    with pytest.raises(AccessUnavailable, match=said) as refused:
        await verification.tokens.verify(issuer.token())

    assert "stack trace" not in refused.value.detail


@pytest.mark.parametrize("address", ["http://192.0.2.7/keys", "file:///etc/passwd", "/keys", 7, None])
async def test_keys_are_read_over_https_only(address: object, verification: Verification, issuer: Issuer) -> None:
    document = {"issuer": issuer.url, "jwks_uri": address}
    issuer.responses[Issuer.DISCOVERY] = (200, {}, json.dumps(document).encode())

    with pytest.raises(AccessUnavailable, match="jwks_uri"):
        await verification.tokens.verify(issuer.token())


async def test_an_issuer_that_does_not_end_its_answer_is_unavailable(
    verifying: Verifying, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(issuers, "TIMEOUT_S", 0.2)

    async def never(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{")
        await _reader.read()
        writer.close()

    server = await asyncio.start_server(never, "127.0.0.1", 0)
    verification = verifying(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    with pytest.raises(AccessUnavailable, match="did not respond within"):
        await verification.tokens.verify(unsigned({}, algorithm="RS256", kid="a"))
    server.close()
    await server.wait_closed()


async def test_an_issuer_may_have_a_path(verifying: Verifying) -> None:
    with serving_issuer(path="/realms/studio") as issuer:
        verification = verifying(issuer.url)
        await verification.publish(STUDIO)
        await verification.tokens.verify(issuer.token())


async def test_keys_are_read_again_in_the_background(
    verification: Verification, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a request, so that a key that the issuer withdrew is refused."""
    monkeypatch.setattr(IssuerKeys, "_due_in", lambda _self: 0.01)
    running = asyncio.create_task(verification.keys.run())
    token = issuer.token()
    await verification.tokens.verify(token)
    issuer.rotate()
    async with asyncio.timeout(60):
        while verification.keys.generation < 2:
            await asyncio.sleep(0.01)
    running.cancel()

    assert "does not publish" in await refusal(verification, token)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("", FRESH_S),
        ("no-store", FRESH_S),
        ("max-age=0", LEAST_FRESH_S),
        ("public, max-age=86400, must-revalidate", MOST_FRESH_S),
        ("max-age=900", 900),
        ('MAX-AGE="900"', 900),
        ("s-maxage=5", FRESH_S),
        ("max-age=abc", FRESH_S),
    ],
)
def test_cache_control_sets_when_keys_are_read_again(value: str, seconds: float) -> None:
    assert fresh_for(value) == seconds


RSA = new_key("RSA", "a").as_dict(private=False)


@pytest.mark.parametrize(
    "entry",
    [
        {**RSA, "use": "enc"},
        {**RSA, "key_ops": ["encrypt"]},
        {**RSA, "key_ops": "verify"},
        {**RSA, "kty": "oct", "k": "c2VjcmV0"},
        {**RSA, "kty": "AKP"},
        {**RSA, "n": "AQAB"},
        {**RSA, "n": 5},
        {**RSA, "n": None, "e": []},
        {name: value for name, value in RSA.items() if name != "n"},
        new_key("RSA", "a").as_dict(private=True),
        {"kty": "EC", "crv": "P-256", "x": "AAAA", "y": "AAAA"},
        {"kty": "EC", "crv": "P-999"},
        {"kty": ["RSA"]},
        "a key",
        None,
    ],
)
def test_keys_that_verify_nothing_are_skipped(entry: object) -> None:
    assert [key.key_id for key in keys_of({"keys": [entry, RSA]})] == ["a"]


@pytest.mark.parametrize(
    ("address", "is_right"),
    [
        ("https://login.example.org", True),
        ("https://login.example.org:8443/realms/studio/", True),
        ("http://127.0.0.1:8080/realms/studio", True),
        ("http://[::1]:8080", True),
        ("http://localhost:8080", True),
        ("http://login.example.org", False),
        ("http://127.0.0.1.example.org", False),
        ("http://localhost.example.org", False),
        ("https://anna:secret@login.example.org", False),
        ("https://login.example.org?tenant=a", False),
        ("https://login.example.org#a", False),
        ("https://login.example.org:99999", False),
        ("https:///realms", False),
        ("ftp://login.example.org", False),
        ("login.example.org", False),
        ("https://login example.org", False),
        ("", False),
    ],
)
def test_an_issuer_has_an_address_of_https(address: str, is_right: bool) -> None:
    assert (issuer_fault(address) is None) is is_right


def test_the_address_of_keys_may_have_a_query() -> None:
    assert address_fault("https://login.example.org/keys?appid=7") is None
