"""The history: finished jobs in SQL, their tombstones, and the lookup that spans ledger and history.

The door for readers is `lookup.py`, for writers `store.py`; `schema.py` has the tables.
"""
