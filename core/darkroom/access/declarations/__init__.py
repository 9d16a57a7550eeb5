"""Tenants and keys that a file declares: `tenants_file.py` reads it, `reconciliation.py` applies it."""
