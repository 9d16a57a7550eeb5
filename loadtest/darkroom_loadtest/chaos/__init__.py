"""`make chaos`: faults in every part while jobs run, and a verdict on lost and doubled jobs.

`run.py` is the entry; `plan.py` defines the faults, `storm.py` injects them, `observer.py` records what clients
receive, and `verdict.py` judges.
"""
