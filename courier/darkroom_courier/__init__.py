"""The courier: publishes events, delivers webhooks, archives jobs, and runs the ledger's timers.

`courier.py` is the door: it assembles the loops and runs them.
"""
