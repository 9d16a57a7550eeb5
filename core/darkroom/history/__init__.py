"""The history: finished jobs in SQL, their tombstones, and the lookup that spans ledger and history."""
