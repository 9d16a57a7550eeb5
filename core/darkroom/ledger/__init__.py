"""The ledger: every job, in Redis. Start with `client.py`; `calls/` has the transitions, `lua/` their rules."""
