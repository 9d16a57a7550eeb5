"""Scaling decisions as pure functions, and their simulation. The door is `decision.py`; `decision_log.py` records."""
