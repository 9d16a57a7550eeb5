"""`darkroom tenants` and `darkroom keys`: who may use a server, and for what."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from darkroom_cli.client import Client
from darkroom_cli.exits import DONE
from darkroom_cli.terminal.output import Output

SHOWN_ONCE = "The key is shown once. Store it where only its user can read it."


def list_tenants(client: Client, output: Output) -> int:
    """Print one line per tenant."""
    for tenant in client.tenants():
        output.record(tenant)
        state = "  disabled" if tenant["disabled"] else ""
        output.result(f"{tenant['name']}  weight {tenant['weight']:g}{_limits(tenant['limits'])}{state}")
    return DONE


def create_tenant(client: Client, output: Output, members: Mapping[str, Any]) -> int:
    """Create a tenant and print its name."""
    made = client.create_tenant(members)
    output.record(made)
    output.result(made["name"])
    return DONE


def change_tenant(client: Client, name: str, output: Output, members: Mapping[str, Any]) -> int:
    """Change a tenant."""
    changed = client.change_tenant(name, members)
    output.record(changed)
    output.result(f"The tenant {name} is {'disabled' if changed['disabled'] else 'enabled'}.")
    return DONE


def delete_tenant(client: Client, name: str, output: Output) -> int:
    """Delete a tenant."""
    client.delete_tenant(name)
    output.record({"name": name, "deleted": True})
    output.result(f"The tenant {name} is deleted.")
    return DONE


def list_keys(client: Client, output: Output, *, tenant: str | None) -> int:
    """Print one line per key."""
    found = client.keys(tenant=tenant)
    for key in found:
        output.record(key)
        state = "  disabled" if key["disabled"] else ""
        used = key["last_used_at"] or "never used"
        output.result(
            f"{key['id']}  {key['tenant']}  {','.join(key['scopes'])}  {used}  {key['name']}"
            f"{_limits(key['limits'])}{state}"
        )
    if not found:
        output.info("There are no keys.")
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


def change_key(client: Client, key_id: str, output: Output, members: Mapping[str, Any]) -> int:
    """Change a key."""
    changed = client.change_key(key_id, members)
    output.record(changed)
    output.result(f"The key {key_id} is {'disabled' if changed['disabled'] else 'enabled'}.")
    return DONE


def delete_key(client: Client, key_id: str, output: Output) -> int:
    """Delete a key."""
    client.delete_key(key_id)
    output.record({"id": key_id, "deleted": True})
    output.result(f"The key {key_id} is deleted.")
    return DONE


def _limits(limits: Mapping[str, int]) -> str:
    return "".join(f"  {name}={value}" for name, value in limits.items())
