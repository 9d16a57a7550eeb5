"""Webhooks: which addresses receive events, and how requests to them are checked, sent and signed.

`subscriptions.py` is the door: webhooks, subscriptions and deliveries. `guard.py` checks addresses, `client.py` sends
to checked ones, and `signatures.py` signs.
"""
