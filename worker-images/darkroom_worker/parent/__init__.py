"""The parent process: Celery's consumer, the lease of the running attempt, drain, probes."""
