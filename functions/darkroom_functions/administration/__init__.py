"""Administration over HTTP: tenants, keys, tickets and sessions, the audit trail, usage."""
