"""Webhooks: subscriptions, the guard against foreign addresses, the HTTP client behind it, signatures."""
