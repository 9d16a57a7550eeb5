"""The audit trail: who did what, in SQL, append-only, as a hash chain.

The functions record each operation (`darkroom_functions/http/trail.py`), the ledger holds the entries until the courier
has stored them (`ledger/lua/trail/`), and `store.py` reads and verifies them. `entries.py` has their form.
"""
