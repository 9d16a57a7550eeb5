"""JWT bearer tokens of an OpenID Connect issuer: `verification.py` is the entry."""
