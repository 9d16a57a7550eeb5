"""WebSockets, event streams and long polls: followers of a job's log or of a tenant's events."""
