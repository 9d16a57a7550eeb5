"""The kopf operator for `WorkerPool`. It comes with its own issue: nothing runs here yet."""
