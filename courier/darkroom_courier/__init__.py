"""The courier carries what the ledger has to tell outside, and keeps time for it."""
