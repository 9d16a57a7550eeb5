"""Tenants and keys as the file declares them: the difference, and its application.

The courier applies a file when it starts and when the file changes (`darkroom_courier/access.py`). What the file names
belongs to it from then on, also if an operation created it: operations refuse to change it. What left the file is
disabled and can be changed by operations again, so that a deleted line ends access and loses nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from darkroom.access.administration import ROOT, Administration
from darkroom.access.declarations.tenants_file import Declaration, DeclaredTenant, KeyOfTenant, limits_of
from darkroom.access.principals import DEFAULT_TENANT
from darkroom.access.records import ApiKey, KeySecret, Tenant
from darkroom.errors import NameTaken, NotFound
from darkroom.logs import logger

FILE = "tenants-file"
"""What manages the tenants and keys of the file."""

R = TypeVar("R", Tenant, ApiKey)

_log = logger(__name__)


@dataclass(frozen=True)
class Plan:
    """What makes the records as declared. Each record is the whole one after the change."""

    released_tenants: tuple[Tenant, ...]
    released_keys: tuple[ApiKey, ...]
    created_tenants: tuple[Tenant, ...]
    changed_tenants: tuple[Tenant, ...]
    keys: tuple[ApiKey, ...]

    def __len__(self) -> int:
        """The number of changes."""
        parts = (self.released_tenants, self.released_keys, self.created_tenants, self.changed_tenants, self.keys)
        return sum(map(len, parts))


async def apply(declaration: Declaration, administration: Administration) -> int:
    """Make the records as declared; returns the number of changes. Repeated calls change nothing more.

    Raises TenantsFileRefused before the first change, HistoryUnavailable at any time: then repeat it.
    """
    snapshot = await administration.store.snapshot()
    plan = planned(
        declaration,
        [each.record for each in snapshot.tenants],
        [each.record for each in snapshot.keys],
        now=time.time_ns() // 1_000_000,
    )
    # What ends access comes first: it must not wait for a change that fails.
    for key in plan.released_keys:
        with suppress(NotFound):
            await administration.change_key(key.id, _replace(key, "disabled", "managed_by"), actor=FILE, manager=FILE)
    for tenant in (*plan.released_tenants, *plan.changed_tenants):
        change = _replace(tenant, "disabled", "managed_by", "weight", "limits")
        await administration.change_tenant(tenant.name, change, actor=FILE, manager=FILE)
    for tenant in plan.created_tenants:
        with suppress(NameTaken):  # another courier was faster
            await administration.create_tenant(tenant, actor=FILE)
    for key in plan.keys:
        await administration.put_key(key, actor=FILE)
    if plan:
        _log.info(
            "tenants_file_applied",
            file=declaration.name,
            tenants=len(declaration.tenants),
            keys=len(declaration.keys),
            changes=len(plan),
        )
    return len(plan)


async def release(administration: Administration) -> int:
    """Leave everything that a file declared to operations, unchanged: there is no file any more."""
    snapshot = await administration.store.snapshot()
    tenants = [each.record for each in snapshot.tenants if each.record.managed_by == FILE]
    keys = [each.record for each in snapshot.keys if each.record.managed_by == FILE]
    for tenant in tenants:
        own = tenant.model_copy(update={"managed_by": None})
        with suppress(NotFound):
            await administration.change_tenant(tenant.name, _replace(own, "managed_by"), actor=FILE, manager=FILE)
    for key in keys:
        with suppress(NotFound):
            released = key.model_copy(update={"managed_by": None})
            await administration.change_key(key.id, _replace(released, "managed_by"), actor=FILE, manager=FILE)
    return len(tenants) + len(keys)


def planned(declaration: Declaration, tenants: Sequence[Tenant], keys: Sequence[ApiKey], *, now: int) -> Plan:
    """What makes these records as declared. Raises TenantsFileRefused for a key that is the root key."""
    known_tenants, known_keys = {each.name: each for each in tenants}, {each.id: each for each in keys}
    roots = [key for key in declaration.keys if key.id in known_keys and known_keys[key.id].managed_by == ROOT]
    if roots:
        reason = "is the root key, which belongs to DARKROOM_ROOT_KEY"
        raise declaration.refused(*(declaration.document.fault(key.place, reason) for key in roots))
    declared_tenants = [_tenant(known_tenants.get(each.name), each) for each in declaration.tenants]
    declared_keys = [_key(known_keys.get(each.id), each, now=now) for each in declaration.keys]
    named_tenants, named_keys = {each.name for each in declared_tenants}, {each.id for each in declared_keys}
    return Plan(
        released_tenants=tuple(
            # The tenant of the root key stays enabled: while it is disabled, no key could enable it again.
            tenant.model_copy(update={"disabled": tenant.disabled and tenant.name != DEFAULT_TENANT})
            for tenant in _released(tenants, lambda tenant: tenant.name in named_tenants)
        ),
        released_keys=tuple(_released(keys, lambda key: key.id in named_keys)),
        created_tenants=tuple(each for each in declared_tenants if each.name not in known_tenants),
        changed_tenants=tuple(each for each in declared_tenants if known_tenants.get(each.name, each) != each),
        keys=tuple(each for each in declared_keys if known_keys.get(each.id) != each),
    )


def _released(records: Sequence[R], is_declared: Callable[[R], bool]) -> Iterator[R]:
    """What the file declared before and does not now, disabled."""
    for record in records:
        if record.managed_by == FILE and not is_declared(record):
            yield record.model_copy(update={"disabled": True, "managed_by": None})


def _tenant(known: Tenant | None, declared: DeclaredTenant) -> Tenant:
    tenant = known or Tenant(name=declared.name)
    return tenant.model_copy(
        update={
            "weight": declared.weight,
            "limits": limits_of(declared.limits),
            "disabled": declared.disabled,
            "managed_by": FILE,
        }
    )


def _key(known: ApiKey | None, key: KeyOfTenant, *, now: int) -> ApiKey:
    created = {} if known is None else {secret.digest: secret.created for secret in known.secrets}
    fields: dict[str, Any] = {
        "tenant": key.tenant,
        "name": key.declared.name,
        "scopes": key.scopes,
        "models": tuple(key.declared.models),
        "limits": key.limits,
        "expires": key.expires,
        "disabled": key.declared.disabled,
        "secrets": tuple(KeySecret(digest=digest, created=created.get(digest, now)) for digest in key.digests),
        "managed_by": FILE,
    }
    if known is None:
        return ApiKey(id=key.id, created=now, created_by=FILE, **fields)
    if key.declared.disabled and not known.disabled:
        fields["disabled_at"] = now
    return known.model_copy(update=fields)


def _replace(wanted: R, *names: str) -> Callable[[R], R]:
    """Sets these fields of the stored record to those of `wanted`, and leaves all others."""
    fields = {name: getattr(wanted, name) for name in names}

    return lambda stored: stored.model_copy(update=fields)
