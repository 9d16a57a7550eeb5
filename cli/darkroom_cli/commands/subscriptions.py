"""`darkroom subscriptions`: list, create and delete webhook subscriptions."""

from __future__ import annotations

from collections.abc import Sequence

from darkroom_cli.client import Client
from darkroom_cli.exits import DONE
from darkroom_cli.terminal.output import Output


def list_subscriptions(client: Client, output: Output) -> int:
    """Print one line per subscription, oldest first."""
    found = client.subscriptions()
    for each in found:
        output.record(each)
        why = f"  ({each['reason']})" if each["reason"] else ""
        output.result(f"{each['id']}  {each['state']}  {each['url']}  {','.join(each['events'])}{why}")
    if not found:
        output.info("There are no subscriptions.")
    return DONE


def create(
    client: Client, output: Output, *, url: str, events: Sequence[str] | None, models: Sequence[str] | None
) -> int:
    """Create a subscription and print its id."""
    members = {"url": url, "events": events, "models": models}
    made = client.subscribe({name: value for name, value in members.items() if value is not None})
    output.record(made)
    output.result(str(made["id"]))
    return DONE


def secret(client: Client, subscription_id: str, output: Output) -> int:
    """Print the secret that verifies the deliveries of a subscription."""
    shown = client.subscription_secret(subscription_id)
    output.record(shown)
    output.result(str(shown["secret"]))
    return DONE


def delete(client: Client, subscription_id: str, output: Output) -> int:
    """Delete a subscription."""
    client.unsubscribe(subscription_id)
    output.record({"id": subscription_id, "deleted": True})
    output.result(f"The subscription {subscription_id} is deleted.")
    return DONE
