"""`make run-loadtest`: load on a running darkroom by locust, and its report.

`run.py` is the entry; `profiles.py` defines the load, `users.py` makes it within locust's processes (`locustfile.py`),
`journal.py` records it, `outcome.py` judges it, and `report.py` writes the page.
"""
