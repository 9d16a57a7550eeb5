"""The GPU worker: a Celery parent that claims a pool's jobs, and a child that runs them with an engine."""
