"""Clients and receivers with minimal overhead, which the benchmarks start as processes of their own.

`jobs.py` submits and waits, `generator.py` repeats one request, `subscribers.py` holds thousands of WebSockets, and
`receivers.py` accepts webhooks.
"""
