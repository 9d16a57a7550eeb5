"""Access: tenants, their API keys, and the verification of credentials."""
