"""Signatures of webhooks, verified as receivers do it: by the standardwebhooks packages of PyPI and of npm as they
come, and with the published keys by `cryptography` and by Node's crypto.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from darkroom.settings import WebhookSettings, load
from darkroom.webhooks.signatures import (
    GENERATION_OVERLAP_MS,
    Signer,
    subscription_recipient,
    subscription_recipients,
    tenant_recipient,
)
from pydantic import SecretStr
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

CLIENTS = Path(__file__).resolve().parent.parent / "clients"
DEADLINE_S = 60

OLD = SecretStr("the operator's key of last year, 32 characters and more")
NEW = SecretStr("the operator's key of this year, 32 characters and more")
OTHER = SecretStr("an unrelated key of 32 characters or more")

MESSAGE_ID = "01a1f999-2b9e-7804-88d9-9fd5d3c06016:end"
BODY = json.dumps({"specversion": "1.0", "data": {"prompt": "a cœur, 写真"}}, ensure_ascii=False).encode()
RECIPIENT = tenant_recipient("default")


@dataclass(frozen=True)
class Post:
    """The post that a receiver gets, with the secrets and keys that verify it."""

    headers: dict[str, str]
    body: bytes = BODY
    secrets: Sequence[str] = ()
    keys: Sequence[dict[str, str]] = ()


@dataclass(frozen=True)
class Verdict:
    """Which of the secrets and of the keys verify a post."""

    secrets: list[bool] = field(default_factory=list)
    keys: list[bool] = field(default_factory=list)


Verify = Callable[[Post], Verdict]


def by_python(post: Post) -> Verdict:
    return Verdict([_by_secret(secret, post) for secret in post.secrets], [_by_key(key, post) for key in post.keys])


def _by_secret(secret: str, post: Post) -> bool:
    try:
        read = Webhook(secret).verify(post.body, post.headers)
    except WebhookVerificationError:
        return False
    assert read == json.loads(post.body)
    return True


def _by_key(jwk: dict[str, str], post: Post) -> bool:
    assert (jwk["kty"], jwk["crv"]) == ("OKP", "Ed25519")
    key = Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(jwk["x"] + "="))
    signed = f"{post.headers['webhook-id']}.{post.headers['webhook-timestamp']}.".encode() + post.body
    for signature in post.headers["webhook-signature"].split(" "):
        version, _, value = signature.partition(",")
        if version == "v1a":
            try:
                key.verify(base64.b64decode(value, validate=True), signed)
            except InvalidSignature:
                continue
            return True
    return False


def by_node(post: Post) -> Verdict:
    node = shutil.which("node")
    if node is None or not (CLIENTS / "node_modules" / "standardwebhooks").is_dir():
        raise LookupError("webhooks are verified with node and what `npm ci` puts into tests/clients: see `make setup`")
    posts = [{"headers": post.headers, "body": post.body.decode(), "secrets": post.secrets, "keys": post.keys}]
    done = subprocess.run(
        [node, CLIENTS / "verify_webhooks.cjs"],
        input=json.dumps(posts),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=True,
    )
    (verdict,) = json.loads(done.stdout)
    return Verdict(**verdict)


verified = pytest.mark.parametrize("verify", [by_python, by_node])


def signed(signer: Signer, *recipients: str, **changed: Any) -> dict[str, str]:
    given: dict[str, Any] = {
        "message_id": MESSAGE_ID,
        "timestamp_s": int(time.time()),
        "body": BODY,
        "recipients": recipients,
    }
    return signer.headers(**(given | changed))


@verified
def test_the_libraries_verify_the_headers_with_both_v1_and_v1a(verify: Verify) -> None:
    signer = Signer([NEW])
    headers = signed(signer, RECIPIENT)
    versions = [signature.partition(",")[0] for signature in headers["webhook-signature"].split(" ")]
    assert versions == ["v1", "v1a"]
    post = Post(headers, secrets=[signer.secret(RECIPIENT)], keys=signer.key_set()["keys"])
    assert verify(post) == Verdict([True], [True])


@verified
def test_while_keys_are_rotated_the_former_and_the_new_verify(verify: Verify) -> None:
    former, both, new = Signer([OLD]), Signer([NEW, OLD]), Signer([NEW])
    assert both.key_set()["keys"] == new.key_set()["keys"] + former.key_set()["keys"]
    assert both.secret(RECIPIENT) == new.secret(RECIPIENT)
    post = Post(
        signed(both, RECIPIENT),
        secrets=[former.secret(RECIPIENT), new.secret(RECIPIENT), Signer([OTHER]).secret(RECIPIENT)],
        keys=[*both.key_set()["keys"], *Signer([OTHER]).key_set()["keys"]],
    )
    assert verify(post) == Verdict([True, True, False], [True, True, False])


@verified
def test_while_a_subscriptions_secret_is_rotated_the_former_and_the_new_verify(verify: Verify) -> None:
    signer = Signer([NEW, OLD])
    recipients = subscription_recipients("sub_1", 3, rotated=1_000, now=2_000)
    secrets = [signer.secret(subscription_recipient("sub_1", generation)) for generation in (1, 2, 3, 4)]
    post = Post(signed(signer, *recipients), secrets=secrets, keys=signer.key_set()["keys"])
    assert verify(post) == Verdict([False, True, True, False], [True, True])


@verified
@pytest.mark.parametrize(
    "changed",
    [
        {"body": BODY.replace(b"1.0", b"1.1")},
        {"webhook-id": MESSAGE_ID.replace("end", "7")},
        {"webhook-timestamp": str(int(time.time()) + 1)},
        {"webhook-signature": "v1," + "A" * 43 + "= v1a," + "A" * 86 + "=="},
    ],
    ids=["body", "id", "timestamp", "signature"],
)
def test_a_modified_post_is_rejected(verify: Verify, changed: dict[str, Any]) -> None:
    signer = Signer([NEW])
    post = Post(
        signed(signer, RECIPIENT, timestamp_s=int(time.time()) - 5),
        secrets=[signer.secret(RECIPIENT)],
        keys=signer.key_set()["keys"],
    )
    headers = {name: changed.get(name, value) for name, value in post.headers.items()}
    assert verify(post) == Verdict([True], [True])
    assert verify(replace(post, headers=headers, body=changed.get("body", BODY))) == Verdict([False], [False])


@verified
def test_an_old_post_is_rejected_by_the_libraries(verify: Verify) -> None:
    signer = Signer([NEW])
    headers = signed(signer, RECIPIENT, timestamp_s=int(time.time()) - 600)
    assert verify(Post(headers, secrets=[signer.secret(RECIPIENT)])) == Verdict([False], [])


def test_each_recipient_has_a_secret_of_its_own() -> None:
    signer = Signer([NEW])
    recipients = [
        tenant_recipient("default"),
        tenant_recipient("other"),
        tenant_recipient("sub_1:1"),
        *(subscription_recipient(name, generation) for name in ("sub_1", "sub_11") for generation in (1, 2, 11)),
    ]
    secrets = {signer.secret(recipient) for recipient in recipients}
    assert len(secrets) == len(recipients)
    for secret in secrets:
        assert secret.startswith("whsec_")
        assert 24 <= len(base64.b64decode(secret.removeprefix("whsec_"), validate=True)) <= 64


def test_secrets_stay_the_same_from_version_to_version() -> None:
    """Receivers store them: another derivation would break all of these."""
    signer = Signer([NEW])
    assert signer.secret(tenant_recipient("default")) == "whsec_ToOV7t0N+zMw4/7vyLj3MrGgPNZTGw5XjWpcEtW53KA="
    assert signer.key_set()["keys"][0]["whpk"] == "whpk_L3dpeIB3RnZmLbHfbO5yhFsak+v2/NOfA59eZiGFexA="


def thumbprint(jwk: dict[str, str]) -> str:
    """RFC 7638, section 3."""
    members = {name: jwk[name] for name in ("crv", "kty", "x")}
    digest = hashlib.sha256(json.dumps(members, separators=(",", ":"), sort_keys=True).encode()).digest()
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")


def test_public_keys_are_a_json_web_key_set() -> None:
    of_the_rfc = {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}
    assert thumbprint(of_the_rfc) == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"  # RFC 8037, appendix A.3
    key_set = Signer([NEW, OLD]).key_set()
    assert list(key_set) == ["keys"]
    for jwk in key_set["keys"]:
        assert jwk["kid"] == thumbprint(jwk)
        assert (jwk["alg"], jwk["use"]) == ("EdDSA", "sig")
        raw = base64.urlsafe_b64decode(jwk["x"] + "=")
        assert base64.b64decode(jwk["whpk"].removeprefix("whpk_"), validate=True) == raw
        assert "d" not in jwk


def test_a_former_secret_signs_for_a_day_after_a_rotation() -> None:
    def recipients(generation: int, *, rotated: int | None, now: int) -> tuple[str, ...]:
        return subscription_recipients("sub_1", generation, rotated=rotated, now=now)

    assert recipients(1, rotated=None, now=0) == ("sub_1:1",)
    assert recipients(2, rotated=1_000, now=1_000) == ("sub_1:2", "sub_1:1")
    assert recipients(2, rotated=1_000, now=999 + GENERATION_OVERLAP_MS) == ("sub_1:2", "sub_1:1")
    assert recipients(2, rotated=1_000, now=1_000 + GENERATION_OVERLAP_MS) == ("sub_1:2",)


@pytest.mark.parametrize("message_id", ["", "a.b", "."])
def test_an_id_that_could_be_read_as_two_fields_is_not_signed(message_id: str) -> None:
    with pytest.raises(ValueError, match="cannot be signed"):
        signed(Signer([NEW]), RECIPIENT, message_id=message_id)


def test_a_signer_has_a_key_and_shows_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="needs a key"):
        Signer([])
    monkeypatch.setenv("DARKROOM_WEBHOOK_KEYS", NEW.get_secret_value().replace(",", ""))
    settings = load(WebhookSettings)
    assert "this year" not in repr(Signer.of(settings)) + repr(settings)
