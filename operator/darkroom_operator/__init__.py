"""The kopf operator: scales worker pools by queue depth and never removes a busy worker. `process.py` is the door."""
