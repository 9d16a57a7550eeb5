"""Stamps: by which a job request keeps its caller on the way through a Broker.

A Broker forwards no credential, and a credential must not be part of an event, which is stored and shown. So a caller
sends the event to `submit` (`POST /api/v1/job-requests`), which stamps it with the tenant and the id of the caller's
key, proves it (`darkroom.cloudevents.proofs`) and posts it to the Broker. When the Broker delivers it, `submit` checks
the proof and reads the key again: what the key may do is decided then.

A repeated delivery is the same job, since the event has the same source and id. A process that reads events in the
Broker can repeat them, and cannot change them.
"""

from __future__ import annotations

from dataclasses import replace

from darkroom.access.principals import CredentialKind, Principal, Scope
from darkroom.cloudevents.attributes import canonical
from darkroom.cloudevents.event import Event
from darkroom.cloudevents.http import STRUCTURED_TYPE
from darkroom.cloudevents.proofs import KEY_ID, PROOF, Proofs
from darkroom.errors import CredentialRefused, ProofRefused, ScopeMissing
from starlette.datastructures import Headers

from darkroom_functions.http.access import Access

TENANT = "tenant"
"""The extension that names the tenant of an event."""


def stamped(event: Event, caller: Principal, proofs: Proofs) -> Event:
    """The event with the caller's stamp, in place of whatever it had. Raises CredentialRefused.

    Only an API key can be read again later, so callers with other credentials, such as a token of an issuer, cannot use
    the Broker. A session that was opened with a key may.
    """
    own = {TENANT: caller.tenant}
    if caller.secret:
        own[KEY_ID] = caller.actor
    elif caller.kind is not CredentialKind.NONE:
        raise CredentialRefused("an event that passes the Broker needs an API key")
    others = {name: value for name, value in event.extensions.items() if name not in (TENANT, KEY_ID, PROOF)}
    return proofs.prove(replace(event, extensions={**others, **own}))


def may_be_stamped(headers: Headers) -> bool:
    """Whether a request without a credential may have an event with a stamp; its body need not be read otherwise."""
    content_type = headers.get("content-type", "")
    return f"ce-{PROOF}" in headers or content_type.lower().startswith(STRUCTURED_TYPE)


async def caller_of(event: Event, proofs: Proofs, access: Access) -> Principal:
    """On whose behalf a stamped event requests a job.

    Raises CredentialRefused, ScopeMissing, AccessUnavailable and LedgerUnavailable.
    """
    try:
        proofs.check(event)
    except ProofRefused as error:
        raise CredentialRefused(f"the request has no credential, and {error.detail}", error=None) from None
    key_id, tenant = (canonical(event.extensions.get(name, "")) for name in (KEY_ID, TENANT))
    caller = await access.holder(key_id)
    if caller.tenant != tenant:
        raise CredentialRefused(f"the key {key_id} does not belong to the tenant that the event names")
    if not caller.may(Scope.SUBMIT):
        raise ScopeMissing(f"the credential {caller.actor} lacks the scope {Scope.SUBMIT}", scope=Scope.SUBMIT.value)
    return caller
