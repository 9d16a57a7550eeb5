"""`darkroom tenants` and `darkroom keys`: who may use a server, and for what."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from darkroom_cli.client import Client
from darkroom_cli.exits import DONE
from darkroom_cli.terminal.output import Output

Change = Callable[[Callable[[], Mapping[str, Any]]], dict[str, Any]]
"""The fields to send, from the current record, which is read where the change depends on it."""

SHOWN_ONCE = "The key is shown once. Store it where only its user can read it."


def list_tenants(client: Client, output: Output) -> int:
    """Print one line per tenant."""
    for tenant in client.tenants():
        output.record(tenant)
        output.result(_tenant_line(tenant))
    return DONE


def show_tenant(client: Client, name: str, output: Output) -> int:
    """Print a tenant, and a line for each of its keys."""
    tenant = client.tenant(name)
    output.record(tenant)
    output.result(_tenant_line(tenant))
    output.result(f"  created {tenant['created_at']} by {tenant['created_by']}{_managed(tenant)}")
    if not output.as_json:
        for key in client.keys(tenant=name):
            output.result(f"  {_key_line(key)}")
    return DONE


def create_tenant(client: Client, output: Output, members: Mapping[str, Any]) -> int:
    """Create a tenant and print its name."""
    made = client.create_tenant(members)
    output.record(made)
    output.result(made["name"])
    return DONE


def change_tenant(client: Client, name: str, output: Output, change: Change) -> int:
    """Change a tenant and print it."""
    changed = client.change_tenant(name, change(lambda: client.tenant(name)))
    output.record(changed)
    output.result(_tenant_line(changed))
    return DONE


def delete_tenant(client: Client, name: str, output: Output) -> int:
    """Delete a tenant."""
    client.delete_tenant(name)
    output.record({"name": name, "deleted": True})
    output.result(f"The tenant {name} is deleted.")
    return DONE


def list_keys(client: Client, output: Output, *, tenant: str | None) -> int:
    """Print one line per key."""
    if tenant is not None:
        client.tenant(tenant)  # an unknown one is an error, and not a tenant without keys
    found = client.keys(tenant=tenant)
    for key in found:
        output.record(key)
        output.result(_key_line(key))
    if not found:
        output.info("There are no keys." if tenant is None else f"The tenant {tenant} has no keys.")
    return DONE


def show_key(client: Client, key_id: str, output: Output) -> int:
    """Print a key without its secret."""
    key = client.key(key_id)
    output.record(key)
    output.result(_key_line(key))
    output.result(f"  created {key['created_at']} by {key['created_by']}{_managed(key)}")
    output.result(f"  models: {', '.join(key['models']) or 'all'}")
    if key["expires_at"]:
        output.result(f"  expires {key['expires_at']}")
    if key["secrets"] > 1:
        output.result("  rotated: the previous secret is still valid")
    return DONE


def create_key(client: Client, output: Output, members: Mapping[str, Any]) -> int:
    """Create a key and print it."""
    made = client.create_key(members)
    output.info(SHOWN_ONCE)
    output.record(made)
    output.result(made["key"])
    return DONE


def rotate_key(client: Client, key_id: str, output: Output, *, overlap_s: int | None) -> int:
    """Give a key a new secret and print the key."""
    made = client.rotate_key(key_id, {} if overlap_s is None else {"overlap_s": overlap_s})
    output.info(SHOWN_ONCE)
    output.record(made)
    output.result(made["key"])
    return DONE


def change_key(client: Client, key_id: str, output: Output, change: Change) -> int:
    """Change a key and print it."""
    changed = client.change_key(key_id, change(lambda: client.key(key_id)))
    output.record(changed)
    output.result(_key_line(changed))
    return DONE


def delete_key(client: Client, key_id: str, output: Output) -> int:
    """Delete a key."""
    client.delete_key(key_id)
    output.record({"id": key_id, "deleted": True})
    output.result(f"The key {key_id} is deleted.")
    return DONE


def changes(members: Mapping[str, Any], limits: Mapping[str, int | None]) -> Change:
    """A change of fields, and of the limits that are named: None removes one, and the others keep their values."""

    def change(read: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        if not limits:
            return dict(members)
        merged = {**read()["limits"], **limits}
        return {**members, "limits": {name: value for name, value in merged.items() if value is not None}}

    return change


def _tenant_line(tenant: Mapping[str, Any]) -> str:
    return f"{tenant['name']}  weight {tenant['weight']:g}{_limits(tenant['limits'])}{_state(tenant)}"


def _key_line(key: Mapping[str, Any]) -> str:
    used = f"used {key['last_used_at']}" if key["last_used_at"] else "never used"
    return (
        f"{key['id']}  {key['tenant']}  {key['name']}  {','.join(key['scopes'])}  {used}"
        f"{_limits(key['limits'])}{_state(key)}"
    )


def _limits(limits: Mapping[str, int]) -> str:
    return "".join(f"  {name}={value}" for name, value in limits.items())


def _state(record: Mapping[str, Any]) -> str:
    return "  disabled" if record["disabled"] else ""


def _managed(record: Mapping[str, Any]) -> str:
    return f", managed by {record['managed_by']}" if record["managed_by"] else ""
