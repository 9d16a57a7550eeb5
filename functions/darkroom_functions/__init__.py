"""The Knative functions: submit, jobs, result and dead_letter. `serve.py` runs them."""
