"""The Knative functions: submit, jobs, result. `serve.py` runs them; each function's own file says what reaches it."""
