"""The Knative functions: submit, jobs, result and undelivered. `serve.py` runs them."""
